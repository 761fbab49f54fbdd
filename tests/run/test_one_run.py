"""Reports that are not of one run are refused by name; those that are need no order and no names."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.ingest.test_many_reports import validation
from tests.support.cli import everything, everything_but_its_path, refused, run
from tests.support.export_builder import Export, simple_run
from tests.support.many_captures import reports


def with_meta(folder: Path, *metas: dict[str, Any], **process: Any) -> list[Path]:
    """A report a rank, with what its moe.meta says beside the usual."""
    paths = []
    for rank, meta in enumerate(metas):
        export = Export()
        simple_run(export, pid=100 + rank, rank=rank, world_size=len(metas), meta=meta, **process)
        paths.append(export.save(folder / f"{rank}.sqlite"))
    return paths


def layers(*numbers: int, experts: int = 4, top_k: int = 2) -> dict[str, Any]:
    return {"layers": [{"layer": n, "num_experts": experts, "top_k": top_k} for n in numbers]}


def refused_together(paths: list[Path], tmp_path: Path, *said: object) -> None:
    """Nothing is written, whatever the order; --partial-ok is no way around it. Each alone is fine."""
    before = everything(tmp_path)
    for order in (paths, paths[::-1]):
        line = refused(run("analyze", *order, "-o", tmp_path / "out", "--partial-ok"), *said)
        assert "Analyse the reports of each run apart" in line
    assert everything(tmp_path) == before
    for i, path in enumerate(paths):
        assert run("analyze", path, "-o", tmp_path / f"alone{i}").code == 0


def test_two_runs(tmp_path: Path) -> None:
    a, b = with_meta(tmp_path, {"run_id": "monday"}, {"run_id": "tuesday"})
    refused_together(
        [a, b], tmp_path, "the reports are of 2 runs: ", f"{a} (rank 0) of run monday", f"{b} (rank 1) of run tuesday"
    )


def test_runs_of_different_sizes(tmp_path: Path) -> None:
    paths = with_meta(tmp_path, {}, {})
    other = tmp_path / "other.sqlite"
    export = Export()
    simple_run(export, pid=102, rank=2, world_size=3)
    export.save(other)
    refused_together(
        [paths[1], other], tmp_path, "the reports are of runs of different sizes: ",
        f"{paths[1]} of 2 ranks", f"{other} of 3 ranks",
    )  # fmt: skip


def test_one_run_that_only_some_name(tmp_path: Path) -> None:
    paths = with_meta(tmp_path, {"run_id": "monday"}, {}, {"run_id": "monday"})
    assert run("analyze", *paths, "-o", tmp_path / "out", "--strict").code == 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (layers(0, 1, experts=8), ("layer 0 has ", "4 experts, top-2, in", "8 experts, top-2, in")),
        (layers(0, 1, top_k=1), ("layer 0 has ", "4 experts, top-2, in", "4 experts, top-1, in")),
        ({"model": "Qwen/Qwen3-30B-A3B"}, (" of org/model", " of Qwen/Qwen3-30B-A3B")),
    ],
)
def test_different_models(tmp_path: Path, other: dict[str, Any], said: tuple[str, ...]) -> None:
    paths = with_meta(tmp_path, {"model": "org/model", **layers(0, 1)}, {"model": "org/model", **other})
    told = (f"{path} (rank {rank})" for rank, path in enumerate(paths))
    refused_together(paths, tmp_path, "the reports are of different models: ", *told, *said)


@pytest.mark.parametrize(
    "names",
    [
        ("/data/models/m", "hub/m"),
        ("/tmp/a1", "/tmp/b2"),
        ("./m", "~/m", "models/of/mine", "a1", "b2", "org/m"),
        ("hub/m",),
    ],
)
def test_one_model_in_several_places(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Each process may have a copy of its own, or not say which it is; seen in real captures of vLLM."""
    paths = with_meta(tmp_path, *({"model": name} for name in names), {})
    assert run("analyze", *paths, "-o", tmp_path / "out", "--strict").code == 0
    (check,) = (one for one in validation(tmp_path / "out")["checks"] if one["name"] == "one_model")
    assert check["status"] == ("warn" if len(names) > 1 else "pass")
    assert check["figures"] == {"models": sorted(names)}


def test_stages_of_a_pipeline_hold_different_layers(tmp_path: Path) -> None:
    paths = []
    for rank, own in enumerate(((0, 1), (2, 3, 4))):
        export = Export()
        worker = simple_run(export, pid=100 + rank, rank=rank, world_size=2, steps=0, meta=layers(*own))
        with worker.step(0):
            for layer in own:
                with worker.layer(layer), worker.phase("experts", layer):
                    worker.kernel(name="fused_moe")
        for layer in own:
            worker.counts(0, layer, [3, 3, 0, 0])
        paths.append(export.save(tmp_path / f"{rank}.sqlite"))
    ran = run("analyze", *paths, "-o", tmp_path / "out", "--json")
    assert (ran.code, [one["layer"] for one in ran.json["layers"]]) == (0, [0, 1, 2, 3, 4])
    assert validation(tmp_path / "out")["verdict"] == "complete"


def test_an_unknown_schema_is_that_report_s_failure(tmp_path: Path) -> None:
    paths = with_meta(tmp_path, {}, {"schema": 2})
    said = f"{paths[1]}, moe.meta of process 101: payload schema 2, and this nvtxmoe reads 1"
    refused(run("analyze", paths[1], "-o", tmp_path / "alone"), said)
    ran = run("analyze", *paths, "-o", tmp_path / "out")
    assert ran.code == 2 and f"could not be read: {paths[1]}" in ran.err
    (failed,) = validation(tmp_path / "out")["failed_inputs"]
    assert failed["error"].startswith(said)


def test_missing_ranks_are_named(tmp_path: Path) -> None:
    paths = reports(tmp_path, 5)
    ran = run("analyze", paths[3], paths[1], "-o", tmp_path / "out", "--strict")
    assert ran.code == 3
    assert "3 ranks of 5 missing: 0, 2, 4. Give every rank's report." in ran.out


def test_the_order_means_nothing_where_clocks_are_aligned(
    golden_two_reports: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Recorded clocks a millisecond off: what is moved against what must not hang on the order."""
    first, second = golden_two_reports["tp2"]
    off = Path(shutil.copy(second, tmp_path / "off.sqlite"))
    connection = sqlite3.connect(off)
    connection.execute("UPDATE TARGET_INFO_SESSION_START_TIME SET utcEpochNs = utcEpochNs + 1000000")
    connection.commit()
    connection.close()
    for name, order in (("a", (first, off)), ("b", (off, first))):
        assert run("analyze", *order, "-o", tmp_path / name).code == 0
    assert everything_but_its_path(tmp_path / "a") == everything_but_its_path(tmp_path / "b")


def test_names_and_order_mean_nothing(tmp_path: Path) -> None:
    paths = reports(tmp_path, 3)
    others = [path.rename(tmp_path / name) for path, name in zip(paths, ("rank9.db", "a b", "zero"), strict=True)]
    results = []
    for i, order in enumerate(itertools.permutations(others)):
        assert run("analyze", *order, "-o", tmp_path / str(i), "--strict").code == 0
        results.append(everything_but_its_path(tmp_path / str(i)))
    assert all(one == results[0] for one in results)
