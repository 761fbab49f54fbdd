"""`nvtxmoe profile` around offline scripts, under the real nsys: from the command to the result files."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import pytest

from nvtxmoe.profile.qdstrm_import import importer_of
from nvtxmoe.profile.results import _draw
from nvtxmoe_analysis.analyze import analyze
from tests.programs import emit_words
from tests.support.cli import files, refused
from tests.support.profile_plans import executable
from tests.support.profile_runs import PROGRAMS, profile, start

pytestmark = pytest.mark.tried_again
EMIT = PROGRAMS / "emit_words.py"
STANDARD = {
    "moe_expert_activations.csv", "moe_expert_coselection.csv", "moe_routing_weights_hist.csv",
    "moe_load_imbalance.csv", "moe_summary.json", "moe_capture_validation.json",
}  # fmt: skip


def activations(folder: Path) -> dict[str, list[int]]:
    """Counts by layer, from the CSV file of a run."""
    counts: dict[str, list[int]] = {}
    with (folder / "moe_expert_tracking" / "moe_expert_activations.csv").open() as file:
        for row in csv.DictReader(file):
            counts.setdefault(row["layer_idx"], []).append(int(row["activation_count"]))
    return counts


def program(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_without_what_draws_the_report(
    golden_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server may lack altair: everything else is there, and how to draw it elsewhere is said."""
    done = analyze([golden_vllm], tmp_path)
    monkeypatch.setitem(sys.modules, "nvtxmoe_analysis.report.build", None)
    _draw(done)
    out = capsys.readouterr().out
    assert out.startswith("No report.html: ")
    assert out.endswith(f"Elsewhere: nvtxmoe report {done.folder}\n")
    assert not (tmp_path / "report.html").exists()


def test_an_offline_script(tmp_path: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--", sys.executable, EMIT, nsys=nsys_path)
    assert (ran.code, ran.err) == (0, ""), ran
    assert activations(out) == emit_words.expected()["activations"]
    assert {"report.nsys-rep", "report.nvtxmoe.sqlite", "command.log"} <= files(out)
    assert {f"moe_expert_tracking/{name}" for name in STANDARD} <= files(out)
    # Its output is shown and kept; the command line is shown.
    said = json.dumps(emit_words.expected())
    assert said in ran.out and said in (out / "command.log").read_text()
    assert f"{nsys_path} profile -t cuda,nvtx --cuda-graph-trace=node -s none --cpuctxsw=none" in ran.out
    assert f"-o {out}/report {sys.executable} {EMIT}\n" in ran.out
    assert (
        f"nvtxmoe: everything is in {out}: command.log, findings.json, moe_expert_tracking/, report.html, " in ran.out
    )
    assert f"Report: {out}/report.html\n" in ran.out and "report.html" in files(out)
    # no CUDA events: incomplete, and the last line shows it
    assert ran.out.endswith(f"(the reasons are above): {out}/moe_expert_tracking\n")


def test_without_analysis(tmp_path: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--no-analyze", "--trace", "nvtx", "--", sys.executable, EMIT, nsys=nsys_path)
    assert ran.code == 0
    assert files(out) == {"report.nsys-rep", "command.log"}
    assert "results:" not in ran.out


def test_a_script_that_fails(tmp_path: Path, nsys_path: Path) -> None:
    """Its code is told, ours is 1, and what it recorded before is analysed."""
    out = tmp_path / "out"
    failing = program(
        tmp_path, "from tests.programs import emit_words", "if __name__ == '__main__':", "    emit_words.main()",
        "    raise SystemExit(7)",
    )  # fmt: skip
    ran = profile(out, "--", sys.executable, failing, nsys=nsys_path)
    assert ran.code == 1
    assert "nvtxmoe: the command failed with exit code 7; what was recorded until then is kept\n" in ran.out
    assert activations(out) == emit_words.expected()["activations"]


def test_a_script_that_fails_at_once(tmp_path: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--", sys.executable, "-c", "import no_such_module", nsys=nsys_path)
    assert (ran.code, ran.err) == (1, "")
    assert "No module named 'no_such_module'" in ran.out
    assert "the command failed with exit code 1" in ran.out
    assert "that can't be analysed: " in ran.out
    assert "report.nsys-rep" in files(out)


def test_a_script_that_a_signal_ends(tmp_path: Path, nsys_path: Path) -> None:
    killed = "import os, signal, nvtx; nvtx.mark('x'); os.kill(os.getpid(), signal.SIGSEGV)"
    ran = profile(tmp_path / "out", "--", sys.executable, "-c", killed, nsys=nsys_path)
    assert ran.code == 1
    assert "the command failed with exit code 139" in ran.out


@pytest.mark.parametrize(
    ("code", "found"),
    [("pass", "the report has no NVTX events"), ("import nvtx; nvtx.mark('not ours')", "no events of the NVTX domain")],
    ids=["no events at all", "events of others"],
)
def test_hooks_that_recorded_nothing(code: str, found: str, tmp_path: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--", sys.executable, "-c", code, nsys=nsys_path)
    assert ran.code == 2
    assert ran.err.startswith(f"nvtxmoe: {out}/report.") and ran.err.count("\n") == 1
    assert found in ran.err
    assert "Run it again with --verbose" in ran.err and "`nvtxmoe doctor`" in ran.err
    assert "report.nsys-rep" in files(out)


def test_ctrl_c_on_a_script(tmp_path: Path, nsys_path: Path) -> None:
    """The script gets it once, ends by itself, and what it emits while ending is in the report."""
    out, ready = tmp_path / "out", tmp_path / "ready"
    waiting = program(
        tmp_path,
        "import pathlib, time",
        "from tests.programs import emit_words",
        "if __name__ == '__main__':",
        "    try:",
        f"        pathlib.Path({str(ready)!r}).touch()",
        "        time.sleep(600)",
        "    except KeyboardInterrupt:",
        "        time.sleep(1)  # a second SIGINT would end it here",
        "        emit_words.main()",
    )
    running = start(out, "--", sys.executable, waiting, nsys=nsys_path)
    running.wait_for(ready.exists)
    running.interrupt()
    ran = running.finish()
    assert (ran.code, ran.err) == (0, ""), ran
    assert "nvtxmoe: interrupted\nnvtxmoe: asking the command to end (SIGINT to process " in ran.out
    assert "SIGTERM" not in ran.out
    assert activations(out) == emit_words.expected()["activations"]


def waits_to_be_asked(tmp_path: Path) -> tuple[Path, Path]:
    """A script that waits for SIGINT, and the file that it makes when it does."""
    ready = tmp_path / "ready"
    script = program(
        tmp_path, "import pathlib, time", "try:", f"    pathlib.Path({str(ready)!r}).touch()", "    time.sleep(600)",
        "except KeyboardInterrupt:", "    print('asked')",
    )  # fmt: skip
    return script, ready


def test_the_script_behind_a_shell(tmp_path: Path, nsys_path: Path) -> None:
    """A shell would keep SIGINT to itself until its child ends: the child is the one to ask."""
    out = tmp_path / "out"
    waiting, ready = waits_to_be_asked(tmp_path)
    shell = tmp_path / "start.sh"
    shell.write_text(f"#!/bin/bash\n{sys.executable} {waiting}\necho the shell goes on\n")
    shell.chmod(0o755)
    running = start(out, "--no-analyze", "--", shell, nsys=nsys_path)
    running.wait_for(ready.exists)
    running.interrupt()
    ran = running.finish()
    assert ran.code == 0
    assert "asked\nthe shell goes on\n" in ran.out, ran.out


def test_a_shell_that_becomes_the_script(tmp_path: Path, nsys_path: Path) -> None:
    """By `exec` the first process gets another name: it is still the one to ask."""
    out = tmp_path / "out"
    waiting, ready = waits_to_be_asked(tmp_path)
    shell = tmp_path / "start.sh"
    shell.write_text(f"#!/bin/bash\nsleep 2  # so long that it is seen as a shell\nexec {sys.executable} {waiting}\n")
    shell.chmod(0o755)
    running = start(out, "--no-analyze", "--", shell, nsys=nsys_path)
    running.wait_for(ready.exists)
    running.interrupt()
    ran = running.finish()
    assert ran.code == 0
    assert "nvtxmoe: asking the command to end (SIGINT to process " in ran.out
    assert "asked\n" in ran.out and "SIGTERM" not in ran.out


def test_helpers_of_nsys_are_not_the_command(tmp_path: Path, nsys_path: Path) -> None:
    """Newer versions run some before it; what the launcher starts is the command."""
    out = tmp_path / "out"
    waiting, ready = waits_to_be_asked(tmp_path)
    nsys = tmp_path / "nsys"
    nsys.write_text(f'#!/bin/bash\n[ "$1" = profile ] && sleep 1.5\nexec {nsys_path} "$@"\n')
    nsys.chmod(0o755)
    running = start(out, "--no-analyze", "--", sys.executable, waiting, nsys=nsys)
    running.wait_for(ready.exists)
    running.interrupt()
    ran = running.finish()
    assert ran.code == 0
    assert "nvtxmoe: asking the command to end (SIGINT to process " in ran.out
    assert "asked\n" in ran.out and "SIGTERM" not in ran.out


def test_a_folder_that_holds_something(tmp_path: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    refused(profile(out, "--", sys.executable, EMIT, nsys=nsys_path), "not an empty folder")
    assert files(out) == {"mine"}


# Without nsys

JOURNALS = PROGRAMS / "write_journals.py"


@pytest.mark.slow
def test_mode_moe_needs_no_nsys(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--mode", "moe", "--", sys.executable, JOURNALS, nsys=tmp_path / "none")
    assert (ran.code, ran.err) == (0, ""), ran
    assert activations(out) == emit_words.expected()["activations"]
    found = files(out)
    assert {f"moe_expert_tracking/{name}" for name in STANDARD} <= found
    assert {name.partition("-")[0] for name in found if name.startswith("ranks/")} == {"ranks/rank0", "ranks/rank1"}
    assert "Capture complete" in ran.out


@pytest.mark.slow
def test_mode_moe_waits_for_what_is_left_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--mode", "moe", "--", sys.executable, JOURNALS, 2)
    assert (ran.code, ran.err) == (0, ""), ran
    assert "waiting for processes that the command left behind" in ran.out
    assert activations(out) == emit_words.expected()["activations"]


@pytest.mark.slow
def test_mode_moe_ends_what_is_left_behind_for_too_long(tmp_path: Path) -> None:
    ran = profile(tmp_path / "out", "--mode", "moe", "--stop-timeout", 1, "--", sys.executable, JOURNALS, 600)
    assert ran.code == 2
    assert "sending SIGTERM to " in ran.out and "(sh), " in ran.out
    assert ran.err.startswith(f"nvtxmoe: {tmp_path / 'out'}: nothing was recorded. Run it again with --verbose")


@pytest.mark.slow
def test_mode_moe_and_ctrl_c(tmp_path: Path) -> None:
    out, ready = tmp_path / "out", tmp_path / "ready"
    waiting = program(
        tmp_path,
        "import os, pathlib, time",
        "from tests.programs import write_journals",
        "try:",
        f"    pathlib.Path({str(ready)!r}).touch()",
        "    time.sleep(600)",
        "except KeyboardInterrupt:",
        "    time.sleep(1)",
        "    write_journals.write(pathlib.Path(os.environ['NVTXMOE_SESSION_DIR']))",
    )
    running = start(out, "--mode", "moe", "--", sys.executable, waiting)
    running.wait_for(ready.exists)
    running.interrupt()
    ran = running.finish()
    assert (ran.code, ran.err) == (0, ""), ran
    assert activations(out) == emit_words.expected()["activations"]


def test_mode_both(tmp_path: Path, nsys_path: Path) -> None:
    """Two results of one run, in folders of their own, with the same counts."""
    out = tmp_path / "out"
    both = program(
        tmp_path,
        "import os, pathlib",
        "from tests.programs import emit_words, write_journals",
        "if __name__ == '__main__':",
        "    emit_words.main()",
        "    write_journals.write(pathlib.Path(os.environ['NVTXMOE_SESSION_DIR']))",
    )
    ran = profile(out, "--mode", "both", "--", sys.executable, both, nsys=nsys_path)
    assert (ran.code, ran.err) == (0, ""), ran
    assert f"nvtxmoe: the same from mode moe's journals: {out}/session/moe_expert_tracking\n" in ran.out
    same = ("moe_expert_activations.csv", "moe_expert_coselection.csv", "moe_summary.json")
    for name in same:
        pair = [(folder / "moe_expert_tracking" / name).read_bytes() for folder in (out, out / "session")]
        assert pair[0] == pair[1]
    assert activations(out) == emit_words.expected()["activations"]


@pytest.mark.slow
def test_a_report_that_is_never_written(tmp_path: Path) -> None:
    """One Ctrl-C more does not yet give up what nsys is about to write; two do."""
    shift = 'while [ "$1" != -o ]; do shift; done; shift 2'
    nsys = executable(
        tmp_path / "nsys", "#!/bin/sh", 'case "$1" in', '--version) echo "NVIDIA Nsight Systems version 2023.4.4" ;;',
        f"profile) {shift}; \"$@\"; echo the program has ended; exec sleep 600 ;;", "esac",
    )  # fmt: skip
    running = start(tmp_path / "out", "--", sys.executable, "-c", "pass", nsys=nsys)
    assert running.process.stdout is not None
    for said in ("the program has ended", "nsys writes the report (Ctrl-C twice gives it up)"):
        while said not in running.process.stdout.readline():
            pass
        running.interrupt()
    time.sleep(1)
    assert running.process.poll() is None
    running.interrupt()
    ran = running.finish()
    assert ran.code == 1
    assert "nsys writes" not in ran.out
    assert "nvtxmoe: giving up the report: sending SIGKILL to nsys\n" in ran.out
    assert f"that can't be analysed: {tmp_path / 'out'}: nsys left no report. See the end of " in ran.out


def importing_nsys(folder: Path, failures: int) -> Path:
    """An nsys that leaves a raw file, and an importer in its usual place that fails so often before it works."""
    shift = 'while [ "$1" != -o ]; do shift; done; out=$2; shift 2'
    executable(
        folder / "host-linux-x64" / "QdstrmImporter", "#!/bin/sh", f"echo x >>{folder}/tried",
        f'[ "$(wc -l <{folder}/tried)" -gt {failures} ] || {{ echo "Importation failed"; touch "$4"; exit 1; }}',
        'cp "$2" "$4"',
    )  # fmt: skip
    return executable(
        folder / "target-linux-x64" / "nsys", "#!/bin/sh", 'case "$1" in',
        '--version) echo "NVIDIA Nsight Systems version 2023.4.4" ;;',
        f'profile) {shift}; "$@"; echo raw >"$out.qdstrm" ;;', "esac",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("failures", [0, 2])
def test_a_report_that_nsys_could_not_make(failures: int, tmp_path: Path) -> None:
    """The real nsys does that once in a while, whatever was recorded; its raw file imports on another try."""
    out = tmp_path / "out"
    nsys = importing_nsys(tmp_path, failures)
    ran = profile(out, "--no-analyze", "--", sys.executable, "-c", "pass", nsys=nsys)
    assert (ran.code, ran.err) == (0, ""), ran
    assert ran.out.count("nvtxmoe: nsys left report.qdstrm and no report: importing it again\n") == failures + 1
    assert files(out) == {"report.nsys-rep", "command.log"}
    assert (out / "report.nsys-rep").read_text() == "raw\n"
    assert (out / "command.log").read_text().count("Importation failed") == failures


def test_a_report_that_cannot_be_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--", sys.executable, "-c", "pass", nsys=importing_nsys(tmp_path, 99))
    assert ran.code == 2
    assert ran.err.startswith(f"nvtxmoe: {out}/report.qdstrm: nsys recorded, but could not make a report of it. ")
    assert files(out) == {"report.qdstrm", "command.log"}


def test_where_the_importer_is(nsys_path: Path, tmp_path: Path) -> None:
    found = importer_of(nsys_path)
    assert found is not None and found.name == "QdstrmImporter"
    assert importer_of(executable(tmp_path / "bin" / "nsys", "#!/bin/sh")) is None


@pytest.mark.slow
@pytest.mark.parametrize(("options", "code"), [((), 0), (("--strict",), 3)])
def test_strict_exits_with_3_for_an_incomplete_capture(tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    """One rank of two is missing."""
    one_rank = program(
        tmp_path,
        "import os, pathlib, sys",
        f"sys.path.insert(0, {str(PROGRAMS.parents[1])!r})",
        "from tests.programs import write_journals",
        "session = pathlib.Path(os.environ['NVTXMOE_SESSION_DIR'])",
        "write_journals.write(session)",
        "next(session.glob('ranks/rank1-*')).unlink()",
    )
    ran = profile(tmp_path / "out", "--mode", "moe", *options, "--", sys.executable, one_rank)
    assert ran.code == code, ran
    assert "Capture incomplete" in ran.out
    last = ran.out.splitlines()[-1]
    assert last.startswith("nvtxmoe: results of an incomplete capture (the reasons are above): ")
