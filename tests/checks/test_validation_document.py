"""moe_capture_validation.json, whole."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from nvtxmoe._version import __version__
from nvtxmoe_analysis.checks.registry import check_modules
from tests.checks.test_validation import whole_run
from tests.support.written_results import written


def test_the_whole_document(tmp_path: Path) -> None:
    export = whole_run(meta={"run_id": "a", "dp_rank": 0, "model": "left out"})
    export.add("TARGET_INFO_GPU", id=0, name="NVIDIA H100 80GB HBM3")
    found = written(tmp_path, export)
    path = tmp_path / "built0.sqlite"
    passing = [
        ("reports_read", "One report.", {"reports": 1, "failed": []}),
        ("meta_present", "1 process announced itself.", {"processes": 1}),
        (
            "process_ids",
            "No process id and no correlation id was used again.",
            {"processes": 1, "used_again": [], "repeated_correlation_ids": 0},
        ),
        ("ranks_present", "All 1 rank present.", {"world_size": 1, "present": [0], "missing": []}),
        ("ranks_agree", "Ranks and sizes of 1 process agree.", {"processes": 1, "contradictions": 0}),
        ("copies_counted_once", "moe.meta explains which ranks share tokens.", {"groups": 1, "equal": 0}),
        ("one_model", "All serve left out.", {"models": ["left out"]}),
        (
            "layers_named",
            "No moe.meta contains the number of its layers.",
            {"processes": 1, "without_number": 1, "contradictions": 0},
        ),
        ("layer_shapes_agree", "Counts have the shapes that moe.meta contains.", {"compared": 2, "wrong": 0}),
        ("local_experts_agree", "No moe.meta contains local_experts.", {"lists": 0, "contradictions": 0}),
        ("blobs_present", "Every payload is in the export.", {"missing": 0}),
        (
            "checksums_agree",
            "The marks of counts have no checksum (captured by an older nvtxmoe, or in the word form).",
            {"marks": 6, "checked": 0, "broken": 0},
        ),
        ("words_whole", "Payloads are binary.", {"truncated": 0, "damaged": 0}),
        ("journals_whole", "No journal among the inputs.", {}),
        ("journals_agree", "No journal whose end record contains its number of steps.", {"journals": 0, "wrong": 0}),
        ("capture_healthy", "No process reports a failure or a loss.", {"processes": 1}),
        ("ids_taken", "No process tells how it took the expert ids.", {}),
        ("steps_closed", "3 steps, each closed.", {"steps": 3, "unclosed": 0}),
        ("unique_keys", "Each (rank, step, layer) occurs once.", {"repeated_steps": 0, "repeated_counts": 0}),
        ("steps_in_order", "Step numbers rise with time.", {"steps": 3, "falling": 0}),
        (
            "steps_consecutive",
            "No step number is missing.",
            {"missing": 0, "gaps": 0, "begins_at": None, "not_judged": []},
        ),
        ("ranks_in_step", "No ranks that run the same batches.", {"ranks_compared": 0, "missing": 0}),
        ("steps_have_counts", "All 6 (rank, step, layer) have counts.", {"cells": 6, "missing": 0}),
        (
            "counts_have_steps",
            "Every count belongs to a captured step.",
            {"counts": 6, "without_step": 0, "before_window": 0, "assignments_left_out": 0},
        ),
        ("counts_sum", "All 6 counts sum to tokens x top_k.", {"cells": 6, "wrong": 0}),
        ("tokens_agree", "Counts cover just the scheduled tokens.", {"compared": 6, "differing": 0}),
        ("topk_agrees", "6 sampled cells agree with their counts.", {"compared": 6, "differing": 0}),
        ("samples_present", "All 6 sampled cells have their tokens.", {"cells": 6, "missing": 0}),
        ("pairs_agree", "No moe.pairs of a layer that moe.meta contains.", {"spans": 0, "wrong": 0, "empty": 0}),
        ("tensor_parallel_copies", "No tensor-parallel copies.", {"compared": 0, "differing": 0}),
        ("cuda_tracing", "9 GPU operations from 9 CUDA calls.", {"runtime_calls": 9, "gpu_operations": 9}),
        (
            "graph_tracing",
            "No CUDA graph was launched in a step.",
            {"graph_launches": 0, "whole_graph_records": 0, "node_rows": 0},
        ),
        (
            "launches_have_work",
            "All 9 launches in steps have their GPU work.",
            {
                "launches": 9,
                "graph_launches": 0,
                "without_work": 0,
                "partial_graphs": 0,
                "steps_without_launch": 0,
            },
        ),
        ("layers_have_work", "All 6 (rank, step, layer) have GPU work.", {"cells": 6, "without_work": 0}),
        ("graph_nodes", "No CUDA graph node in the capture.", {"unresolved": 0, "node_rows": 0}),
        ("ranges_nest", "All ranges nest.", {"crossing": 0}),
        (
            "range_times",
            "The times of all NVTX ranges are possible.",
            {"implausible": 0, "unclosed": 0, "reasons": {}},
        ),
        (
            "ranges_whole",
            "Every step has the ranges of its layers and phases.",
            {"layers": 0, "phases": 0, "bare_phases": 0},
        ),
        (
            "operation_times",
            "The times of all 9 GPU operations are possible.",
            {"operations": 9, "implausible": 0, "implausible_in_steps": 0, "reasons": {}},
        ),
        (
            "records_in_order",
            "CUDA calls, graph nodes and GPU operations are in order.",
            {"calls": 0, "nodes": 0, "operations": 0},
        ),
        (
            "operations_placed",
            "All 9 GPU operations have their place.",
            {"operations": 9, "unplaced": 0, "reasons": {}, "repeated_calls": 0},
        ),
        ("operations_once", "9 GPU operations, each recorded once.", {"operations": 9, "repeated": 0}),
        ("kernels_named", "Every kernel has its name.", {"unnamed": 0}),
        (
            "gpu_clock",
            "GPU work begins after the step that launched it.",
            {"cells": 6, "wrong": 0, "first_after_step_ns": 0},
        ),
        (
            "collectives_seen",
            "No rank shares a layer with another.",
            {"processes_that_share_layers": 0, "collective_ranges": 0, "inferred": 0},
        ),
        ("clocks_agree", "No rank works with another.", {}),
        ("profiler_warnings", "nsys reported no lost events.", {"messages": []}),
    ]
    nothing_to_see = {
        *("words_whole", "journals_whole", "tensor_parallel_copies", "graph_tracing", "graph_nodes"),
        *("reports_read", "collectives_seen", "clocks_agree", "copies_counted_once", "local_experts_agree"),
        *("journals_agree", "ranks_in_step", "pairs_agree", "ids_taken", "checksums_agree", "layers_named"),
    }
    nothing = {"operations": 0, "time_ns": 0, "kinds": {}}
    assert found.validation == {
        "verdict": "complete",
        "reasons": [],
        "checks": [
            {
                "name": name,
                "status": "not_applicable" if name in nothing_to_see else "pass",
                "message": message,
                "figures": figures,
            }
            for name, message, figures in passing
        ],
        "coverage": {
            "classes": {
                "in_layer": {
                    "operations": 6,
                    "time_ns": 900,
                    "kinds": {"kernel": {"operations": 6, "time_ns": 900}},
                },
                "in_step": {
                    "operations": 3,
                    "time_ns": 300,
                    "kinds": {"kernel": {"operations": 3, "time_ns": 300}},
                },
                "outside_steps": nothing,
                "unplaced": {**nothing, "reasons": {}},
            },
            "in_layer_pct_of_step_time": 75.0,
            "placed_pct_of_step_time": 100.0,
            "in_step_outside_layers_names": [{"name": "attention", "operations": 3, "time_ns": 300}],
        },
        "selection": {
            "first_step": None,
            "last_step": None,
            "skip_first": 0,
            "only": None,
            "layers": None,
            "ranks": None,
            "steps_kept": 3,
            "steps_captured": 3,
            "steps_lost": 0,
        },
        "clock": {
            "unit": "ns",
            "gpu_start_ns": "each report's own time",
            "reports_aligned": True,
            "origin_ns": 1030,
        },
        "options": {
            "nvtxmoe": __version__,
            "polars": pl.__version__,
            "formats": ["csv"],
            "capacity_factors": [1.0, 1.25, 1.5, 2.0],
        },
        "inputs": [
            {
                "path": str(path),
                "kind": "sqlite",
                "size_bytes": path.stat().st_size,
                "nsys": "2025.3.2.0",
                "export_schema": "3.20.3",
                "gpus": ["NVIDIA H100 80GB HBM3"],
                "payload_encoding": "binary",
                "runtime_calls": 9,
                "gpu_operations": 9,
                "steps": 3,
                "processes": [
                    {
                        "pid": 100,
                        "rank": 0,
                        "world_size": 1,
                        "tp_rank": 0,
                        "tp_size": 1,
                        "ep_rank": 0,
                        "ep_size": 1,
                        "dp_rank": 0,
                        "schema": 1,
                        "nvtxmoe": "0.1.0",
                        "vllm": "0.26.0",
                        "torch": "2.11.0",
                        "device": "a device",
                        "sample_every": 1,
                        "layers": 2,
                    }
                ],
            }
        ],
        "failed_inputs": [],
    }
    assert len(passing) == len(check_modules())


# Who is there ------------------------------------------------------------------------------------------------------
