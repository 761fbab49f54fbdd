"""The `nvtxmoe` command: help, streams, exit codes."""

from __future__ import annotations

import errno
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import click
import polars as pl
import pytest

import nvtxmoe
from nvtxmoe import cli
from nvtxmoe.commands import demo
from nvtxmoe.errors import NvtxmoeError
from tests.support.cli import RESULTS, TWO_GPUS, analyze, everything, files, refused, run, spawn
from tests.support.constructed_runs import simple, without
from tests.support.paths import ROOT
from tests.support.written_results import file_set

SET = file_set("csv")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-7])m")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return simple().save(tmp_path / "small.sqlite")


# Help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.command_names())
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_every_option_and_an_example(name: str, flag: str) -> None:
    ran = run(name, flag)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: nvtxmoe {name} ")
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    options = [option for param in command.params if isinstance(param, click.Option) for option in param.opts]
    # The output of `profile` is that of the command it runs; its results are read with `analyze --json`. That of
    # `recipes-path` and `completion` is for the shell, that of `mcp` for an agent.
    without_json = {"profile", "recipes-path", "completion", "mcp"}
    assert {"--debug", *([] if name in without_json else ["--json"])} <= set(options)
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", ran.out), option
    assert all(param.help for param in command.params if isinstance(param, click.Option))
    _, example = ran.out.split("  Example:\n")
    assert all(line.startswith(f"    nvtxmoe {name}") for line in example.splitlines())
    for line in example.splitlines():
        words = line.split(" -- ")[0].split()[2:]  # what follows is another command's
        assert {word for word in words if word.startswith("-")} <= set(options), line


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.err) == (0, "")
    for name in cli.command_names():
        assert f"\n  {name} " in ran.out
    assert "Example:\n    nvtxmoe demo\n    nvtxmoe analyze report1.nsys-rep -o results\n" in ran.out
    modules = {path.stem.replace("_", "-") for path in (ROOT / "nvtxmoe" / "commands").glob("[a-z]*.py")}
    assert modules == set(cli.command_names())


def test_version() -> None:
    assert run("--version").out == f"nvtxmoe, version {nvtxmoe.__version__}\n"
    assert spawn("--version").out == f"nvtxmoe, version {nvtxmoe.__version__}\n"


# Streams -------------------------------------------------------------------------------------------------------------


def test_what_people_read(small: Path, tmp_path: Path) -> None:
    ran = analyze(small, tmp_path / "results")
    folder = tmp_path / "results" / RESULTS
    assert ran.out.startswith("Is MoE the problem? not known\n  Too few steady steps: 3, at least 5 needed. ")
    assert "MoE layers take 0.300 us of 0.400 us per steady" in " ".join(ran.out.split())
    assert "\n1 rank, 3 steps, 2 MoE layers, 9 tokens\n" in ran.out
    assert "\nCapture complete: " in ran.out
    assert f"\nResults in {folder}:\n" in ran.out
    assert files(folder) == SET
    assert set(ran.out.split()) >= SET


def test_json_alone_on_standard_output(small: Path, tmp_path: Path) -> None:
    ran = analyze(small, tmp_path / "results", "--json", "--sqlite", tmp_path / "results.db")
    found = ran.json
    assert (found["verdict"], found["reasons"], found["checks_failed"]) == ("complete", [], 0)
    assert (found["ranks"], found["steps_kept"], found["steps_captured"], found["tokens"]) == (1, 3, 3, 9)
    assert found["in_layer_ns"] == 900
    assert [(one["layer"], one["num_experts"], one["kernel_time_ns"]) for one in found["layers"]] == [
        (0, 4, 300),
        (1, 4, 600),
    ]
    assert found["folder"] == str(tmp_path / "results" / RESULTS)
    assert set(found["files"]) == SET | {str(tmp_path / "results.db"), str(tmp_path / "results" / "findings.json")}
    spawned = spawn("analyze", small, "-o", tmp_path / "again", "--json")
    assert (spawned.code, spawned.err) == (0, "")
    assert spawned.json | {"folder": "", "files": ""} == found | {"folder": "", "files": ""}


def test_kernels_of_no_length(tmp_path: Path) -> None:
    export = simple()
    for row in export.rows["CUPTI_ACTIVITY_KIND_KERNEL"]:
        row["end"] = row["start"]
    found = analyze(export.save(tmp_path / "built.sqlite"), tmp_path / "results", "--json").json
    assert found["in_layer_ns"] == 0
    assert [(one["total_ns"], one["pct"]) for one in found["kernels"]] == [(0, 0.0)]


def test_metadata_with_numbers_that_json_has_not(tmp_path: Path) -> None:
    odd = {"overhead": {"ns": float("nan"), "most": float("inf")}, "eplb": [float("-inf"), 1.5]}
    source = simple(meta=odd).save(tmp_path / "built.sqlite")
    assert analyze(source, tmp_path / "results", "--json").json["verdict"] == "complete"
    validation = (tmp_path / "results" / RESULTS / "moe_capture_validation.json").read_text()
    assert '"overhead": {\n            "ns": null,\n            "most": null\n          }' in validation
    # JSON has no infinity, but a number may be too large for a double.
    source = simple(meta={"overhead": "1e999"}).save(tmp_path / "large.sqlite")
    analyze(source, tmp_path / "results")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_pipes_get_plain_text(small: Path, tmp_path: Path, more: list[str]) -> None:
    ran = spawn("analyze", small, "-o", tmp_path / "results", *more, env=os.environ | {"TERM": "xterm-256color"})
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out and "\r" not in ran.out


def on_a_terminal(*arguments: object, piped: bool = False, **environment: str) -> tuple[str, str]:
    """Standard output where it is ``piped``, and what a terminal gets from the rest."""
    master, slave = os.openpty()
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "nvtxmoe", *(str(a) for a in arguments)],
        stdin=slave,
        stdout=subprocess.PIPE if piped else slave,
        stderr=slave,
        env=base | {"TERM": "xterm-256color"} | environment,
    )
    os.close(slave)
    shown = b""
    while True:
        if select.select([master], [], [], 60)[0]:
            try:
                part = os.read(master, 65536)
            except OSError as error:  # how Linux says that the other end is closed
                assert error.errno == errno.EIO
                break
            if not part:
                break
            shown += part
    out = process.stdout.read() if process.stdout else b""
    assert process.wait() == 0, shown
    os.close(master)
    return out.decode(), shown.decode()


@pytest.mark.slow
def test_terminals_get_colour_unless_they_want_none(small: Path, tmp_path: Path) -> None:
    _, shown = on_a_terminal("analyze", small, "-o", tmp_path / "results")
    assert COLOUR.search(shown)
    assert "opening" in shown and "complete" in shown
    _, shown = on_a_terminal("analyze", small, "-o", tmp_path / "results", NO_COLOR="1")
    assert not COLOUR.search(shown)
    assert "complete" in shown


def test_progress_is_for_terminals(small: Path, tmp_path: Path) -> None:
    """A program that reads standard output gets it in peace, even if standard error is a terminal."""
    out, shown = on_a_terminal("analyze", small, "-o", tmp_path / "results", piped=True)
    assert shown == ""
    assert "\x1b" not in out and "Capture complete" in out


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a :fire: [red] [bold]b"
    folder.mkdir()
    source = simple().save(folder / "in [red].sqlite")
    ran = analyze(source, folder)
    assert f"Results in {folder / RESULTS}:\n" in ran.out
    _, shown = on_a_terminal("analyze", source, "-o", folder, COLUMNS="400")
    assert "a :fire: [red] [bold]b" in shown


def test_one_line_whatever_a_name_holds(tmp_path: Path) -> None:
    refused(run("analyze", tmp_path / "a\nb\x1b[31m  c", "-o", tmp_path), r"a\nb\x1b[31m  c: no such file or folder")


def test_a_terminal_that_knows_less_than_unicode(tmp_path: Path) -> None:
    source = simple().save(tmp_path / "größe.sqlite")
    ran = spawn("analyze", source, "-o", tmp_path / "größe", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (ran.code, ran.err) == (0, "")
    assert r"gr\xf6\xdfe/moe_expert_tracking:" in ran.out


@pytest.mark.slow
def test_a_reader_that_goes_away(small: Path, tmp_path: Path) -> None:
    for more in ([], ["--json"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "nvtxmoe", "analyze", str(small), "-o", str(tmp_path / "results"), *more]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (1, b"")
        assert files(tmp_path / "results" / RESULTS) == SET


@pytest.mark.slow
def test_standard_output_on_a_full_disk(small: Path, tmp_path: Path) -> None:
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "nvtxmoe", "analyze", str(small), "-o", str(tmp_path / "results"), *more]
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 2
        assert done.stderr.decode().count("\n") == 1
        assert "No space left on device" in done.stderr.decode()


# Exit codes ----------------------------------------------------------------------------------------------------------


def test_strict(tmp_path: Path) -> None:
    whole = simple().save(tmp_path / "whole.sqlite")
    part = without(simple(), "KERNEL").save(tmp_path / "part.sqlite")
    codes = {}
    for source in (whole, part):
        for more in ([], ["--strict"], ["--strict", "--json"]):
            output = tmp_path / "results" / source.stem / str(len(more))
            ran = run("analyze", source, "-o", output, *more)
            assert ran.err == ""
            assert files(output / RESULTS) == SET
            codes[source.stem, len(more)] = ran.code
    assert codes == {
        ("whole", 0): 0, ("whole", 1): 0, ("whole", 2): 0, ("part", 0): 0, ("part", 1): 3, ("part", 2): 3,
    }  # fmt: skip
    assert "Capture incomplete:\n  - " in run("analyze", part, "-o", tmp_path / "results").out


def test_strict_judges_the_whole_capture(tmp_path: Path) -> None:
    export = simple(steps=4)
    export.rows["CUPTI_ACTIVITY_KIND_KERNEL"].pop()
    source = export.save(tmp_path / "built.sqlite")
    assert run("analyze", source, "-o", tmp_path / "results", "--strict", "--steps", ":1").code == 3


def test_debug_shows_the_traceback(small: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.sqlite"
    with pytest.raises(NvtxmoeError, match="no such file or folder"):
        run("analyze", missing, "-o", tmp_path, "--debug")
    ran = spawn("analyze", "--debug", missing, "-o", tmp_path / "results")
    assert ran.code == 1
    assert ran.err.startswith("Traceback (most recent call last):\n")
    assert f"NvtxmoeError: {missing}: no such file or folder. Give a .nsys-rep" in ran.err
    assert run("analyze", small, "-o", tmp_path / "results", "--debug").code == 0
    refused(run("analyze", "-o", tmp_path, "--", "--debug"), "--debug: no such file or folder")


class Panic(BaseException):
    """What the Rust libraries raise is no Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, MemoryError, Panic, pl.exceptions.ShapeError])
def test_a_bug_is_called_one(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def broken(*_: object) -> None:
        raise kind("first\n  second")

    monkeypatch.setattr("nvtxmoe_analysis.analyze.merge", broken)
    before = everything(tmp_path)
    ran = run("analyze", small, "-o", tmp_path / "results")
    assert (ran.code, ran.out) == (1, "")
    said = r"'first\n second'" if kind is KeyError else "first second"
    assert ran.err == f"nvtxmoe: internal error, {kind.__name__}: {said}. Run again with --debug and report it\n"
    assert everything(tmp_path) == before
    with pytest.raises(kind):
        run("analyze", small, "-o", tmp_path / "results", "--debug")


def test_interrupted(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nvtxmoe_analysis.ingest.task.read_capture", interrupt)
    ran = run("analyze", small, "-o", tmp_path / "results")
    assert (ran.code, ran.out, ran.err) == (130, "", "\nnvtxmoe: interrupted\n")
    assert files(tmp_path) == {"small.sqlite"}


# demo: tests/project/test_docs.py runs the one of the tutorial -------------------------------------------------------


def test_demo_elsewhere_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small capture in the place of the demo's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "CAPTURE", TWO_GPUS)
    ran = run("demo", "-o", "else/where", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert (ran.json["verdict"], ran.json["ranks"], ran.json["steps_captured"]) == ("complete", 2, 47)
    assert ran.json["files"][-1] == "else/where/report.html"
    assert files(tmp_path / "else" / "where") == {f"{RESULTS}/{name}" for name in SET} | {
        "report.html",
        "findings.json",
    }
