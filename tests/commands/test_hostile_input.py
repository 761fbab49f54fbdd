"""Names, numbers and links that want more than to be shown: one line, plain text, and nothing that is secret."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe.errors import MOST_CHARACTERS, NvtxmoeError
from nvtxmoe.formats.journal import Journal
from nvtxmoe.printing.console import stdout
from nvtxmoe.terminal_text import harmless
from nvtxmoe_analysis.outputs.csv_formulas import mark, unmark
from nvtxmoe_analysis.outputs.read import load
from tests.support import sessions
from tests.support.cli import RESULTS, TWO_GPUS, analyze, everything, refused, run
from tests.support.constructed_runs import simple
from tests.support.export_builder import Export, Process

SECRET = "planted-0123456789"


@pytest.mark.parametrize("value", ["abc", [1], {}, 1 << 63, 1 << 80, -1, 0.5, True])
@pytest.mark.parametrize("key", ["ep_size", "dp_size", "pp_rank"])
def test_numbers_of_groups_that_are_none(tmp_path: Path, key: str, value: Any) -> None:
    path = simple(meta={key: value}).save(tmp_path / "x.sqlite")
    said = f"damaged payload: {key} is {json.dumps(value)}, not a number"
    refused(run("analyze", path, "-o", tmp_path / "results"), path, said)


def test_the_largest_step_numbers(tmp_path: Path) -> None:
    session = tmp_path / "session"
    most = (1 << 63) - 1
    for rank in (0, 1):
        more = [sessions.step(most, rank), *(sessions.counts(most, layer, [1, 1, 2, 2], rank) for layer in (0, 1))]
        records = [sessions.meta(rank=rank, world_size=2), sessions.step(0, rank), *more]
        sessions.journal(session, records, rank=rank, pid=100 + rank)
    assert run("analyze", session, "-o", tmp_path / "results").code == 0


@pytest.mark.parametrize("key", ["device", "vllm", "capture", "model"])
def test_half_a_character(tmp_path: Path, key: str) -> None:
    """JSON may hold it, UTF-8 may not."""
    value: Any = {"failures": {"\ud800": "\udfff"}} if key == "capture" else "a\ud800"
    path = simple(meta={key: value}).save(tmp_path / "x.sqlite")
    assert run("analyze", path, "-o", tmp_path / "results", "--report").code == 0
    assert run("inspect", path, "--json").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze", "loop", "-o", "out"),
        ("analyze", "good.sqlite", "-o", "loop"),
        ("analyze", "good.sqlite", "-o", "out", "--sqlite", "loop"),
        ("inspect", "loop"),
        ("merge", "loop"),
        ("report", "loop"),
        ("trim", "loop", "out.sqlite"),
        ("trim", "good.sqlite", "loop"),
        ("export", "loop", "--perfetto", "out"),
        ("export", "good.sqlite", "--perfetto", "loop"),
    ],
)
def test_links_in_a_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    simple().save(tmp_path / "good.sqlite")
    Path("loop").symlink_to("loop")
    refused(run(*arguments), "loop")


def test_of_several_inputs_a_circle_costs_itself(tmp_path: Path) -> None:
    simple().save(tmp_path / "good.sqlite")
    (tmp_path / "loop.sqlite").symlink_to("loop.sqlite")
    inputs = [tmp_path / "good.sqlite", tmp_path / "loop.sqlite"]
    assert run("analyze", *inputs, "-o", tmp_path / "results", "--partial-ok").code == 0
    assert load(tmp_path / "results").validation["verdict"] == "incomplete"


def test_trim_of_a_table_without_a_column_that_is_read(tmp_path: Path) -> None:
    export = simple()
    path = export.save(tmp_path / "x.sqlite")
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_RUNTIME RENAME COLUMN correlationId TO other")
    database.close()
    refused(run("trim", path, tmp_path / "out.sqlite"), "lacks the column correlationId")


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results of a capture of two GPUs; not to be changed."""
    folder = tmp_path_factory.mktemp("analyzed")
    analyze(TWO_GPUS, folder)
    return folder


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"layer_0": 5}', '{"layer_0": {"top_k": []}}'])
def test_a_damaged_summary(analyzed: Path, tmp_path: Path, text: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(analyzed / RESULTS, other)
    (other / "moe_summary.json").write_text(text)
    refused(run("compare", analyzed, other), other / "moe_summary.json", "Run `nvtxmoe analyze` again")
    assert run("report", other).code == 0


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams(tmp_path: Path, closed: int) -> None:
    """As a shell's >&- leaves them."""
    command = [sys.executable, "-m", "nvtxmoe", "analyze", str(TWO_GPUS), "-o", str(tmp_path / "results")]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert load(tmp_path / "results").has("summary")


def test_long_texts_of_errors_are_cut() -> None:
    error = NvtxmoeError("x" * 10**6, where="file", remedy="Do it")
    assert len(str(error)) < MOST_CHARACTERS + 100
    assert str(error).endswith("x. Do it")
    assert "999,200 characters left out" in str(error)


def test_a_long_name_is_cut_in_the_error(tmp_path: Path) -> None:
    path = simple(meta={"layers": ["x" * 100_000]}).save(tmp_path / "x.sqlite")
    assert len(refused(run("analyze", path, "-o", tmp_path / "results"))) < MOST_CHARACTERS + 2 * len(str(path)) + 200


HOSTILE = "\x1b]0;owned\x07\x1b[2Jk\u202e"


def hostile_run() -> Export:
    export = Export()
    worker = Process(export, meta={"device": HOSTILE, "vllm": HOSTILE, "sample_every": 1})
    worker.send_meta()
    with worker.step(0):
        for layer, name in enumerate(("=cmd|' /C calc'!A0", "@SUM(1)")):
            with worker.layer(layer):
                worker.kernel(name=name)
                worker.kernel(name=HOSTILE)
            worker.counts(0, layer, [2, 2, 1, 1])
    export.add("TARGET_INFO_GPU", id=0, name=HOSTILE)
    return export


def test_escape_sequences_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = hostile_run().save(tmp_path / "x.sqlite")
    for arguments in (
        ("analyze", path, "-o", tmp_path / "results"),
        ("inspect", path),
        ("report", tmp_path / "results"),
    ):
        ran = run(*arguments)
        assert not {"\x1b", "\x07", "\u202e"} & set(ran.out + ran.err), arguments
        assert ran.out
    assert r"\x1b[2J" in run("inspect", path).out


def test_what_a_terminal_obeys_is_spelled() -> None:
    assert harmless("a\x1b[1m\u202eb\nc\té\u4e2d\xa0") == "a\\x1b[1m\\u202eb\nc\té\u4e2d\xa0"
    out = io.StringIO()
    with redirect_stdout(out):
        stdout().print("[bold]x[/bold]", "\x1b[2J")
    assert out.getvalue() == "x \\x1b[2J\n"


def test_styles_still_reach_a_terminal() -> None:
    main, other = pty.openpty()
    program = "from nvtxmoe.printing.console import stdout; stdout().print('[bold]x[/bold]')"
    env = {**os.environ, "TERM": "xterm"}
    env.pop("NO_COLOR", None)
    subprocess.run([sys.executable, "-c", program], stdout=other, check=True, env=env)
    os.close(other)
    assert b"\x1b[1mx\x1b[0m" in os.read(main, 1000)
    os.close(main)


FORMULAS = ["=1", "+1", "-1", "@x", "\tx", "\rx", "'=1", "''=1"]
PLAIN = ["a=1", "'x", "", None, "void k<int>(int)", "[CUDA memcpy]"]


def test_formulas_are_marked_and_come_back() -> None:
    plain = [*PLAIN, *PLAIN[: len(FORMULAS) - len(PLAIN)], *PLAIN]
    table = pl.DataFrame({"name": [*FORMULAS, *PLAIN], "number": -1, "plain": plain, "other": [*PLAIN, *FORMULAS]})
    marked = mark(table)
    formulas = [f"'{text}" for text in FORMULAS]
    assert marked.to_dict(as_series=False) == table.to_dict(as_series=False) | {
        "name": [*formulas, *PLAIN], "other": [*PLAIN, *formulas]
    }  # fmt: skip
    assert {name: unmark(marked[name]).to_list() for name in ("name", "plain", "other")} == {
        name: table[name].to_list() for name in ("name", "plain", "other")
    }
    assert mark(table.select("number")).equals(table.select("number"))


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path) -> None:
    path = hostile_run().save(tmp_path / "x.sqlite")
    analyze(path, tmp_path)
    for file in (tmp_path / RESULTS).glob("*.csv"):
        with file.open(newline="") as opened:
            cells = {cell for row in csv.reader(opened) for cell in row}
        assert not [cell for cell in cells if cell[:1] in set("=+@\t\r")], file.name
    names = set(load(tmp_path).frame("kernel_timings")["kernel_name"])
    assert {"=cmd|' /C calc'!A0", "@SUM(1)"} <= names


def test_nothing_that_is_published_holds_a_secret(tmp_path: Path) -> None:
    """nsys records environment and command lines; results, report, trace and trimmed captures have none of them."""
    export = hostile_run()
    for name in ("ENV:HF_TOKEN", "COMMAND_LINE", "USER_NAME"):
        export.add("META_DATA_CAPTURE", name=name, value=f"python --token {SECRET}")
    export.rows["PROCESSES"][0]["name"] = f"python --api-key {SECRET}"
    export.string(f"HF_TOKEN={SECRET}")
    export.add("DIAGNOSTIC_EVENT", timestamp=1, severity=1, text=f"Process launched: python --token {SECRET}")
    path = export.save(tmp_path / "x.sqlite")
    out = tmp_path / "published"
    out.mkdir()
    said = []
    for arguments in (
        ("analyze", path, "-o", out / "csv", "--report", "--sqlite", out / "tables.db", "--json"),
        ("analyze", path, "-o", out / "parquet", "--format", "parquet"),
        ("export", path, "--perfetto", out / "trace.pftrace"),
        ("trim", path, out / "trimmed.sqlite"),
        ("trim", path, out / "trimmed"),
        ("inspect", path, "--json"),
    ):
        ran = run(*arguments)
        assert ran.code in {0, 3}, ran.err
        said.append(ran.out + ran.err)
    assert SECRET not in "".join(said)
    for name, content in everything(out).items():
        assert SECRET.encode() not in (content or b""), name
        if name.endswith(".parquet"):
            assert (
                SECRET.encode() not in repr(pl.read_parquet(out / name, columns=_readable(out / name)).rows()).encode()
            )


def _readable(file: Path) -> list[str]:
    """Columns but payloads, which are labelled text and are not."""
    return [name for name in pl.read_parquet_schema(file) if name != "binaryData"]


def test_journals_hold_no_secret(tmp_path: Path) -> None:
    """Neither environment nor command line of the process that writes them."""
    program = f"""
import sys
from pathlib import Path
from nvtxmoe.capture.run_identity import Identity, LayerInfo, Step, meta_text
from nvtxmoe.capture.sinks.journal import JournalSink
sink = JournalSink(Path({str(tmp_path)!r}), 0, 3600)
layers = (LayerInfo(0, "layer 0", 4, 2),)
sink.meta(meta_text(Identity(layers=layers), sample_every=0, emit=frozenset({{"counts"}}), encoding="journal",
                    held_bytes=0, capture=None))
sink.step_begins(Step(0, 0, 1, 1, 1, 0))
sink.close({{"steps": 1}})
"""
    env = {**os.environ, "HF_TOKEN": SECRET, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, "--api-key", SECRET], env=env, check=True)
    (file,) = tmp_path.glob("ranks/*.journal")
    raw = b"".join(raw for _, raw in Journal(file)._blocks())
    assert b"layer 0" in raw
    assert SECRET.encode() not in raw
