"""Wrapping functions of a program that must go on whatever happens here.

A hook that raises is switched off with one warning; the wrapped function runs all the same, with its own result and its
own exceptions. Every hook is in ``REGISTRY`` by name, and ``unhook_all`` puts the originals back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvtxmoe.capture.log import logger

#: Marks a wrapper, so that nothing is wrapped twice.
MARK = "__nvtxmoe_hook__"


def nothing(*_: Any, **__: Any) -> None:
    """Do nothing: where a hook has this, it is not called."""


def _no_ranges() -> int:
    return 0


@dataclass
class Hook:
    """What happens around a function.

    Attributes:
        enter: called with the function's arguments; what it returns goes to ``leave`` and ``abandon``.
        leave: called with that and the result.
        abandon: called with that where the function raised.
        depth, unwind: how deep the thread's ranges are, and how to get back there after a failure in here.
        failure: why the hook is off; None while it is on.
    """

    name: str
    enter: Callable[..., Any] = nothing
    leave: Callable[[Any, Any], None] = nothing
    abandon: Callable[[Any], None] = nothing
    depth: Callable[[], int] = _no_ranges
    unwind: Callable[[int], None] = nothing
    failure: str | None = field(default=None)

    def fail(self, error: BaseException, depth: int) -> None:
        """Switch the hook off, with one warning."""
        if self.failure is None:
            self.failure = f"{type(error).__name__}: {error}"
            FAILED.append(self.name)
            logger().warning(
                "hook %r failed and is off from here on (%s); the model runs on, records may be incomplete",
                self.name,
                self.failure,
            )
        try:
            self.unwind(depth)
        except Exception:  # serving is sacred
            logger().debug("unwinding after %r failed", self.name, exc_info=True)


REGISTRY: dict[str, Hook] = {}
#: Hooks that were switched off in this process, in their order: its length changes when ``failures`` does.
FAILED: list[str] = []
_undo: list[Callable[[], None]] = []


def registered(hook: Hook) -> Hook:
    """Put a hook into the registry; a name is taken once."""
    return REGISTRY.setdefault(hook.name, hook)


def wrap(owner: Any, attribute: str, hook: Hook, *, skip: Callable[[], bool] | None = None) -> bool:
    """Put a hook around ``owner.attribute`` (of a class or of an instance).

    Parameters:
        skip: called first; where it is true the function runs bare (traced by a compiler, for one).

    Returns:
        Whether it was wrapped now; False when this hook is there already.
    """
    original = getattr(owner, attribute)
    if getattr(original, MARK, None) is hook:
        return False
    wrapper = (
        _bare_wrapper(original, hook) if skip is None else _skipping(original, _bare_wrapper(original, hook), skip)
    )
    setattr(wrapper, MARK, hook)
    put(owner, attribute, wrapper)
    return True


def listen(register: Callable[[Callable[..., None]], Any], hook: Hook) -> None:
    """Have a library that calls back call ``hook.enter``, so that ``unhook_all`` takes it back.

    Parameters:
        register: takes the callback, and returns a handle with ``remove``.
    """

    def call(*args: Any, **kwargs: Any) -> None:
        if hook.failure is None:
            try:
                hook.enter(*args, **kwargs)
            except Exception as error:  # fails open
                hook.fail(error, 0)

    _undo.append(register(call).remove)


def put(owner: Any, attribute: str, value: Any) -> None:
    """Set an attribute of a class, module or instance, so that ``unhook_all`` takes it back."""
    own_attribute = attribute in vars(owner)
    original = vars(owner).get(attribute)
    setattr(owner, attribute, value)

    def undo() -> None:
        if own_attribute:
            setattr(owner, attribute, original)
        else:
            delattr(owner, attribute)

    _undo.append(undo)


def _bare_wrapper(original: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if hook.failure is not None:
            return original(*args, **kwargs)
        depth, state, entered = 0, None, False
        try:
            if hook.depth is not _no_ranges:  # a call takes much longer than to look, in every step
                depth = hook.depth()
            if hook.enter is not nothing:
                state = hook.enter(*args, **kwargs)
            entered = True
        except Exception as error:  # fails open
            hook.fail(error, depth)
        try:
            result = original(*args, **kwargs)
        except BaseException:
            if entered:
                try:
                    hook.abandon(state)
                except Exception as error:  # fails open
                    hook.fail(error, depth)
            raise
        if entered and hook.leave is not nothing:
            try:
                hook.leave(state, result)
            except Exception as error:  # fails open
                hook.fail(error, depth)
        return result

    return wrapper


def _skipping(
    original: Callable[..., Any], wrapped: Callable[..., Any], skip: Callable[[], bool]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if skip():
            return original(*args, **kwargs)
        return wrapped(*args, **kwargs)

    return wrapper


def failures() -> dict[str, str]:
    """Hooks that are off, with the reason."""
    return {name: hook.failure for name, hook in REGISTRY.items() if hook.failure is not None}


def unhook_all() -> None:
    """Put every original back and forget the hooks."""
    while _undo:
        _undo.pop()()
    REGISTRY.clear()
