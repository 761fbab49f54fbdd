"""Commands in a real pseudo terminal, in pipes, and in terminals that know less than Unicode."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import spawn
from tests.support.compare_runs import Load, make_results
from tests.support.constructed_runs import simple
from tests.support.paths import ROOT
from tests.support.terminals import ESCAPES, terminal

COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-7])m")


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    load = Load(steps=40, experts=8, layers=2)
    return [make_results(tmp_path / name, load, seed) for seed, name in enumerate(("before", "after", "größe"))]


def on_screen(*arguments: object, columns: int) -> str:
    """Return what a command leaves in a terminal, without progress."""
    with terminal(*arguments, columns=columns, keys=False) as screen:
        assert screen.ended() == 0, screen.raw
    lines = ESCAPES.sub("", screen.raw).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r")[2] for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_real_capture_in_a_terminal(golden_2gpu: Path, tmp_path: Path, columns: int) -> None:
    """No ellipsis, and no line that the terminal has to break but paths."""
    for shown in (
        on_screen("analyze", golden_2gpu, "-o", tmp_path, columns=columns),
        on_screen("inspect", golden_2gpu, columns=columns),
        on_screen("compare", tmp_path, tmp_path, columns=columns),
    ):
        assert "…" not in shown
        long = [line for line in shown.split("\n") if len(line) > columns]
        assert all(str(tmp_path) in line or str(golden_2gpu) in line for line in long), long
        for number in re.findall(r"\d[\d,.]* (?:us|ms)\b", shown):
            assert re.fullmatch(r"[\d,]+\.\d+ (us|ms)", number), number


def test_several_results_in_a_terminal(results: list[Path]) -> None:
    shown = on_screen("compare", *results, columns=80)
    assert "  after " in shown and "not seen" in shown
    assert all(len(line) <= 80 for line in shown.split("\n") if str(results[0].parent) not in line)


@pytest.mark.parametrize("name", ["", "analyze", "compare", "completion", "doctor", "inspect", "merge", "place", "top"])
def test_help_has_room(name: str) -> None:
    """Only examples, which are there to be copied, may be longer than a line."""
    for columns in (60, 80, 200):
        shown = on_screen(*([name] if name else []), "--help", columns=columns)
        lines = [line for line in shown.split("\n") if not line.startswith("    nvtxmoe ")]
        assert max(map(len, lines)) <= max(columns, 80)


def test_pipes_get_whole_lines_without_spaces_at_their_ends(results: list[Path]) -> None:
    ran = spawn("compare", *results[:2], env=os.environ | {"COLUMNS": "60"})
    assert (ran.code, ran.err) == (0, "")
    assert all(line == line.rstrip() for line in ran.out.splitlines())
    assert "No room for" not in ran.out
    assert "\nSignificance is against steps within these runs, not against other runs of the same thing.\n" in ran.out


def test_colours_are_forced_and_refused(results: list[Path]) -> None:
    """FORCE_COLOR is for pipes that know colours; NO_COLOR goes before it."""
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    command = ("compare", *results[:2], "--fail-if", "kernel_time>900%")
    plain, forced, refused = (
        spawn(*command, env=base | {"TERM": "xterm-256color"} | more).out
        for more in ({}, {"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"})
    )
    assert "\x1b" not in plain
    assert COLOUR.search(forced) and ESCAPES.sub("", forced) == plain
    assert not COLOUR.search(refused) and ESCAPES.sub("", refused) == plain


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_that_know_less_than_unicode(results: list[Path], encoding: str) -> None:
    with terminal(
        "compare", *results, columns=80, keys=False, PYTHONIOENCODING=encoding, LC_ALL="C", LANG="C"
    ) as screen:
        assert screen.ended() == 0, screen.raw
    assert "kernel_time" in screen.raw and "Traceback" not in screen.raw


@pytest.mark.parametrize("command", ["compare {} --json", "compare {}", "--help", "completion bash"])
def test_a_reader_that_has_enough(results: list[Path], command: str) -> None:
    """``| head -n 1`` ends a command without a word."""
    words = command.format(shlex.join(map(str, results)))
    line = f"{shlex.quote(sys.executable)} -m nvtxmoe {words} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_one_is_no_plural(tmp_path: Path) -> None:
    source = simple(steps=1).save(tmp_path / "one.sqlite")
    ran = spawn("analyze", source, "-o", tmp_path / "results")
    assert "\n1 rank, 1 step, " in ran.out
    assert not re.search(r"\b1 (ranks|steps|layers|tokens|problems|notes|checks)\b", ran.out)


# Completion -----------------------------------------------------------------------------------------------------------


def completed(folder: Path, shell: str, script: str) -> list[str]:
    """Return what a shell prints that has the completion script; ``nvtxmoe`` is on its PATH."""
    program = folder / "bin" / "nvtxmoe"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}:{ROOT}/analysis exec "{sys.executable}" -m nvtxmoe "$@"\n')
    program.chmod(0o755)
    env = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


BASH = (
    'eval "$(nvtxmoe completion bash)"; COMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); '
    '_nvtxmoe_completion nvtxmoe; echo "${{COMPREPLY[@]}}"'
)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("nvtxmoe com", ["compare", "completion"]),
        ("nvtxmoe compare --base", ["--baseline"]),
        ("nvtxmoe compare --gate i", ["interval"]),
        ("nvtxmoe completion f", ["fish"]),
    ],
)
def test_bash_completes(tmp_path: Path, words: str, offered: list[str]) -> None:
    assert completed(tmp_path, "bash", BASH.format(words)) == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(tmp_path: Path) -> None:
    script = "nvtxmoe completion fish | source; complete -C 'nvtxmoe com'"
    assert {"compare", "completion"} <= set(completed(tmp_path, "fish", script))


@pytest.mark.parametrize(("shell", "said"), [("zsh", "#compdef nvtxmoe"), ("fish", "complete --no-files --command")])
def test_scripts_of_other_shells(shell: str, said: str) -> None:
    ran = spawn("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert said in ran.out and "_NVTXMOE_COMPLETE" in ran.out
