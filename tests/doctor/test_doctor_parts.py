"""Parts of `nvtxmoe doctor`: the ways in, nsys with nvtx, settings, the machine, the estimate."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nvtxmoe.cli import run
from nvtxmoe.doctor import nsys as profiler
from nvtxmoe.doctor import settings
from nvtxmoe.doctor.bytes_text import human
from nvtxmoe.doctor.diagnosis import Finding
from nvtxmoe.doctor.examinations.disk_space import disk
from nvtxmoe.doctor.examinations.gpu import gpu
from nvtxmoe.doctor.examinations.nvtx_package import nvtx
from nvtxmoe.doctor.examinations.ways_in import ways_in
from nvtxmoe.doctor.examine import examine
from nvtxmoe.doctor.probe import Installed, installed
from tests.support import fakes
from tests.support.nsys_runs import again, failed_by_itself
from tests.support.paths import ROOT

SITE = ROOT / "nvtxmoe" / "site"
HERE = Path(sys.executable)
BARE = Installed(
    path=HERE, python="3.11.7", versions={"vllm": "0.32.0", "nvtx": "0.2.11"}, vllm="/x/vllm/__init__.py",
    nvtx="/x/nvtx/__init__.py", nvtxmoe=None, sitecustomize=None, plugins=(),
)  # fmt: skip
PLUGGED = replace(BARE, plugins=("nvtxmoe", "other"))
BY_PATH = str(SITE / "sitecustomize.py")


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.topic, one.level) for one in findings]


# The ways in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "environ", "expected"),
    [
        (PLUGGED, {}, [("plugin", "ok")]),
        (PLUGGED, {"VLLM_PLUGINS": "other,nvtxmoe"}, [("plugin", "ok")]),
        (PLUGGED, {"VLLM_PLUGINS": "other"}, [("plugin", "note")]),
        (PLUGGED, {"VLLM_PLUGINS": "other, nvtxmoe"}, [("plugin", "note")]),  # vLLM strips nothing
        (PLUGGED, {"VLLM_PLUGINS": ""}, [("plugin", "note")]),
        (replace(PLUGGED, sitecustomize=BY_PATH), {}, [("plugin", "ok"), ("PYTHONPATH", "ok")]),
        (
            replace(PLUGGED, sitecustomize=BY_PATH),
            {"VLLM_PLUGINS": "other"},
            [("plugin", "note"), ("PYTHONPATH", "ok")],
        ),
        (replace(BARE, sitecustomize=BY_PATH), {}, [("PYTHONPATH", "ok")]),
        (BARE, {}, [("plugin", "note")]),
        (replace(BARE, sitecustomize="/usr/lib/python3/sitecustomize.py"), {}, [("plugin", "note")]),
        (
            replace(PLUGGED, sitecustomize="/first/sitecustomize.py"),
            {"PYTHONPATH": f"/first:{SITE}"},
            [("plugin", "ok"), ("PYTHONPATH", "ok")],  # vLLM finds the plugin beside nvtxmoe's sitecustomize
        ),
        (
            replace(PLUGGED, sitecustomize="/first/sitecustomize.py"),
            {"PYTHONPATH": f"/first:{SITE}", "VLLM_PLUGINS": "other"},
            [("plugin", "note"), ("PYTHONPATH", "note")],
        ),
        (replace(BARE, vllm=None), {}, []),
    ],
)
def test_ways_in(found: Installed, environ: Mapping[str, str], expected: list[tuple[str, str]]) -> None:
    assert told(list(ways_in(found, environ))) == expected


def test_what_to_do_about_ways_in() -> None:
    def remedy(found: Installed, **environ: str) -> str:
        (one,) = ways_in(found, environ)
        return one.remedy or ""

    assert remedy(PLUGGED, VLLM_PLUGINS="other").startswith("export VLLM_PLUGINS=other,nvtxmoe,")
    assert remedy(PLUGGED, VLLM_PLUGINS="").startswith("export VLLM_PLUGINS=nvtxmoe,")
    assert remedy(BARE).endswith(f"{HERE} -m pip install . in a clone of nvtxmoe, or export PYTHONPATH={SITE}")


def test_the_plugin_and_the_path_as_python_sees_them(tmp_path: Path) -> None:
    fakes.distribution(
        tmp_path, "some-plugins", "1.0", "[vllm.general_plugins]\nnvtxmoe = a.b:c\nmine = d:e\n"
    )  # fmt: skip
    found = installed(HERE, fakes.environment(tmp_path, SITE))
    assert {"mine", "nvtxmoe"} <= set(found.plugins)
    assert found.sitecustomize == BY_PATH
    (tmp_path / "sitecustomize.py").write_text("")
    assert installed(HERE, fakes.environment(tmp_path, SITE)).sitecustomize == str(tmp_path / "sitecustomize.py")


@pytest.mark.parametrize("found", [replace(BARE, nvtx=None), replace(BARE, versions={"vllm": "0.32.0"})])
def test_no_nvtx(found: Installed) -> None:
    (one,) = nvtx(found)
    assert (one.level, one.remedy) == ("problem", f"Run {HERE} -m pip install nvtx")
    assert told(list(nvtx(replace(found, vllm=None)))) == [("nvtx", "note")]


# nsys ----------------------------------------------------------------------------------------------------------------


def under(nsys: Path | None, *folders: Path, requested: str = "auto", needed: bool = True) -> profiler.UnderNsys:
    environ = fakes.environment(*folders)

    def attempt() -> profiler.UnderNsys:
        result = profiler.profiler(installed(HERE, environ), nsys, requested, needed, environ)
        assert not any(failed_by_itself(one.what) for one in result.findings), result.findings
        return result

    return again(attempt)


def test_the_real_nsys_records_the_real_nvtx(nsys_path: Path) -> None:
    result = under(nsys_path)
    assert told(result.findings) == [("nsys", "ok"), ("recording", "ok"), ("payloads", "ok")]
    assert result.encoding == "words"
    assert result.version is not None
    assert result.version.startswith("2023.4")
    assert under(nsys_path, requested="binary").encoding == "words"


@pytest.mark.parametrize("version", ["0.2.12", "0.2.17"])
def test_the_real_nsys_and_an_nvtx_that_it_does_not_record(version: str, nsys_path: Path, tmp_path: Path) -> None:
    """A newer nvtx emits nothing there; the stand-in does the same."""
    fakes.package(tmp_path, "nvtx", version, "def mark(*_, **__): ...\n")
    result = under(nsys_path, tmp_path)
    assert told(result.findings) == [("nsys", "ok"), ("recording", "problem")]
    assert f"records nothing of nvtx {version}" in result.findings[1].what
    assert result.findings[1].remedy == f"Run {HERE} -m pip install nvtx==0.2.11, or use an nsys of 2025"
    assert result.encoding is None
    assert told(under(nsys_path, tmp_path, needed=False).findings)[1] == ("recording", "note")


def test_marks_that_get_lost(nsys_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "MARKS", 21)  # of which the program emits 20
    (_, recording) = under(nsys_path).findings
    assert recording.level == "problem"
    assert recording.what.endswith("nvtx 0.2.11: 20 of 21 marks were recorded")


NSYS = """
case "$1" in
--version) echo "NVIDIA Nsight Systems version {version}";;
export) echo "{help}";;
profile) {profile};;
esac
"""


def nsys(folder: Path, version: str = "2025.3.1.90-1v0", knows: str = "", profile: str = "exit 0") -> Path:
    return fakes.executable(folder / "nsys", NSYS.format(version=version, help=knows, profile=profile))


def test_an_nsys_that_is_too_old(tmp_path: Path) -> None:
    result = under(nsys(tmp_path, "2022.4.2.1-df9881f"))
    assert told(result.findings) == [("nsys", "problem")]
    assert result.findings[0].what.startswith("nsys 2022.4.2.1-df9881f is too old")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo starting; echo no permission; exit 1", "nsys profile ended with status 1 and said: no permission"),
        ("exit 0", "nsys profile ended with status 0 and said: it said nothing"),
    ],
)
def test_an_nsys_that_cannot_profile(script: str, said: str, tmp_path: Path) -> None:
    result = under(nsys(tmp_path, profile=script))
    assert told(result.findings) == [("nsys", "ok"), ("recording", "problem")]
    assert result.findings[1].what == f"a trial capture failed: {said}"


def test_an_nsys_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "TRY_TIMEOUT_S", 0.5)
    assert "did not end within 0.5 s" in under(nsys(tmp_path, profile="exec sleep 60")).findings[1].what


def trial(monkeypatch: pytest.MonkeyPatch, tried: profiler.Tried) -> None:
    monkeypatch.setattr(profiler, "try_out", lambda *_: tried)


def test_a_stack_that_carries_binary_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial stands in: no nsys that carries them runs here."""
    fakes.package(tmp_path, "nvtx", "0.2.15", "")
    knows = nsys(tmp_path, knows="--include-blobs=")
    trial(monkeypatch, profiler.Tried(20, True))
    assert under(knows, tmp_path).encoding == "binary"
    assert under(knows, tmp_path, requested="words").encoding == "words"
    trial(monkeypatch, profiler.Tried(20, False))
    result = under(knows, tmp_path)
    assert told(result.findings) == [("nsys", "ok"), ("recording", "problem")]
    assert result.findings[1].remedy == "Set NVTXMOE_PAYLOAD=words"


def test_binary_payloads_that_this_nsys_would_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.package(tmp_path, "nvtx", "0.2.15", "")
    trial(monkeypatch, profiler.Tried(20, False))
    old = nsys(tmp_path)
    asked = under(old, tmp_path, requested="binary").findings[2]
    assert (asked.level, asked.remedy) == ("problem", "Set NVTXMOE_PAYLOAD=words, or use an nsys of 2025")
    assert under(old, tmp_path).encoding == "words"


@pytest.mark.parametrize(
    ("mode", "level"), [("auto", "note"), ("moe", "note"), ("nsys", "problem"), ("both", "problem")]
)
def test_no_nsys_matters_where_the_mode_needs_it(mode: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    findings = examine(fakes.environment(NVTXMOE_MODE=mode), python=HERE)
    (found,) = (one for one in findings if one.topic == "nsys")
    assert found.level == level
    assert ("need none" in found.what) == (level == "note")


def test_the_nsys_that_was_asked_for_matters(tmp_path: Path) -> None:
    findings = examine(fakes.environment(), python=HERE, nsys=tmp_path / "nsys")
    assert ("nsys", "problem") in told(findings)


# Settings ------------------------------------------------------------------------------------------------------------


def test_settings_and_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "nvtxmoe.toml"
    file.write_text('log_interval = 7\nlayers = "0-3"\nflush_interval = 2\n')
    environ = {"NVTXMOE_CONFIG": str(file), "NVTXMOE_ENABLE": "1", "NVTXMOE_LAYERS": "5", "VLLM_PROFILING_VERBOSE": "1"}
    loaded, (one,) = settings.settings(environ)
    assert loaded.log_interval == 7
    sources = {name: (row["value"], row["source"]) for name, row in one.details.items()}
    assert sources["log_interval"] == ("7", str(file))
    assert sources["layers"] == ("5", "NVTXMOE_LAYERS")
    assert sources["verbose"] == ("1", "VLLM_PROFILING_VERBOSE")
    assert sources["flush_interval"] == ("2", str(file))
    assert sources["emit"] == ("counts,physical,ranges,topk", "default")
    assert sources["mode"] == ("auto", "default")
    assert "layers=5 (NVTXMOE_LAYERS)" in one.what


@pytest.mark.parametrize(
    ("environ", "what", "remedy"),
    [
        ({"NVTXMOE_MODE": "cuda"}, "NVTXMOE_MODE: 'cuda' is not accepted", "Give one of auto, nsys, moe, both, live"),
        ({"NVTXMOE_CONFIG": "/nowhere/x.toml"}, "names a file that can't be read", "Name one that is there"),
    ],
)
def test_settings_that_are_wrong(environ: dict[str, str], what: str, remedy: str) -> None:
    _, (one,) = settings.settings(environ)
    assert one.level == "problem"
    assert what in one.what
    assert one.remedy == remedy


def test_variables_that_nothing_reads() -> None:
    _, findings = settings.settings({"NVTXMOE_ENABLE": "1", "NVTXMOE_LAYER": "3", "NVTXMOE_NSYS": "/x"})
    assert [(one.what, one.remedy) for one in findings[1:]] == [
        ("NVTXMOE_LAYER is no setting and is ignored", "Set NVTXMOE_LAYERS instead")
    ]


def test_capture_that_is_off_and_a_session_that_is_set() -> None:
    _, findings = settings.settings({"NVTXMOE_SESSION_DIR": "/tmp/s"})
    assert [one.level for one in findings] == ["ok", "note", "note"]
    assert "capture is off" in findings[1].what
    assert "unset NVTXMOE_SESSION_DIR" in (findings[2].remedy or "")


# The machine ---------------------------------------------------------------------------------------------------------

SMI = """
if [ "$1" = -L ]; then
    echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"; echo "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)"
else
    echo "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {cuda}   |"
fi
"""


@pytest.mark.parametrize(
    ("cuda", "version", "levels"),
    [
        ("12.4", "2023.4.4", ["ok"]), ("13.0", "2023.4.4", ["ok", "note"]), ("13.0", "2025.3.1", ["ok"]),
        ("13.0", None, ["ok"]),
    ],
)  # fmt: skip
def test_gpus(
    cuda: str, version: str | None, levels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.executable(tmp_path / "nvidia-smi", SMI.format(cuda=cuda))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    findings = list(gpu(version))
    assert [one.level for one in findings] == levels
    assert findings[0].what == f"2 x NVIDIA H100 80GB HBM3, driver for CUDA {cuda}"


@pytest.mark.parametrize("script", [None, "exit 9"])
def test_no_gpu(script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script:
        fakes.executable(tmp_path / "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert told(list(gpu("2025.3.1"))) == [("GPU", "note")]


class _Usage(NamedTuple):
    free: int


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2 << 30
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(free))
    (one,) = disk(tmp_path / "not" / "yet", True, 0)
    assert (one.level, one.details["free_bytes"]) == ("ok", free)
    assert not (tmp_path / "not").exists()
    (one,) = disk(tmp_path, True, free + 1)
    assert (one.level, one.what) == ("note", f"2.1 GB free in {tmp_path}, the estimate wants 2.1 GB")
    free = 1000
    (one,) = disk(tmp_path, True, 0)
    assert (one.level, one.what) == ("note", f"1.0 kB free in {tmp_path}")


@pytest.mark.parametrize(("needed", "level"), [(True, "problem"), (False, "note")])
def test_a_folder_that_cannot_be_made(needed: bool, level: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (one,) = disk(tmp_path / "file" / "sessions", needed, 0)
    assert one.level == level
    assert one.remedy == "Set NVTXMOE_OUTPUT_DIR to one that may"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (2.5e9, "2.5 GB"),
        (3.2e15, "3,200.0 TB"),
    ],
)
def test_bytes_for_people(size: float, text: str) -> None:
    assert human(size) == text


# The estimate --------------------------------------------------------------------------------------------------------

MIXTRAL = {"model_type": "mixtral", "num_hidden_layers": 32, "num_local_experts": 8, "num_experts_per_tok": 2}


def doctored(model: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    run(["doctor", "--json", "--model", str(model), *options])
    (one,) = (f for f in json.loads(capsys.readouterr().out)["findings"] if f["topic"] == "estimate")
    return dict(one)


def test_the_estimate_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    small = doctored(tmp_path, capsys, "--steps", "10")
    large = doctored(tmp_path / "config.json", capsys, "--steps", "1000", "--tokens", "512")
    assert "32 MoE layers, 8 experts, top-2. 10 eager steps of 32 tokens a rank: at least " in small["what"]
    assert small["details"]["binary"]["report"] is None
    assert large["details"]["journal"] > 100 * small["details"]["journal"]
    monkeypatch.setenv("NVTXMOE_LAYERS", "0-7")
    assert doctored(tmp_path, capsys, "--steps", "10")["details"]["journal"] < small["details"]["journal"] / 2


def test_no_estimate_of_an_unknown_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL | {"model_type": "llama"}))
    assert doctored(tmp_path, capsys)["level"] == "note"
