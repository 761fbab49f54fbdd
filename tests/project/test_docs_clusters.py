"""The pages on clusters: their shell is valid, the job does what it says, the claims are those of the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nvtxmoe.capture.startup.session import session_dir
from nvtxmoe.capture.startup.settings import FIELDS, PREFIX, SESSION_DIR
from nvtxmoe.capture.vllm.identity import RUN_ID
from nvtxmoe.cli import command_names, run
from tests.support.cli import run as command
from tests.support.nsys_runs import profile_nvtx, run_nsys
from tests.support.paths import ROOT
from tests.support.sessions import journal, meta, step_of

CLUSTERS = ("how-to/slurm", "how-to/ray")
PAGES = (*CLUSTERS, "how-to/perfetto")
PAGE = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in CLUSTERS)


def blocks(text: str, language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def named(name: str) -> str:
    """The block between the page's markers of that name."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", PAGE, re.DOTALL)
    assert found is not None, name
    return found[1]


SHELL = [(page, block) for page in PAGES for block in blocks((ROOT / "docs" / f"{page}.md").read_text(), "bash")]


@pytest.mark.parametrize(("page", "block"), SHELL)
def test_shell_is_valid(page: str, block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), page


def test_there_is_shell_to_check() -> None:
    assert len(SHELL) == len(re.findall("^```bash", PAGE, re.MULTILINE)) + 1 == 8


@pytest.mark.parametrize("page", ["how-to/ray", "how-to/perfetto"])
def test_python_is_valid(page: str) -> None:
    found = blocks((ROOT / "docs" / f"{page}.md").read_text(), "python")
    assert found
    for block in found:
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_are_there(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    code = "\n".join([*re.findall(r"`(nvtxmoe [^`\n]+)`", text), *blocks(text, "bash")])
    used = set(re.findall(r"nvtxmoe ([a-z]+)\b((?:(?!-- |\n|;).)*)", code))
    assert used
    for verb, rest in used:
        assert verb in command_names(), verb
        assert run([verb, "--help"]) == 0
        said = capsys.readouterr().out
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in said, (verb, option)


def test_variables_are_there() -> None:
    for name in set(re.findall(r"\bNVTXMOE_[A-Z_]+", PAGE)):
        assert name in (SESSION_DIR, RUN_ID) or name.removeprefix(PREFIX).lower() in FIELDS, name


# The job, with stand-ins ----------------------------------------------------------------------------------------------

#: Writes what it is called with; of `profile` waits for SIGINT, unless it sends requests itself: those end once all
#: others wait.
NVTXMOE = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS/node${SLURM_NODEID:-job}"
[ "$1" = profile ] || exit 0
case "$*" in *--num-requests*)
    until [ "$(find "$CALLS" -name 'ready*' | wc -l)" -eq $((SLURM_NNODES - 1)) ]; do sleep 0.05; done
    exit "${FAILS:-0}"
esac
exec python3 -c '
import os, signal, time
def end(*_):
    with open(os.environ["CALLS"] + "/node" + os.environ["SLURM_NODEID"], "a") as file:
        file.write("asked to end\\n")
    os._exit(0)
signal.signal(signal.SIGINT, end)
open(os.environ["CALLS"] + "/ready" + os.environ["SLURM_NODEID"], "w").close()
time.sleep(3600)
'
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & done
wait
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && printf '%s\\n' first second
"""


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "fails"), [(2, 0), (3, 0), (2, 1)])
def test_the_job(nodes: int, fails: int, tmp_path: Path) -> None:
    """The first node serves and gets the load, the others are asked to end after it; then all is analysed."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    for place in (folder, calls):
        place.mkdir()
    for name, text in {"nvtxmoe": NVTXMOE, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / "moe.sbatch").write_text(named("job"))
    (tmp_path / "node.sh").write_text(named("node"))
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x", "SLURM_NNODES": str(nodes), "FAILS": str(fails),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "moe.sbatch"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "moe-7"
    serve = f"-- vllm serve MODEL --tensor-parallel-size 16 --nnodes {nodes} --node-rank"

    def said(node: int | str) -> list[str]:
        return (calls / f"node{node}").read_text().splitlines()

    assert said(0) == [
        f"nvtxmoe profile --num-requests 100 --no-analyze -o {out}/node0 {serve} 0 --master-addr first",
        f"nvtxmoe inspect {out}/node0/report.nsys-rep",
    ]
    for node in range(1, nodes):
        assert said(node) == [
            f"nvtxmoe profile --no-analyze -o {out}/node{node} {serve} {node} --master-addr first --headless",
            "asked to end",
            f"nvtxmoe inspect {out}/node{node}/report.nsys-rep",
        ]
    assert said("job") == [f"nvtxmoe analyze {out}/node*/report.nvtxmoe.sqlite -o {out}"]


# Claims ---------------------------------------------------------------------------------------------------------------


def test_one_session_for_all_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is named is taken as it is; journals of two nodes merge, also of one process id."""
    folder = tmp_path / "run" / "session"
    monkeypatch.setenv(SESSION_DIR, str(folder))
    assert session_dir(tmp_path / "elsewhere") == folder
    assert not (tmp_path / "elsewhere").exists()
    for rank in (0, 1):
        journal(folder, [meta(rank=rank, world_size=2), *step_of(0, rank)], rank=rank, pid=100)
    assert command("merge", folder).code == 0
    assert (folder / "moe_expert_tracking" / "moe_summary.json").exists()
    journal(folder, [meta(rank=1, world_size=2), *step_of(0, 1)], rank=1, pid=300)
    assert "two processes say they are rank 1" in command("merge", folder).err


def test_names_of_reports(nsys_path: Path, tmp_path: Path) -> None:
    """nsys itself puts the variable and the host into the name."""
    name = re.search(r'-o "\$OUT/([^"]+)" python', named("hand"))
    assert name is not None
    environment = {**os.environ, "SLURM_NODEID": "3", "SLURM_PROCID": "12"}
    python = shutil.which("python3")
    assert python is not None
    profile_nvtx(nsys_path, tmp_path / name[1], [python, "-c", ""], env=environment)
    (report,) = tmp_path.glob("*.nsys-rep")
    assert report.name == f"node3-rank12-{os.uname().nodename.split('.')[0]}.nsys-rep"


def test_rays_options_are_those_of_nsys(nsys_path: Path) -> None:
    """Ray writes ``-k value`` of a key of one letter and ``--key=value`` of longer ones."""
    assignment = ast.parse(named("actor")).body[0]
    assert isinstance(assignment, ast.Assign)
    options: dict[str, str] = ast.literal_eval(assignment.value)
    help_text = run_nsys(nsys_path, "profile", "--help").stdout
    assert "nvtx" in options["t"]
    for key in options:
        assert re.search(rf"^\s*(-{key}, --|--{key}=)" if len(key) == 1 else rf"--{key}=", help_text, re.MULTILINE), key
