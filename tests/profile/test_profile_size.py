"""Room for a capture: the estimate of its size, its folder, and the disks."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nvtxmoe.capture.startup.settings import Settings
from nvtxmoe.profile import preflight
from nvtxmoe.profile.capture_size import LoadSize, Size, capture_size
from nvtxmoe.sizing.estimate import estimate
from nvtxmoe.sizing.model_config import model_shape
from scripts.make_tiny_model import write_model
from tests.support.cli import everything, refused, run
from tests.support.profile_plans import Usage, dry_run, executable, forget_settings, no_run
from tests.support.profile_runs import free_port


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


# Disk and folder


def test_no_room_for_the_results(tmp_path: Path, nsys: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 5_000_000))
    refused(
        no_run(tmp_path, "--nsys", nsys()),
        f"{tmp_path}: 5 MB are free on its disk, a capture needs at least 1,074 MB",
        "-o",
    )
    refused(no_run(tmp_path, "--mode", "moe"), "a capture needs at least 67 MB")


def test_no_room_for_temporary_files(
    tmp_path: Path, nsys: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nsys writes to the folder for temporary files first."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(preflight.tempfile, "gettempdir", lambda: str(temporary))  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 0 if Path(path) == temporary else 2**40))
    refused(no_run(tmp_path, "--nsys", nsys()), f"{temporary}: 0 MB are free", "TMPDIR")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_results_of_another_run_are_left_alone(what: str, tmp_path: Path, nsys: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "report.nsys-rep").write_text("mine")
    before = everything(tmp_path)
    ran = run("profile", "--nsys", nsys(), "-o", out, "--", sys.executable, "-c", "")
    refused(ran, f"{out}: it is there already, and not an empty folder. Give another with -o")
    assert {name: content for name, content in everything(tmp_path).items() if "nsys-of" not in name} == before


# The estimate


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "qwen3_moe", layers=4, experts=16, top_k=4)


def size(command: list[str], load: LoadSize | None, settings: Settings | None = None, mode: str = "nsys") -> Size:
    found = capture_size(command, settings or Settings(), mode=mode, payload="words", load=load)
    assert found is not None
    return found


def test_a_load_in_steps() -> None:
    load = LoadSize(num_requests=100, concurrency=16, prompt_tokens=64, max_tokens=64)
    assert (load.steps, load.tokens) == (7 * 64, 29)  # seven batches; 12,800 tokens over 448 steps


def test_the_estimate_is_of_the_model_the_load_and_the_settings(model: Path) -> None:
    serve, load = ["vllm", "serve", str(model)], LoadSize(100, 16, 64, 64)
    whole = size(serve, load)
    asked = estimate(model_shape(model) or pytest.fail("no shape"), tokens=29, steps=448, eager=False)
    assert whole.total_bytes == asked.disk(("nsys",), "words")[0]
    assert "(4 MoE layers, 16 experts, top-4); 448 steps for 100 requests: at least " in whole.line
    direct = size(serve, load, mode="moe").total_bytes
    assert direct == asked.disk(("moe",), "words")[0]
    assert size(serve, load, mode="both").total_bytes == asked.disk(("nsys", "moe"), "words")[0]
    assert (whole.total_bytes or 0) * 3.9 < (
        size([*serve, "-tp", "2", "--data-parallel-size=2"], load).total_bytes or 0
    )
    assert (size([*serve, "--enforce-eager"], load).total_bytes or 0) > (whole.total_bytes or 0)
    assert (size(serve, load, Settings(layers=frozenset({0}))).total_bytes or 0) < (whole.total_bytes or 0)
    module = ["python", "-m", "vllm.entrypoints.openai.api_server", f"--model={model}"]
    assert size(module, load).total_bytes == whole.total_bytes


def test_without_a_load_the_estimate_is_a_step(model: Path) -> None:
    found = size(["vllm", "serve", str(model)], None)
    assert found.total_bytes is None
    assert re.fullmatch(r"estimate: at least [\d.]+ kB a step of 32 tokens \(4 MoE layers, .*\)", found.line)


def test_a_model_in_the_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert capture_size(["vllm", "serve", "Org/Name"], Settings(), mode="moe", payload=None, load=None) is None
    snapshot = tmp_path / "hf" / "hub" / "models--Org--Name" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    assert "16 experts" in size(["vllm", "serve", "Org/Name"], None).line
    assert capture_size(["python", "offline.py"], Settings(), mode="moe", payload=None, load=None) is None


def test_the_estimate_is_shown_and_its_room_is_needed(
    model: Path, tmp_path: Path, nsys: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = executable(tmp_path / "vllm", f"#!{sys.executable}", f"open({str(tmp_path / 'ran')!r}, 'w')")
    command = ["--num-requests", 100_000_000, "--port", free_port(), "--", script, "serve", model]
    ran = dry_run("--nsys", nsys(), *command)
    found = re.search(r"^# estimate: .* 100,000,000 requests: at least ([\d,.]+) GB$", ran.out, re.MULTILINE)
    assert found is not None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**50, 0, 2 * preflight.LEAST_FREE_BYTES))
    refused(
        run("profile", "-o", tmp_path / "out", "--nsys", nsys(), *command),
        "2,147 MB are free on its disk, a capture needs at least ",
    )
    assert not (tmp_path / "ran").exists()
