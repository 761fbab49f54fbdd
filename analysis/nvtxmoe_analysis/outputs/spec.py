"""The result files as frames: their names, and the type of each column. The one place where types are declared.

Integers are ``Int64`` and floats ``Float64`` whatever the file's format, so that CSV and Parquet give equal frames (up
to the nine digits that CSV has). What the columns mean is in docs/outputs.md; docs/loading.md lists them, and a test
compares it with this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

Types = Mapping[str, "pl.DataType | type[pl.DataType]"]


@dataclass(frozen=True)
class Frame:
    """A table of the results.

    Attributes:
        stem: name of its file without suffix.
        columns: type by column, in the file's order. Files of a later version may have more.
        forms: suffixes that the file may have; where several are there the first counts.
        gpu: whether it needs GPU time, which a run without nsys does not have.
    """

    stem: str
    columns: Types
    forms: tuple[str, ...] = field(default=("parquet", "csv"), kw_only=True)
    gpu: bool = field(default=False, kw_only=True)


_TYPES: Types = {
    "int": pl.Int64,
    "float": pl.Float64,
    "str": pl.String,
    "bool": pl.Boolean,
    "counts": pl.List(pl.UInt32),
}


def _columns(text: str) -> Types:
    """``int a b, float c`` as types by column."""
    out: dict[str, pl.DataType | type[pl.DataType]] = {}
    for part in text.split(","):
        kind, *names = part.split()
        out |= dict.fromkeys(names, _TYPES[kind])
    return out


FRAMES: Mapping[str, Frame] = {
    "activations": Frame(
        "moe_expert_activations", _columns("int layer_idx expert_id activation_count, float percentage")
    ),
    "coselection": Frame(
        "moe_expert_coselection", _columns("int layer_idx expert_id_1 expert_id_2 coselection_count tokens")
    ),
    "routing_weights": Frame(
        "moe_routing_weights_hist", _columns("int layer_idx token_idx expert_id, float weight, int step rank")
    ),
    "load_imbalance": Frame(
        "moe_load_imbalance",
        _columns("int layer_idx, float timestamp_sec std_dev max_min_ratio max_mean_ratio, int step num_tokens rank"),
    ),
    "step_activations": Frame(
        "moe_step_activations", _columns("int rank step layer_idx num_tokens, counts counts"), forms=("parquet",)
    ),
    "balance_metrics": Frame(
        "moe_balance_metrics",
        _columns(
            "int layer_idx, str metric project over window, float value step_min step_max, int samples units,"
            "str placement reason"
        ),
    ),
    "capacity": Frame(
        "moe_capacity",
        _columns(
            "int layer_idx, float capacity_factor, int cells assignments slots over_capacity, float over_capacity_pct,"
            "int empty_slots, float empty_slots_pct, int cells_over"
        ),
    ),
    "cross_layer": Frame(
        "moe_cross_layer",
        _columns(
            "int layer_a layer_b, bool adjacent, int tokens tokens_sampled experts_a experts_b,"
            "float mutual_information_bits plug_in_bits chance_bits, int shuffles, float entropy_b_bits explained_pct,"
            "str reason"
        ),
    ),
    "cross_layer_paths": Frame(
        "moe_cross_layer_paths",
        _columns(
            "int layer_a expert_a layer_b expert_b, bool adjacent, int tokens tokens_a tokens_b tokens_both,"
            "float probability probability_low probability_high base_probability lift p_value"
        ),
    ),
    "layer_timings": Frame(
        "moe_layer_timings",
        _columns(
            "int rank step layer_idx num_tokens prefill_tokens decode_tokens kernel_count kernel_time_ns memcpy_count"
            " memcpy_time_ns memset_count memset_time_ns busy_ns gpu_start_ns gpu_end_ns, str launched_by"
        ),
        gpu=True,
    ),
    "kernel_timings": Frame(
        "moe_kernel_timings",
        _columns(
            "int rank layer_idx, str phase kernel_name launched_by, int count total_ns, float mean_ns,int min_ns max_ns"
        ),
        gpu=True,
    ),
    "layer_correlation": Frame(
        "moe_layer_correlation",
        _columns(
            "int rank step layer_idx num_tokens prefill_tokens decode_tokens top_k total_activations active_experts"
            " max_count, float mean_count std_dev max_mean_ratio, int block_m expert_tiles kernel_count kernel_time_ns"
            " busy_ns, str launched_by step_kind, float cv entropy_bits gini, str block_m_source,"
            "int local_experts local_activations local_active_experts local_max_count local_expert_tiles weight_bytes"
            " route_ns dispatch_ns experts_ns combine_ns shared_ns collective_ns other_ns collective_inferred_ns own_ns"
            " step_gpu_ns step_attention_ns step_collective_ns step_sampling_ns step_dense_ns step_norm_ns"
            " step_memory_ns step_recording_ns step_other_ns step_unplaced_ns between_steps_ns, float step_share_pct"
        ),
        gpu=True,
    ),
    "layer_model": Frame(
        "moe_layer_model",
        _columns(
            "int layer_idx, str step_kind target feature role status, int rows steps,"
            "float slope_ns_per_unit slope_ci_low slope_ci_high intercept_ns r2 cv_error_ns cv_error_constant_ns,"
            "str reason sentence, float p_value correlation best_slope_ns_per_unit best_slope_ci_low best_slope_ci_high"
        ),
        gpu=True,
    ),
    "straggler": Frame(
        "moe_straggler",
        _columns(
            "int step layer_idx group ranks ranks_in_group, float mean_own_ns, int max_own_ns, float excess_ns,"
            "int slowest_rank collectives wait_ns transfer_ns"
        ),
        gpu=True,
    ),
    "collectives": Frame(
        "moe_collectives",
        _columns(
            "int step layer_idx ordinal, str kernel_name, bool inferred, int rank start_ns duration_ns wait_ns"
            " transfer_ns last_rank, str phase group_kind, int group ranks, str reason"
        ),
        gpu=True,
    ),
}

#: JSON documents by name: the file's stem.
DOCUMENTS: Mapping[str, str] = {
    "summary": "moe_summary",
    "validation": "moe_capture_validation",
    "layer_model_document": "moe_layer_model",
    "straggler_document": "moe_straggler",
}
GPU_DOCUMENTS = frozenset({"layer_model_document", "straggler_document"})


def names() -> Iterable[str]:
    """Names of all frames and documents."""
    return [*FRAMES, *DOCUMENTS]


#: Name of the folder inside the output folder.
FOLDER = "moe_expert_tracking"


VALIDATION = "moe_capture_validation"
