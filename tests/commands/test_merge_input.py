"""What `nvtxmoe merge`, `analyze` and `inspect` say of sessions that can't be read: one line, exit code 2."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.formats.journal import MAGIC, block
from tests.support.cli import RESULTS, TWO_GPUS, everything, files, refused, run
from tests.support.constructed_runs import simple
from tests.support.sessions import counts, journal, meta, run_of, step, topk


def refuses(session: Path, *said: object, also: Path | None = None) -> str:
    """Assert that merge and analyze refuse a session with one line, and write nothing."""
    before = everything(session) if session.is_dir() else {}
    inputs = [session] if also is None else [session, also]
    line = refused(run("merge", *inputs, "-o", session.parent / "out"), *said)
    assert ". " in line, f"says nothing of what to do: {line}"
    assert files(session.parent / "out") == set()
    assert (everything(session) if session.is_dir() else {}) == before
    return line


def test_no_session(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "ranks").mkdir(parents=True)
    (tmp_path / "begun" / "ranks" / "notes.txt").touch()
    for name in ("empty", "begun"):
        refuses(tmp_path / name, tmp_path / name, "no journals in it (ranks/*.journal). Give a session's folder")
    refuses(tmp_path / "nothing", "no such file or folder. Give a session's folder")
    refused(run("inspect", tmp_path / "begun"), "no journals in it")
    refused(run("analyze", tmp_path / "begun", "-o", tmp_path / "out"), "no journals in it")


def test_the_folder_of_all_sessions(tmp_path: Path) -> None:
    """The newest one is named."""
    for name in ("session_20251124_235959", "session_20251125_000000"):
        journal(tmp_path / name, run_of())
    newest = tmp_path / "session_20251125_000000"
    line = refused(run("merge", tmp_path), "no journals in it", f"Give one of the sessions in it, as {newest}")
    assert "235959" not in line
    assert run("merge", newest).code == 0


def test_an_export_is_no_session(tmp_path: Path) -> None:
    path = simple().save(tmp_path / "run.sqlite")
    refuses(path, path, "not a journal of nvtxmoe", "`nvtxmoe analyze` reads exports and reports of nsys")
    refuses(TWO_GPUS, TWO_GPUS, "no journals in it")


def test_no_journal(tmp_path: Path) -> None:
    """By name only: the message names the file."""
    path = journal(tmp_path, run_of(world_size=2))
    other = path.with_name("rank1-101.journal")
    other.write_bytes(b"rank,step\n")
    refuses(tmp_path, other, "not a journal of nvtxmoe. Give a session's folder")
    other.write_bytes(b"NVTXMOE7")
    refuses(tmp_path, other, "a journal of another format", "Read it with the version of nvtxmoe that captured it")


def test_a_process_that_has_written_nothing_yet(tmp_path: Path) -> None:
    """Nor any block, nor the first eight bytes: it is only without an end."""
    path = journal(tmp_path, run_of())
    for size in (0, 5, 8):
        path.with_name(f"rank1-{size}.journal").write_bytes(MAGIC[:size])
    ran = run("merge", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert "3 of 4 journals without an end (2 cut off): rank1-0.journal, rank1-5.journal, rank1-8.journal." in ran.out


def test_a_damaged_journal(tmp_path: Path) -> None:
    """Before its end; the others can still be merged by name."""
    good = journal(tmp_path, run_of(world_size=2))
    bad = journal(tmp_path, run_of(1, world_size=2), rank=1, pid=101)
    content = bytearray(bad.read_bytes())
    content[30] ^= 1
    bad.write_bytes(content)
    refuses(tmp_path, bad, "damaged journal at byte 8. Merge the other journals by name, or capture again")
    assert run("merge", good).code == 0
    assert json.loads((tmp_path / RESULTS / "moe_summary.json").read_text()).keys() == {"layer_0", "layer_1"}


def test_no_steps(tmp_path: Path) -> None:
    journal(tmp_path, [meta()])
    refuses(tmp_path, tmp_path, "no step in 1 journal: nothing was scheduled. Send requests to the engine while it")
    ran = run("inspect", tmp_path)
    assert ran.code == 0
    assert "no moe.step: no step was recorded" in ran.out


def test_two_processes_of_one_rank(tmp_path: Path) -> None:
    """An engine that started again: the journals of either run can be merged by name."""
    first = journal(tmp_path, run_of(steps=2), pid=100)
    second = journal(tmp_path, run_of(steps=3), pid=200)
    refuses(
        tmp_path, f"two processes say they are rank 0: {first} and {second}", "the journals of one run, not the folder"
    )
    for path, steps in ((first, 2), (second, 3)):
        assert run("merge", path, "--json").json["steps_kept"] == steps
    refuses(second, f"{second}: given twice. Name each report once", also=second)


def test_an_unknown_schema(tmp_path: Path) -> None:
    journal(tmp_path, [meta(schema=2), step(0)])
    refuses(tmp_path, "moe.meta of process 100", "payload schema 2, and this nvtxmoe reads 1", "with the version")


@pytest.mark.parametrize("end", ["not JSON", "[]", '{"lost": 3}', '{"failures": []}', '{"lost": {"x": -1}}'])
def test_an_end_that_says_nothing(tmp_path: Path, end: str) -> None:
    path = journal(tmp_path, run_of(), end=None)
    raw = struct.pack("<IIq", 6, len(end), 1) + end.encode()
    with path.open("ab") as file:
        file.write(block(raw))
    refuses(tmp_path, f"{path}, its end", "damaged payload")


PAYLOADS = {
    "a short step": ("step", bytes(31), "moe.step of 31 bytes"),
    "counts without a head": ("counts", bytes(20), "moe.counts of 20 bytes"),
    "half a count": ("counts", bytes(26), "moe.counts of 26 bytes"),
    "counts of no expert": ("counts", bytes(24), "moe.counts has counts of shape (0,)"),
    "half a physical count": ("physical", bytes(27), "moe.physical of 27 bytes"),
    "pairs of no number of experts": ("pairs", bytes(32 + 4 * 4), "moe.pairs of 4 entries, which is no E(E-1)/2"),
    "half a pair": ("pairs", bytes(32 + 4 * 3 + 1), "moe.pairs of 45 bytes"),
    "meta that is no JSON": ("meta", b"{", "moe.meta of process 100: damaged payload: not JSON"),
    "half a sample": ("topk", topk(0, 0, [[0, 1]])[1][:-1], "moe.topk of 27 bytes, of top-2"),
    "a sample without a head": ("topk", bytes(9), "moe.topk of 9 bytes"),
    "samples of an unknown layer": (*topk(0, 7, [[0, 1]]), "layer 7 can't be read"),
}


@pytest.mark.parametrize("what", PAYLOADS)
def test_a_payload_that_is_none(tmp_path: Path, what: str) -> None:
    event, payload, said = PAYLOADS[what]
    journal(tmp_path, [*run_of(), (event, payload)])
    refuses(tmp_path, tmp_path, said)


@pytest.mark.slow
@settings(max_examples=25)
@given(record=st.integers(0, 15), at=st.integers(0, 1000), byte=st.integers(0, 255), cut=st.integers(0, 9))
def test_a_changed_payload_is_read_or_refused(record: int, at: int, byte: int, cut: int) -> None:
    """Blocks that are whole, as a fault in capture would write them: results or one line, never a traceback."""
    sent = run_of()
    event, payload = sent[record]
    changed = bytearray(payload)
    changed[at % len(changed)] = byte
    sent[record] = (event, bytes(changed[: len(changed) - cut]))
    with tempfile.TemporaryDirectory() as folder:
        journal(Path(folder), sent)
        ran = run("merge", folder)
    assert ran.code in {0, 2}, ran.err
    assert ran.err.count("\n") == (1 if ran.code else 0)


def test_exports_and_journals_are_not_mixed(tmp_path: Path) -> None:
    export = simple().save(tmp_path / "run.sqlite")
    session = tmp_path / "session"
    journal(session, run_of())
    said = f"{session}: a session of direct mode, and {export} is none: journals and exports of nsys can't be mixed. "
    for inputs in ((export, session), (session, export)):
        refused(run("analyze", *inputs, "-o", tmp_path / "out"), said)
        refused(run("inspect", *inputs), said)
    assert files(tmp_path / "out") == set()


def test_a_session_is_not_trimmed(tmp_path: Path) -> None:
    journal(tmp_path, run_of())
    refused(run("trim", tmp_path, tmp_path / "out.sqlite"), "a session of direct mode, not an export", "nvtxmoe merge")
    assert not (tmp_path / "out.sqlite").exists()


def test_a_journal_that_lies_elsewhere(tmp_path: Path) -> None:
    """It can be read all the same; its process id is what it says itself."""
    path = journal(tmp_path, run_of(pid=77)).rename(tmp_path / "a journal")
    refused(run("merge", path), path, "a journal that lies in no session's folder ranks. Say with -o where")
    assert run("merge", path, "-o", tmp_path / "out").code == 0
    validation = json.loads((tmp_path / "out" / RESULTS / "moe_capture_validation.json").read_text())
    assert [one["pid"] for one in validation["inputs"][0]["processes"]] == [77]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    journal(tmp_path, run_of())
    (tmp_path / RESULTS).touch()
    refused(run("merge", tmp_path), tmp_path / RESULTS, "cannot write the results: Not a directory")


def test_without_meta(tmp_path: Path) -> None:
    """Its counts tell the layers; the verdict says what is not known."""
    journal(tmp_path, run_of()[1:])
    ran = run("merge", tmp_path)
    assert ran.code == 0
    assert "No moe.meta from rank0-100.journal: its ranks, layers and parallel groups are unknown." in ran.out
    assert "    1        4      2     4" in ran.out


# inspect -------------------------------------------------------------------------------------------------------------


def test_inspect(tmp_path: Path) -> None:
    journal(tmp_path, run_of(world_size=2, vllm="0.32.0"))
    journal(tmp_path, run_of(1, world_size=2), rank=1, pid=101, end=None)
    ran = run("inspect", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == str(tmp_path)
    assert lines[1].startswith("session 2 journals, ")
    assert "layers 0-1: 4 experts, top-2" in lines
    assert "payloads 12 counts, 12 samples of 36 tokens; encoding journal" in lines
    assert "time span 0.130 s" in lines
    assert "0 100 0 of 1 0 of 1 3 0..2 0 9" in lines
    assert not any("GPU" in line or "profiler" in line or "graph" in line for line in lines)
    assert any(line.startswith("So far nothing is missing; `nvtxmoe merge` checks every count.") for line in lines)
    assert any(line.startswith("Note: 1 of 2 journals without an end: rank1-101.journal.") for line in lines)


def test_inspect_says_what_is_missing(tmp_path: Path) -> None:
    end = {"steps": 2, "lost": {"events": 3}, "failures": {}}
    journal(tmp_path, [meta(world_size=2), step(0), step(1), counts(0, 0, [2, 2, 1, 1])], end=end)
    found = run("inspect", tmp_path, "--json").json
    assert found["verdict"] == "incomplete"
    assert found["missing"] == [
        "Capture lost events (3)",
        "3 of 4 (rank, step, layer) have no counts",
        "world_size says 2 ranks, 1 found (without 1)",
    ]
    assert (found["inputs"][0]["kind"], found["inputs"][0]["journals"]) == ("journal", 1)
