"""No path outside the given folders can be read."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.mcp_server.folders import Folders
from nvtxmoe_analysis.core.file_set import COMMIT
from nvtxmoe_analysis.outputs.spec import FOLDER
from tests.support.cli import everything

OUTSIDE = "outside the folders that this server may read"


def results(folder: Path, count: int = 1) -> Path:
    """A folder with one table."""
    inner = folder / FOLDER
    inner.mkdir(parents=True)
    cells = {"layer_idx": [0], "expert_id": [0], "activation_count": [count], "percentage": [100.0]}
    pl.DataFrame(cells).write_parquet(inner / "moe_expert_activations.parquet")
    return folder


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with results, beside one that was not given."""
    results(tmp_path / "secret", 7)
    results(tmp_path / "given-but-longer", 7)
    return results(tmp_path / "given" / "run").parent


@pytest.mark.parametrize("name", ["run", "./run", "run/../run", "run/moe_expert_tracking"])
def test_paths_inside(name: str, given: Path) -> None:
    for path in (name, str(given / name)):
        opened = Folders([given]).open(path)
        assert opened.results.frame("activations")["activation_count"].to_list() == [1]


@pytest.mark.parametrize(
    "name",
    ["../secret", "run/../../secret", "{}/secret", "{}/given/../secret", "{}/given-but-longer", "/", "/etc", "\0"],
)
def test_paths_outside(name: str, given: Path) -> None:
    with pytest.raises(NvtxmoeError, match=OUTSIDE):
        Folders([given]).open(name.format(given.parent))


def test_it_cannot_be_told_what_is_outside(given: Path) -> None:
    lines = set()
    for name in ("secret", "nothing"):
        with pytest.raises(NvtxmoeError) as raised:
            Folders([given]).open(f"../{name}")
        lines.add(str(raised.value).replace(name, "NAME"))
    assert len(lines) == 1


def test_links_that_lead_outside(given: Path) -> None:
    secret = given.parent / "secret"
    (given / "link").symlink_to(secret)
    (given / "inner").mkdir()
    (given / "inner" / FOLDER).symlink_to(secret / FOLDER)
    (given / "file").mkdir()
    (given / "file" / "moe_expert_activations.parquet").symlink_to(secret / FOLDER / "moe_expert_activations.parquet")
    (given / "other").mkdir()
    (given / "other" / "moe_summary.json").symlink_to("/etc/hostname")
    for name in ("link", "inner", "file", "other", "link/../secret"):
        with pytest.raises(NvtxmoeError, match=OUTSIDE):
            Folders([given]).open(name)
    assert str(given / "link") not in Folders([given]).names()


def test_links_that_stay_inside(given: Path) -> None:
    (given / "latest").symlink_to("run")
    assert Folders([given]).open("latest").results.frame("activations").height == 1
    assert Folders([given]).names() == [str(given / "run")]


def test_a_given_folder_may_be_a_link_itself(given: Path) -> None:
    (given.parent / "alias").symlink_to(given)
    assert Folders([given.parent / "alias"]).open("run").results.frame("activations").height == 1


def test_what_is_no_regular_file_is_not_opened(given: Path) -> None:
    folder = given / "fifo"
    folder.mkdir()
    os.mkfifo(folder / "moe_expert_activations.csv")
    os.mkfifo(given / "pipe")
    with pytest.raises(NvtxmoeError, match="no result file in it"):
        Folders([given]).open("fifo")
    with pytest.raises(NvtxmoeError, match="no folder"):
        Folders([given]).open("pipe")
    (folder / "moe_summary.json").symlink_to("/dev/zero")
    with pytest.raises(NvtxmoeError, match="no result file in it"):
        Folders([given]).open("fifo")


def test_links_in_a_circle(given: Path) -> None:
    (given / "a").symlink_to("b")
    (given / "b").symlink_to("a")
    with pytest.raises((NvtxmoeError, OSError)):
        Folders([given]).open("a")


def test_a_set_that_was_left_half_replaced_is_not_finished(given: Path) -> None:
    (given / "run" / FOLDER / COMMIT).write_text("{}")
    before = everything(given)
    with pytest.raises(NvtxmoeError, match=r"killed while it replaced files\. Run `nvtxmoe report "):
        Folders([given]).open("run")
    assert everything(given) == before


def test_a_new_analysis_is_read_anew(given: Path) -> None:
    folders = Folders([given])
    first = folders.open("run")
    assert folders.open("run") is first
    file = given / "run" / FOLDER / "moe_expert_activations.parquet"
    pl.read_parquet(file).with_columns(activation_count=pl.lit(12_345_678)).write_parquet(file)
    os.utime(file, ns=(1, 1))
    assert folders.open("run").results.frame("activations")["activation_count"].to_list() == [12_345_678]


def test_a_given_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NvtxmoeError, match="no such folder"):
        Folders([tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(NvtxmoeError, match="no folder"):
        Folders([tmp_path / "file"])


def test_folders_too_deep_are_not_listed(tmp_path: Path) -> None:
    results(tmp_path / "1/2/3/4")
    results(tmp_path / "1/2/3/4/5/6")
    results(tmp_path / ".hidden")
    assert Folders([tmp_path]).names() == [str(tmp_path / "1/2/3/4")]
