"""Being told when a module has been imported, without importing it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nvtxmoe.capture.log import logger


class _Finder(MetaPathFinder):
    """Finds watched modules as the other finders do, and has its callback called after they were executed."""

    def __init__(self) -> None:
        self.watched: dict[str, Callable[[], None]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a watched module, with a loader that calls back; None for any other module."""
        if fullname not in self.watched:
            return None
        for finder in list(sys.meta_path):  # the others, in their order: nothing calls back into this one
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Calling(spec.loader, fullname, self.watched)
                return spec
        return None


class _Calling(Loader):
    """A loader that is another one in everything, and calls back once."""

    def __init__(self, inner: Any, name: str, watched: dict[str, Callable[[], None]]) -> None:
        self._inner = inner
        self._name = name
        self._watched = watched

    def __getattr__(self, name: str) -> Any:
        inner = vars(self).get("_inner")  # absent while an object is being made without __init__, as copies are
        if inner is None:
            raise AttributeError(name)
        return getattr(inner, name)

    def __copy__(self) -> _Calling:
        return _Calling(self._inner, self._name, self._watched)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Calling:
        return _Calling(copy.deepcopy(self._inner, memo), self._name, self._watched)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the inner loader: another process has its own watch."""
        return _itself, (self._inner,)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the inner loader."""
        created: ModuleType | None = self._inner.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Execute, put the inner loader back, call back."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        module.__loader__ = self._inner
        self._inner.exec_module(module)
        callback = self._watched.pop(self._name, None)  # a spec alone, or an import that raised, is no import
        if callback is not None:
            called(callback)


def _itself(loader: Any) -> Any:
    return loader


def called(callback: Callable[[], None]) -> None:
    """Call back; what goes wrong there is a warning, and the import goes on."""
    try:
        callback()
    except Exception:  # serving is sacred
        logger().warning("nothing is recorded in this process", exc_info=True)


_finder = _Finder()


def watch(module: str, callback: Callable[[], None]) -> None:
    """Call back after ``module`` was imported, or now when it is there already."""
    loaded = sys.modules.get(module)
    if loaded is not None and not getattr(loaded.__spec__, "_initializing", False):
        called(callback)
        return
    _finder.watched[module] = callback
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def unwatch() -> None:
    """Forget everything."""
    _finder.watched.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
