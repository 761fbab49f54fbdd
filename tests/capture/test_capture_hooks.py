"""Wrapping functions: nothing that a hook does reaches the program, and everything can be taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nvtxmoe.capture import hooks
from nvtxmoe.capture.hooks import Hook, listen, put, registered, unhook_all, wrap
from nvtxmoe.capture.log import logger


class Program:
    """Something to hook."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, one: int, other: int = 1) -> int:
        """A method."""
        self.calls += 1
        if other < 0:
            raise ValueError("negative")
        return one + other


class Derived(Program):
    """Inherits it."""


@pytest.fixture(autouse=True)
def unhooked() -> Iterator[None]:
    """Every test begins and ends without hooks."""
    unhook_all()
    yield
    unhook_all()


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What was logged."""
    monkeypatch.setattr(logger(), "propagate", True)
    with caplog.at_level(logging.WARNING, "nvtxmoe"):
        yield caplog


def test_a_hook_sees_arguments_and_result() -> None:
    seen: list[Any] = []
    hook = Hook("h", lambda *a, **k: (a[1:], k), lambda state, result: seen.append((state, result)))
    assert wrap(Program, "add", registered(hook))
    assert Program().add(1, other=2) == 3
    assert seen == [(((1,), {"other": 2}), 3)]


def test_nothing_is_wrapped_twice() -> None:
    hook = registered(Hook("h"))
    assert wrap(Program, "add", hook)
    assert not wrap(Program, "add", hook)
    assert registered(Hook("h")) is hook


def test_the_programs_own_exception_passes() -> None:
    abandoned: list[Any] = []
    wrap(Program, "add", Hook("h", lambda *_, **__: "state", abandon=abandoned.append))
    with pytest.raises(ValueError, match="negative"):
        Program().add(1, -1)
    assert abandoned == ["state"]


@pytest.mark.parametrize("where", ["enter", "leave", "abandon", "depth", "unwind"])
def test_a_hook_that_raises_is_off_with_one_warning(where: str, heard: pytest.LogCaptureFixture) -> None:
    def boom(*_: Any, **__: Any) -> Any:
        raise RuntimeError("boom")

    hook = registered(Hook("fragile"))
    wrap(Program, "add", hook)
    setattr(hook, where, boom)
    if where == "unwind":
        hook.enter = boom
    program = Program()
    if where == "abandon":
        with pytest.raises(ValueError, match="negative"):
            program.add(1, -1)
    assert [program.add(n) for n in range(3)] == [1, 2, 3]
    assert program.calls == (4 if where == "abandon" else 3)
    assert len(heard.messages) == 1
    assert "'fragile' failed and is off" in heard.messages[0]
    assert "RuntimeError: boom" in heard.messages[0]
    assert hooks.failures() == {"fragile": "RuntimeError: boom"}


def test_ranges_that_a_failing_hook_left_open_are_closed() -> None:
    depth = [0]

    def enter(*_: Any, **__: Any) -> None:
        depth[0] += 2
        raise RuntimeError("after pushing two ranges")

    def unwind(to: int) -> None:
        depth[0] = to

    wrap(Program, "add", Hook("h", enter, depth=lambda: depth[0], unwind=unwind))
    assert Program().add(1) == 2
    assert depth == [0]


def test_interrupts_are_the_programs() -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    wrap(Program, "add", Hook("h", stop))
    with pytest.raises(KeyboardInterrupt):
        Program().add(1)


def test_skip_runs_bare() -> None:
    seen: list[int] = []
    skip = [True]
    wrap(Program, "add", Hook("h", lambda *_, **__: seen.append(1)), skip=lambda: skip[0])
    assert Program().add(1) == 2
    skip[0] = False
    assert Program().add(1) == 2
    assert seen == [1]


def test_unhooking_puts_everything_back() -> None:
    own, instance = vars(Program)["add"], Program()
    wrap(Program, "add", Hook("class"))
    wrap(Derived, "add", Hook("inherited"))
    wrap(instance, "add", Hook("instance"))
    put(Program, "new", 1)
    assert instance.add(2) == Derived().add(2) == 3
    unhook_all()
    assert vars(Program)["add"] is own
    assert "add" not in vars(Derived)
    assert "add" not in vars(instance)
    assert not hasattr(Program, "new")
    assert hooks.REGISTRY == {}


class Callbacks:
    """A library that calls back."""

    def __init__(self) -> None:
        self.registered: list[Callable[..., None]] = []

    def register(self, callback: Callable[..., None]) -> Any:
        self.registered.append(callback)
        return SimpleNamespace(remove=lambda: self.registered.remove(callback))


def test_a_callback_that_raises_is_off_with_one_warning_and_can_be_taken_back(heard: pytest.LogCaptureFixture) -> None:
    library, seen = Callbacks(), list[int]()

    def enter(value: int) -> None:
        seen.append(value)
        if value == 1:
            raise RuntimeError("boom")

    listen(library.register, registered(Hook("called back", enter)))
    (callback,) = library.registered
    for value in range(3):
        callback(value)
    assert seen == [0, 1]
    assert hooks.failures() == {"called back": "RuntimeError: boom"}
    assert len(heard.messages) == 1
    unhook_all()
    assert library.registered == []
