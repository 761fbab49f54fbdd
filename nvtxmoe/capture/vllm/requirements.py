"""What an adapter needs of vLLM, as data: checked on the installed modules, and by a script on published source."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nvtxmoe.nsys_compatibility import version_numbers


@dataclass(frozen=True)
class Need:
    """A name in a module, and parameters that it must have.

    Attributes:
        module: dotted name of the module.
        qualname: dotted name in it, as ``MoERunner._forward_impl``; it may be inherited.
        parameters: names that must be among the callable's parameters.
    """

    module: str
    qualname: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}" + (f"({', '.join(self.parameters)})" if self.parameters else "")


@dataclass(frozen=True)
class OptionalHook:
    """What capture uses where it is there; a vLLM without it fits an adapter all the same.

    Attributes:
        since: the first release that has it, as checked: ``0.33``.
    """

    since: str
    needs: tuple[Need, ...]

    def expected_in(self, version: str) -> bool:
        """Whether a release should have it, by ``since``."""
        return version_numbers(version)[:2] >= version_numbers(self.since)


def missing(needs: Iterable[Need]) -> list[str]:
    """The needs that the installed vLLM does not meet, each as a clause."""
    return list(dict.fromkeys(clause for need in needs if (clause := _unmet(need)) is not None))


def _unmet(need: Need) -> str | None:
    try:
        target: Any = import_module(need.module)
    except ImportError as error:
        return f"module {need.module} ({error})"
    for name in need.qualname.split("."):
        target = getattr(target, name, None)
        if target is None:
            return str(need)
    has = set() if not need.parameters else set(inspect.signature(target).parameters)
    missing_parameters = [name for name in need.parameters if name not in has]
    return (
        f"{need.module}.{need.qualname} has no parameter {', '.join(missing_parameters)}"
        if missing_parameters
        else None
    )
