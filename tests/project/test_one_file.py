"""A new output, check, chart, finding, command, adapter or examination of the doctor is one new file, and no edit.

The packages are copied, one file of each kind is added to the copy, and programs run with the copy on their path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import fakes
from tests.support.constructed_runs import simple
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
OUTPUT = '''
"""moe_one_more: a table and a document of a new output."""
import polars as pl
from nvtxmoe_analysis.outputs.spec import INTEGER, TEXT, Column, Document, Table
TABLE = Table(
    name="one_more", stem="moe_one_more", order=55, meaning="layers",
    columns=(Column("layer_idx", INTEGER), Column("word", TEXT, "its name")),
    whole=("layer_idx",),
)
DOCUMENT = Document(name="one_more_document", stem="moe_one_more", order=15, meaning="layers")
def build(results):
    layers = sorted(results.totals)
    return pl.DataFrame({"layer_idx": layers, "word": [f"layer {n}" for n in layers]}, schema=TABLE.types)
def document(results):
    return {"layers": len(results.totals)}
'''
CHECK = '''
"""A new check."""
from nvtxmoe_analysis.checks.check import passed
ORDER, EXPORTS_ONLY = 125, False
def check(results):
    return passed("one_more", "One more look at the capture.", steps=len(results.steps))
'''
CHART = '''
"""A new chart."""
import altair as alt
from nvtxmoe_analysis.report.chart import TIME, Drawing, Table
TITLE, SECTION, ORDER = "One more chart", TIME, 15
def build(source):
    frame = source.frame("one_more")
    chart = alt.Chart(alt.NamedData(name="d")).mark_point().encode(x="layer_idx:Q")
    return Drawing(chart, {"d": frame}, "A caption.", "A point.", Table(("layer_idx",), [["0"]]))
'''
FINDING = '''
"""A new finding."""
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.sentences import sentence
ID, ORDER, MEANING = "one-more", 45, "One more."
def find(ledger):
    return [Finding("One more", sentence("One more finding of {} layers.", len(ledger.source.frame("one_more"))))]
'''
COMMAND = '''
"""One more verb."""
from nvtxmoe.commands._common import command
from nvtxmoe.printing.console import stdout
@command("one-more", "nvtxmoe one-more")
def one_more():
    """Say that it ran."""
    stdout().print("one more ran")
'''
ADAPTER = '''
"""A new adapter."""
from nvtxmoe.capture.vllm.requirements import Need
NAME, VERSIONS, ORDER = "one_more", "0.40 to 0.41", 5
NEEDS = (Need("vllm.one_more", "Layer.forward", ("x",)),)
def install(capture):
    raise NotImplementedError
'''
EXAMINATION = '''
"""A new examination."""
from nvtxmoe.doctor.diagnosis import NOTE, Finding
ORDER = 15
def diagnose(context):
    yield Finding("one more", NOTE, f"looked at {context.installed.path}")
'''
FILES = {
    "analysis/nvtxmoe_analysis/outputs/one_more.py": OUTPUT,
    "analysis/nvtxmoe_analysis/checks/one_more.py": CHECK,
    "analysis/nvtxmoe_analysis/report/charts/one_more.py": CHART,
    "analysis/nvtxmoe_analysis/report/findings/one_more.py": FINDING,
    "nvtxmoe/commands/one_more.py": COMMAND,
    "nvtxmoe/capture/vllm/adapters/one_more.py": ADAPTER,
    "nvtxmoe/doctor/examinations/one_more.py": EXAMINATION,
}


class Copy:
    """A copy of the packages with one file more of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package in ("nvtxmoe", "analysis/nvtxmoe_analysis"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, text in FILES.items():
            assert not (folder / name).exists()
            (folder / name).write_text(text.lstrip())

    def python(self, *arguments: str | Path, path: tuple[Path, ...] = (), check: bool = True, **environ: str) -> str:
        """What Python prints that imports the copy, run in its folder."""
        done = subprocess.run(
            [sys.executable, *arguments],
            env=fakes.environment(self.folder, self.folder / "analysis", *path, **environ),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def results(self, name: str) -> Any:
        """A JSON document of the analysis."""
        return json.loads((self.folder / "out" / "moe_expert_tracking" / name).read_text())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def analyzed(copy: Copy) -> Copy:
    """The copy after it analysed a small capture, with a report."""
    simple().save(copy.folder / "small.sqlite")
    copy.python("-m", "nvtxmoe", "analyze", "small.sqlite", "-o", "out", "--report")
    return copy


def test_the_copy_is_what_is_imported(copy: Copy) -> None:
    found = copy.python("-c", "import nvtxmoe, nvtxmoe_analysis as a; print(nvtxmoe.__file__, a.__file__, sep='\\n')")
    assert all(Path(line).is_relative_to(copy.folder) for line in found.splitlines())


def test_an_output(analyzed: Copy) -> None:
    folder = analyzed.folder / "out" / "moe_expert_tracking"
    lines = (folder / "moe_one_more.csv").read_text().splitlines()
    assert lines[:2] == ["layer_idx,word", "0,layer 0"]
    assert analyzed.results("moe_one_more.json") == {"layers": len(lines) - 1}
    program = (
        "from nvtxmoe_analysis import load; found = load('out'); "
        "print(found.one_more.row(0), found.one_more_document['layers'], 'one_more' in dir(found), found)"
    )
    shown = analyzed.python("-c", program)
    assert shown.startswith(f"(0, 'layer 0') {len(lines) - 1} True Results(")
    assert ", step_activations, one_more, balance_metrics, " in shown


def test_a_check(analyzed: Copy) -> None:
    names = [check["name"] for check in analyzed.results("moe_capture_validation.json")["checks"]]
    assert names[names.index("one_more") - 1] == "counts_sum"
    assert analyzed.results("moe_capture_validation.json")["checks"][names.index("one_more")]["status"] == "pass"


def test_a_chart_and_a_finding(analyzed: Copy) -> None:
    page = (analyzed.folder / "out" / "report.html").read_text()
    assert "One more chart" in page
    assert "A caption." in page
    rows = len((analyzed.folder / "out" / "moe_expert_tracking" / "moe_one_more.csv").read_text().splitlines()) - 1
    assert f"One more finding of {rows} layers." in page


def test_a_command(copy: Copy) -> None:
    shown = copy.python("-m", "nvtxmoe", "--help")
    assert "  one-more      One more verb.\n" in shown
    assert shown.index("  merge ") < shown.index("  one-more ") < shown.index("  profile ")
    assert copy.python("-m", "nvtxmoe", "one-more") == "one more ran\n"


def test_an_adapter_and_an_examination_of_the_doctor(copy: Copy, tmp_path: Path) -> None:
    fakes.vllm(tmp_path, "0.32.0", shape="runner_is_layer")
    command = ("-m", "nvtxmoe", "doctor", "--json", "--python", sys.executable)
    shown = copy.python(*command, path=(tmp_path,), check=False, PATH=os.devnull)
    findings = json.loads(shown)["findings"]
    topics = [one["topic"] for one in findings]
    assert topics[:4] == ["vLLM", "one more", "PyTorch", "adapter"]
    assert findings[1]["what"] == f"looked at {sys.executable}"
    assert findings[3]["details"]["lacking"]["one_more"][0].startswith("module vllm.one_more ")
    assert findings[3]["what"].startswith("adapter runner_is_layer ")
