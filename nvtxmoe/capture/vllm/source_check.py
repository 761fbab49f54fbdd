"""Names, bases and parameters in Python source that is not imported: what a vLLM has, told from its files alone.

A :class:`SourceTree` is an installed or unpacked package, or a wheel. It follows imports inside the tree, aliases, star
imports and base classes; what is made at run time (``setattr``, decorators that change a signature) it can't see.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvtxmoe.errors import NvtxmoeError

#: Steps of following a name, beyond which it goes in a circle.
MOST_STEPS = 50


class NeedLike(Protocol):
    """A name that an adapter needs, as nvtxmoe.capture.vllm.requirements.Need."""

    @property
    def module(self) -> str:
        """Dotted name of the module."""

    @property
    def qualname(self) -> str:
        """Dotted name in it."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names that must be among its parameters."""


@dataclass(frozen=True)
class Definition:
    """What a name stands for.

    Attributes:
        module: the module it is defined in (of a module: its own name).
        node: the class, the function, or whatever else gives the value; None for a module.
    """

    module: str
    node: ast.AST | None


class SourceTree:
    """Modules by dotted name, parsed when they are asked for.

    Parameters:
        read: the text of a file by its path in the tree (``vllm/config/__init__.py``), None where there is none.
        paths: the paths of all Python files.
    """

    def __init__(self, read: Callable[[str], str | None], paths: Iterable[str]) -> None:
        self._read = read
        self.paths = tuple(paths)
        self._parsed: dict[str, ast.Module | None] = {}
        self._globals: dict[str, dict[str, ast.AST]] = {}

    @classmethod
    def folder(cls, root: Path, package: str = "vllm") -> SourceTree:
        """The tree of ``root/package``.

        Raises:
            NvtxmoeError: there is no such folder.
        """
        if not (root / package).is_dir():
            raise NvtxmoeError(f"no folder {package} in it", where=root, remedy="Give the folder that holds it")

        def read(path: str) -> str | None:
            try:
                return (root / path).read_text(encoding="utf-8", errors="replace")
            except OSError:
                return None

        return cls(read, sorted(str(f.relative_to(root)) for f in (root / package).rglob("*.py")))

    @classmethod
    def wheel(cls, path: Path, package: str = "vllm") -> SourceTree:
        """The tree of a wheel; nothing is unpacked.

        Raises:
            NvtxmoeError: no wheel, or one without the package.
        """
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise NvtxmoeError(f"no wheel: {error}", where=path, remedy="Download it again") from error
        names = {n for n in archive.namelist() if n.startswith(f"{package}/") and n.endswith(".py")}
        if not names:
            raise NvtxmoeError(f"a wheel without {package}", where=path, remedy="Give a wheel of it")
        return cls(lambda name: archive.read(name).decode("utf-8", "replace") if name in names else None, sorted(names))

    # Modules ---------------------------------------------------------------------------------------------------------

    def module(self, name: str) -> ast.Module | None:
        """The module's tree; None where it is not there or no Python."""
        if name not in self._parsed:
            base = name.replace(".", "/")
            text = self._read(f"{base}/__init__.py")
            text = self._read(f"{base}.py") if text is None else text
            try:
                self._parsed[name] = None if text is None else ast.parse(text)
            except SyntaxError:
                self._parsed[name] = None
        return self._parsed[name]

    def containing(self, *texts: str) -> Iterator[str]:
        """Dotted names of the modules whose text holds one of these."""
        for path in self.paths:
            text = self._read(path) or ""
            if any(part in text for part in texts):
                yield path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def names(self, module: str) -> dict[str, ast.AST]:
        """What a module's own statements bind, the last binding of each name."""
        if module not in self._globals:
            tree = self.module(module)
            self._globals[module] = {} if tree is None else dict(_bindings(tree.body))
        return self._globals[module]

    # Names -----------------------------------------------------------------------------------------------------------

    def find(self, module: str, qualname: str) -> Definition | None:
        """What ``qualname`` is in ``module``; None where it is not there, or comes from outside the tree."""
        definition = self._global(module, qualname.partition(".")[0], 0)
        for name in qualname.split(".")[1:]:
            if definition is None:
                return None
            definition = self._member(definition, name, 0)
        return definition

    def bases(self, definition: Definition) -> Iterator[Definition]:
        """The direct base classes of a class that are in the tree."""
        if isinstance(definition.node, ast.ClassDef):
            for base in definition.node.bases:
                inner = base.value if isinstance(base, ast.Subscript) else base  # Base[T]
                if (resolved := self._expression(definition.module, inner, 0)) is not None:
                    yield resolved

    def subclasses(self, module: str, qualname: str) -> list[Definition]:
        """All classes at the top of a module that inherit from this one, directly or not; sorted by name."""
        base = self.find(module, qualname)
        subclasses: dict[tuple[str, str], Definition] = {}
        class_names, looked = {qualname}, set[str]()
        while base is not None and class_names - looked:  # names of classes whose heirs were not looked for yet
            modules = list(self.containing(*(class_names - looked)))
            looked |= class_names
            nodes = [base.node, *(definition.node for definition in subclasses.values())]
            for name in modules:
                for class_name, node in self.names(name).items():
                    definition = Definition(name, node)
                    if node not in nodes and any(parent.node in nodes for parent in self.bases(definition)):
                        subclasses[name, class_name] = definition
                        class_names.add(class_name)
                        nodes.append(node)
        return [subclasses[key] for key in sorted(subclasses)]

    def _global(self, module: str, name: str, steps: int) -> Definition | None:
        if steps > MOST_STEPS:
            return None
        node = self.names(module).get(name)
        if node is not None:
            return self._bound(module, name, node, steps + 1)
        for star in self._stars(module):
            if (definition := self._global(star, name, steps + 1)) is not None:
                return definition
        return Definition(f"{module}.{name}", None) if self._is_module(f"{module}.{name}") else None

    def _is_module(self, name: str) -> bool:
        """Whether it is a module or a folder of modules."""
        start = name.replace(".", "/") + "/"
        return self.module(name) is not None or any(path.startswith(start) for path in self.paths)

    def _stars(self, module: str) -> Iterator[str]:
        tree = self.module(module)
        for node in [] if tree is None else _statements(tree.body):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield self._absolute(module, node)

    def _bound(self, module: str, name: str, node: ast.AST, steps: int) -> Definition | None:
        if isinstance(node, ast.Import):
            alias = next(alias for alias in node.names if name in (alias.asname, alias.name.partition(".")[0]))
            target = alias.name if alias.asname else alias.name.partition(".")[0]
            return Definition(target, None) if self._is_module(target) else None
        if isinstance(node, ast.ImportFrom):
            source = self._absolute(module, node)
            original_name = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            return self._global(source, original_name, steps)
        if isinstance(node, (ast.Name, ast.Attribute)) and (not isinstance(node, ast.Name) or node.id != name):
            return self._expression(module, node, steps) or Definition(module, node)
        return Definition(module, node)

    def _expression(self, module: str, node: ast.AST, steps: int) -> Definition | None:
        if isinstance(node, ast.Name):
            return self._global(module, node.id, steps + 1)
        if isinstance(node, ast.Attribute):
            owner = self._expression(module, node.value, steps + 1)
            return None if owner is None else self._member(owner, node.attr, steps + 1)
        return None

    def _member(self, owner: Definition, name: str, steps: int) -> Definition | None:
        if owner.node is None:
            return self._global(owner.module, name, steps + 1)
        if steps > MOST_STEPS or not isinstance(owner.node, ast.ClassDef):
            return None
        node = dict(_bindings(owner.node.body)).get(name)
        if node is not None:
            return self._bound(owner.module, name, node, steps + 1)
        for base in self.bases(owner):
            if (definition := self._member(base, name, steps + 1)) is not None:
                return definition
        return None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        """The module that a ``from`` import names."""
        if not node.level:
            return node.module or ""
        is_package = self._read(f"{module.replace('.', '/')}/__init__.py") is not None
        parts = module.split(".") if is_package else module.split(".")[:-1]
        parts = parts[: len(parts) - (node.level - 1)]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def parameters(self, definition: Definition) -> set[str] | None:
        """Names of a callable's parameters (of a class: its constructor's); None where it is no callable."""
        node = definition.node
        if isinstance(node, ast.ClassDef):
            constructor = self._member(definition, "__init__", 0)
            return set() if constructor is None else self.parameters(constructor)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return None
        if any(isinstance(d, ast.Name) and d.id.endswith("property") for d in node.decorator_list):
            return None
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        return {argument.arg for argument in every if argument is not None}


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body and of its branches (if, try, with), not of functions or classes."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, part, [])
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from _statements(
                    [s for statement in inner for s in getattr(statement, "body", [statement])]
                    if part == "handlers"
                    else inner
                )


def _bindings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """(name, what binds it) in the order of the source. An annotation alone binds nothing."""
    for node in _statements(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if alias.name != "*":
                    yield alias.asname or (alias.name.partition(".")[0]), node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value


def unmet_needs(tree: SourceTree, needs: Iterable[NeedLike]) -> list[str]:
    """The needs that the source does not meet, each as a clause; as ``missing`` says of an installed vLLM."""
    return [clause for need in needs if (clause := _unmet(tree, need)) is not None]


def _unmet(tree: SourceTree, need: NeedLike) -> str | None:
    name = f"{need.module}.{need.qualname}"
    if tree.module(need.module) is None:
        return f"module {need.module}"
    definition = tree.find(need.module, need.qualname)
    if definition is None:
        return name + (f"({', '.join(need.parameters)})" if need.parameters else "")
    has = (tree.parameters(definition) or set()) if need.parameters else set()
    without = [parameter for parameter in need.parameters if parameter not in has]
    return f"{name} has no parameter {', '.join(without)}" if without else None
