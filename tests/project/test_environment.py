"""A test's environment ends with it: the order of tests, which differs from run to run, must not matter."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import pytest

from nvtxmoe.capture.startup import session
from nvtxmoe.capture.startup.settings import SESSION_DIR


@pytest.mark.parametrize("run", range(2))
def test_a_session_of_an_earlier_test_is_not_inherited(
    run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process hands its choice to its children in the environment; the second run would take the first one's."""
    monkeypatch.setattr(weakref, "finalize", lambda *_: None)
    assert session.session_dir(tmp_path / str(run)).parent == tmp_path / str(run)
    os.environ["NVTXMOE_LEFT"] = str(run)


def test_settings_of_the_shell_are_not_inherited() -> None:
    names = [name for name in os.environ if name.startswith("NVTXMOE_") and not name.startswith("NVTXMOE_TEST_")]
    assert names == []
    assert SESSION_DIR not in os.environ
