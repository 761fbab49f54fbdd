"""Faults of capture that docs/explanation/reliability.md lists are found by the doctor before a run, with the fix."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nvtxmoe import private_files
from nvtxmoe.capture.startup import session
from nvtxmoe.capture.startup.settings import SESSION_DIR, Settings
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import Finding
from nvtxmoe.doctor.examinations import live_metrics, merge_at_exit, session_folder
from nvtxmoe.doctor.probe import installed
from nvtxmoe.errors import NvtxmoeError

HERE = Path(sys.executable)


def looked_at(examination: object, **environ: str) -> list[Finding]:
    context = Context(environ={"PATH": "/nowhere", **environ}, python=HERE)
    return list(examination.diagnose(context))  # type: ignore[attr-defined]


# The folder of sessions ----------------------------------------------------------------------------------------------


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base folder that another user made first, where anybody may."""
    parent = tmp_path / "tmp"
    parent.mkdir()
    parent.chmod(0o1777)
    (parent / "sessions").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(private_files, "_ROOT", -1)
    return parent / "sessions"


def test_a_base_folder_of_another_user(taken: Path) -> None:
    with pytest.raises(NvtxmoeError, match="belongs to another user") as fault:
        session.session_dir(taken)
    (found,) = looked_at(session_folder, NVTXMOE_OUTPUT_DIR=str(taken), NVTXMOE_MODE="moe")
    assert found.level == "problem"
    assert fault.value.what in found.what
    assert found.remedy == fault.value.remedy == "Name another folder with NVTXMOE_OUTPUT_DIR"


def test_a_link_of_another_user(taken: Path, tmp_path: Path) -> None:
    (taken.parent / "link").symlink_to(tmp_path)
    (found,) = looked_at(session_folder, NVTXMOE_OUTPUT_DIR=str(taken.parent / "link"), NVTXMOE_MODE="moe")
    assert "belongs to another user" in found.what


def test_a_base_folder_of_ones_own_or_none(tmp_path: Path) -> None:
    assert looked_at(session_folder, NVTXMOE_OUTPUT_DIR=str(tmp_path), NVTXMOE_MODE="moe") == []
    assert looked_at(session_folder, NVTXMOE_OUTPUT_DIR=str(tmp_path / "not" / "yet"), NVTXMOE_MODE="moe") == []
    assert not (tmp_path / "not").exists()


def test_a_session_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = looked_at(session_folder, NVTXMOE_MODE="moe", **{SESSION_DIR: str(tmp_path / "file" / "session")})
    assert found.level == "problem"
    assert f"{tmp_path / 'file'} is not a folder" in found.what
    assert found.remedy == f"unset {SESSION_DIR}, or name a folder that may be written to"
    assert looked_at(session_folder, NVTXMOE_MODE="live", **{SESSION_DIR: str(tmp_path / "file")}) == []


# The merge at the end ------------------------------------------------------------------------------------------------


def test_a_python_without_what_the_merge_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python is a real one without site-packages; the run itself then names the same modules."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {HERE} -S -I "$@"\n')
    bare.chmod(0o755)
    found = installed(bare, {"PATH": "/nowhere"})
    assert "polars" in found.merge_lacks
    (finding,) = merge_at_exit.merge(replace(found, vllm="/x/vllm/__init__.py"))
    assert finding.level == "note"
    assert "leaves its journals unmerged" in finding.what
    assert f"{bare} -m pip install " in (finding.remedy or "")
    monkeypatch.setattr(session, "find_spec", lambda name: None if name in found.merge_lacks else object())
    session._merge(tmp_path)
    assert f"{', '.join(found.merge_lacks)} not installed here" in capsys.readouterr().err


def test_a_python_with_all_of_it() -> None:
    assert list(merge_at_exit.merge(replace(installed(HERE, os.environ), vllm="/x/vllm/__init__.py"))) == []


# Live metrics --------------------------------------------------------------------------------------------------------


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use(busy_port: int) -> None:
    found = replace(installed(HERE, os.environ), prometheus_client=True)
    (finding,) = live_metrics.live_metrics(found, Settings(metrics=True, metrics_port=busy_port))
    assert finding.level == "note"
    assert finding.what.startswith(f"127.0.0.1:{busy_port}: ")
    assert "NVTXMOE_METRICS_PORT" in (finding.remedy or "")


@pytest.mark.parametrize(("mode", "level"), [("auto", "note"), ("live", "problem")])
def test_no_prometheus_client(mode: str, level: str) -> None:
    found = replace(installed(HERE, os.environ), prometheus_client=False)
    (finding,) = live_metrics.live_metrics(found, Settings(metrics=True, mode=mode))
    assert (finding.level, finding.remedy) == (level, f"Run {HERE} -m pip install prometheus_client")


def test_a_layer_model_that_is_none(tmp_path: Path, busy_port: int) -> None:
    (tmp_path / "model.json").write_text("[]")
    found = replace(installed(HERE, os.environ), prometheus_client=True)
    asked = Settings(metrics=True, metrics_port=busy_port, metrics_model=str(tmp_path / "model.json"))
    finding = list(live_metrics.live_metrics(found, asked))[-1]
    assert "no estimate of the time lost to imbalance" in finding.what


def test_metrics_that_are_off() -> None:
    assert looked_at(live_metrics) == []
