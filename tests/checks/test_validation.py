"""Checks of the payloads: each fails on a capture made for it, with exact figures, and passes on a whole one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.export_builder import Export, Process, simple_run
from tests.support.written_results import Written, written


def whole_run(**process: Any) -> Export:
    """Three steps, two layers: nothing is missing."""
    export = Export()
    simple_run(export, **process)
    return export


def statuses(found: Written) -> dict[str, str]:
    return {c["name"]: c["status"] for c in found.validation["checks"]}


def rows_named(export: Export, name: str) -> list[dict[str, Any]]:
    """NVTX rows of one message, in order."""
    ident = export.strings[name]
    return [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == ident]


def drop(export: Export, *rows: dict[str, Any]) -> None:
    """Take rows of NVTX_EVENTS out."""
    gone = {id(row) for row in rows}
    export.rows["NVTX_EVENTS"] = [row for row in export.rows["NVTX_EVENTS"] if id(row) not in gone]


def test_meta_missing(tmp_path: Path) -> None:
    """The capture began after the process announced itself: what steps and counts say is all there is."""
    export = whole_run()
    whole = written(tmp_path, export)
    drop(export, *rows_named(export, "moe.meta"))
    (tmp_path / "late").mkdir()
    found = written(tmp_path / "late", export)
    assert found.check("meta_present") == (
        "fail",
        "No moe.meta from process 100 of built0.sqlite: its ranks, layers and parallel groups are unknown. The capture "
        "began after the process announced itself.",
        {"processes": 1, "without_meta": 1},
    )
    assert found.check("ranks_present")[:2] == ("not_applicable", "No moe.meta tells the world size.")
    assert found.statuses == {"meta_present": "fail"}
    assert found.verdict == "incomplete"
    assert found.validation["reasons"] == [found.check("meta_present")[1]]
    for name in ("moe_expert_activations", "moe_layer_timings", "moe_load_imbalance", "moe_routing_weights_hist"):
        assert found.text(name) == whole.text(name), name


def test_sampled_tokens_of_a_process_that_only_its_steps_name(tmp_path: Path) -> None:
    """Neither moe.meta nor moe.counts tells the rank of its samples; moe.step does."""
    export = whole_run()
    whole = written(tmp_path, export)
    drop(export, *rows_named(export, "moe.meta"), *rows_named(export, "moe.counts"))
    (tmp_path / "late").mkdir()
    found = written(tmp_path / "late", export)
    assert found.text("moe_routing_weights_hist") == whole.text("moe_routing_weights_hist")


def test_nobody_there(tmp_path: Path) -> None:
    export = Export()
    Process(export)
    found = written(tmp_path, export)
    assert found.check("meta_present") == ("not_applicable", "No process with steps or counts.", {"processes": 0})
    assert found.statuses == {"steps_closed": "fail", "cuda_tracing": "fail"}


def test_two_processes(tmp_path: Path) -> None:
    export = Export()
    for rank in range(2):
        simple_run(export, pid=100 + rank, rank=rank, world_size=2)
    found = written(tmp_path, export)
    assert found.check("meta_present") == ("pass", "2 processes announced themselves.", {"processes": 2})
    assert found.check("ranks_present")[1] == "All 2 ranks present."
    assert found.verdict == "complete"


def test_rank_missing(tmp_path: Path) -> None:
    export = Export()
    for rank in (0, 2):
        simple_run(export, pid=100 + rank, rank=rank, world_size=4)
    found = written(tmp_path, export)
    assert found.check("ranks_present") == (
        "fail",
        "2 ranks of 4 missing: 1, 3. Give every rank's report.",
        {"world_size": 4, "present": [0, 2], "missing": [1, 3]},
    )
    assert found.statuses == {"ranks_present": "fail"}


def test_world_sizes_disagree(tmp_path: Path) -> None:
    export = Export()
    for rank in range(2):
        simple_run(export, pid=100 + rank, rank=rank, world_size=rank + 1)
    assert written(tmp_path, export).check("ranks_present") == (
        "fail",
        "Processes disagree on the world size: 1, 2.",
        {"world_size": 2, "present": [0, 1], "missing": []},
    )


# Payload bytes -----------------------------------------------------------------------------------------------------


def without_blobs(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE NVTX_EVENTS SET binaryData = NULL")
    connection.commit()
    connection.close()


def without_blob_column(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE NVTX_EVENTS DROP COLUMN binaryData")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("strip", [without_blobs, without_blob_column])
def test_blobs_missing(tmp_path: Path, strip: Callable[[Path], None]) -> None:
    """What needs no payload still comes out: ranges, their ints, and the kernel time of layers and phases."""
    path = whole_run().save(tmp_path / "bare.sqlite")
    strip(path)
    found = written(tmp_path, path)
    # 1 moe.meta, 3 moe.step, 6 moe.counts, 6 moe.topk.
    assert found.check("blobs_present") == (
        "fail",
        "16 events of bare.sqlite without payload. Export the report again with "
        "`nsys export --type sqlite --include-blobs=true` (nsys 2023.4 does not know the option).",
        {"missing": 16},
    )
    assert found.check("meta_present")[1] == (
        "No moe.meta from process 100 of bare.sqlite: its ranks, layers and parallel groups are unknown. Payloads are "
        "missing."
    )
    assert found.statuses == {"meta_present": "fail", "blobs_present": "fail"}
    assert found.check("steps_have_counts")[0] == "not_applicable"
    assert found.verdict == "incomplete"
    assert found.text("moe_kernel_timings").splitlines()[1:] == [
        ",0,experts,fused_moe,eager,3,300,100,100,100",
        ",1,experts,fused_moe,eager,3,600,200,200,200",
        ",,step_other,attention,eager,3,300,100,100,100",
    ]
    # A row for each step all the same, in the order of time.
    columns = ("rank", "step", "layer_idx", "num_tokens", "kernel_count", "kernel_time_ns", "launched_by")
    assert found.rows("moe_layer_timings", *columns) == [
        *[("", "", "0", "", "1", "100", "eager")] * 3,
        *[("", "", "1", "", "1", "200", "eager")] * 3,
    ]
    starts = [int(at) for (at,) in found.rows("moe_layer_timings", "gpu_start_ns")]
    assert starts[:3] == sorted(starts[:3])
    assert len(found.rows("moe_layer_correlation", "rank")) == 6
    assert found.rows("moe_expert_activations", "expert_id") == []
    assert found.json("moe_summary") == {}


def test_blobs_missing_of_a_real_capture(golden_2gpu: Path, tmp_path: Path) -> None:
    """Two processes, 47 steps each: their GPU time of each layer comes out as before, without the key."""
    (tmp_path / "whole").mkdir()
    whole = written(tmp_path / "whole", golden_2gpu)
    bare = tmp_path / "bare.sqlite"
    bare.write_bytes(golden_2gpu.read_bytes())
    without_blobs(bare)
    found = written(tmp_path, bare)
    assert found.check("blobs_present")[2] == {"missing": 520}  # 2 meta, 94 step, 376 counts, 48 topk
    columns = ("layer_idx", "kernel_time_ns", "memcpy_time_ns", "busy_ns", "gpu_start_ns", "gpu_end_ns", "launched_by")
    assert sorted(found.rows("moe_layer_timings", *columns)) == sorted(whole.rows("moe_layer_timings", *columns))
    assert found.validation["coverage"] == whole.validation["coverage"]

    def by_name(one: Written) -> dict[tuple[str, ...], int]:
        total: dict[tuple[str, ...], int] = {}
        for *key, ns in one.rows("moe_kernel_timings", "layer_idx", "phase", "kernel_name", "launched_by", "total_ns"):
            total[tuple(key)] = total.get(tuple(key), 0) + int(ns)
        return total

    assert by_name(found) == by_name(whole)


def test_one_blob_missing(tmp_path: Path) -> None:
    """Others are there, so it was not the export's option. The step has a row, without its number."""
    export = whole_run()
    rows_named(export, "moe.step")[1]["binaryData"] = None
    found = written(tmp_path, export)
    assert found.check("blobs_present") == ("fail", "1 event of built0.sqlite without payload.", {"missing": 1})
    assert found.statuses == {"blobs_present": "fail"}
    assert found.rows("moe_layer_timings", "rank", "step", "layer_idx", "num_tokens", "kernel_time_ns") == [
        ("0", "", "0", "", "100"),
        ("0", "", "1", "", "200"),
        ("0", "0", "0", "3", "100"),
        ("0", "0", "1", "3", "200"),
        ("0", "1", "0", "3", "0"),
        ("0", "1", "1", "3", "0"),
        ("0", "2", "0", "3", "100"),
        ("0", "2", "1", "3", "200"),
    ]


# Words -------------------------------------------------------------------------------------------------------------


def test_words_truncated(tmp_path: Path) -> None:
    """The capture ended within the last payload, a sample."""
    export = whole_run(encoding="words")
    drop(export, *rows_named(export, "moe.w.topk")[-2:])
    found = written(tmp_path, export)
    assert found.check("words_whole") == (
        "fail",
        "0 word-form payloads lost words, 1 broke off with the capture's end.",
        {"truncated": 1, "damaged": 0},
    )
    assert found.statuses == {"words_whole": "fail", "samples_present": "fail"}
    assert found.check("samples_present")[2] == {"cells": 6, "missing": 1}
    assert found.check("topk_agrees")[2] == {"compared": 5, "differing": 0}


def test_words_damaged(tmp_path: Path) -> None:
    """A word is lost from the first counts, so that one is missing too."""
    export = whole_run(encoding="words")
    drop(export, rows_named(export, "moe.w.counts")[2])
    found = written(tmp_path, export)
    assert found.check("words_whole")[1:] == (
        "1 word-form payload lost words, 0 broke off with the capture's end.",
        {"truncated": 0, "damaged": 1},
    )
    assert found.check("steps_have_counts")[1:] == (
        "1 of 6 (rank, step, layer) without counts, the first rank 0 step 0 layer 0.",
        {"cells": 6, "missing": 1, "examples": ["rank 0 step 0 layer 0"]},
    )
    assert found.statuses == {"words_whole": "fail", "steps_have_counts": "fail"}


def test_words_of_a_step_damaged(tmp_path: Path) -> None:
    """Its range still says its number, and moe.meta its rank. To export again would not help."""
    export = whole_run(encoding="words")
    drop(export, rows_named(export, "moe.w.step")[1])
    found = written(tmp_path, export)
    assert found.statuses == {"blobs_present": "fail", "words_whole": "fail"}
    assert found.check("blobs_present")[1] == "1 event of built0.sqlite without payload."
    assert found.rows("moe_layer_timings", "step", "num_tokens", "decode_tokens") == [
        (str(step), "3", "3" if step else "") for step in range(3) for _ in range(2)
    ]
