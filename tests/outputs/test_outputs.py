"""Every file that `analyze` writes, whole, on a run small enough to compute by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.outputs.write import as_text
from tests.support.export_builder import Export, Process
from tests.support.written_results import TABLES, Written, literal, written

LAYERS = [
    {"layer": 3, "name": "model.layers.3.mlp", "num_experts": 4, "top_k": 2, "local_experts": None, "block_m": 2},
    {"layer": 7, "name": "model.layers.7.mlp", "num_experts": 3, "top_k": 1, "local_experts": None},
]


def begin(export: Export, at_ns: int) -> None:
    """Let the next range start at this time."""
    export.now = at_ns - 10


def on_gpu(row: dict[str, Any], start: int, end: int) -> None:
    """Say when an operation ran; its launch is where it is."""
    row.update(start=start, end=end)


def send_counts(worker: Process, step: int, layer: int, counts: list[int], tokens: int, top_k: int) -> None:
    payload = (step, layer, worker.rank, tokens, top_k, counts)
    worker.mark("counts", np.array(payload, dtype=schema.counts_dtype(len(counts))))


def send_topk(worker: Process, step: int, layer: int, tokens: list[tuple[list[int], list[float]]]) -> None:
    rows = [(step, layer, index, experts, weights) for index, (experts, weights) in enumerate(tokens)]
    worker.mark("topk", np.array(rows, dtype=schema.topk_dtype(len(tokens[0][0]))))


def small_run(encoding: str = "binary") -> Export:
    """Two layers that differ in everything; a prefill, a decode and an empty step.

    Step 10: tokens chose (0, 2), (2, 0), (0, 3) in layer 3 and 1, 1, 0 in layer 7.
    Step 11: (0, 2), (3, 0) in layer 3, where layer 7 has no GPU work; 2, 1 in layer 7.
    """
    export = Export()
    worker = Process(export, encoding=encoding, meta={"layers": LAYERS})
    worker.send_meta()
    begin(export, 1_000_000_000)
    with worker.step(10, tokens=3, prefill=3):
        worker.kernel(name="flash_fwd_kernel")
        with worker.layer(3):
            with worker.phase("route", 3):
                on_gpu(worker.kernel(name="topk<int, 4>"), 5000, 5100)
            with worker.phase("experts", 3):
                on_gpu(worker.kernel(name="fused"), 5100, 5400)
                on_gpu(worker.kernel(name="fused"), 5300, 5500)  # beside the first
            on_gpu(worker.memcpy(), 5600, 5650)
        with worker.layer(7), worker.phase("experts", 7):
            on_gpu(worker.memset(), 6000, 6020)
            on_gpu(worker.kernel(name="fused"), 6100, 6300)
    send_counts(worker, 10, 3, [3, 0, 2, 1], tokens=3, top_k=2)
    send_counts(worker, 10, 7, [1, 2, 0], tokens=3, top_k=1)
    send_topk(worker, 10, 3, [([0, 2], [0.75, 0.25]), ([2, 0], [2 / 3, 1 / 3]), ([0, 3], [1.0, 0.0])])
    send_topk(worker, 10, 7, [([1], [1.0]), ([1], [0.1]), ([0], [1e-30])])
    begin(export, 1_500_000_000)
    with worker.step(11, tokens=2), worker.layer(3):
        on_gpu(worker.kernel(name="fused"), 7000, 7100)
    send_counts(worker, 11, 3, [2, 0, 1, 1], tokens=2, top_k=2)
    send_counts(worker, 11, 7, [0, 1, 1], tokens=2, top_k=1)
    begin(export, 2_250_000_000)
    with worker.step(12, tokens=0):
        pass
    send_counts(worker, 12, 3, [0, 0, 0, 0], tokens=0, top_k=2)
    return export


@pytest.fixture
def small(tmp_path: Path) -> Written:
    return written(tmp_path, small_run())


def test_activations(small: Written) -> None:
    assert small.text("moe_expert_activations") == literal("""
        layer_idx,expert_id,activation_count,percentage
        3,0,5,50
        3,1,0,0
        3,2,3,30
        3,3,2,20
        7,0,1,20
        7,1,3,60
        7,2,1,20
        """)


def test_coselection(small: Written) -> None:
    """Of the three sampled tokens of layer 3; a top-1 layer has no pairs."""
    assert small.text("moe_expert_coselection") == literal("""
        layer_idx,expert_id_1,expert_id_2,coselection_count,tokens
        3,0,2,2,3
        3,0,3,1,3
        """)


def test_routing_weights(small: Written) -> None:
    """In routing order; float32 weights as %.9g."""
    assert small.text("moe_routing_weights_hist") == literal("""
        layer_idx,token_idx,expert_id,weight,step,rank
        3,0,0,0.75,10,0
        3,0,2,0.25,10,0
        3,1,2,0.666666687,10,0
        3,1,0,0.333333343,10,0
        3,2,0,1,10,0
        3,2,3,0,10,0
        7,0,1,1,10,0
        7,1,1,0.100000001,10,0
        7,2,0,1e-30,10,0
        """)


def test_load_imbalance(small: Written) -> None:
    """Of (3, 0, 2, 1) the variance is 5/4, of (1, 2, 0) 2/3, of (2, 0, 1, 1) 1/2, of (0, 1, 1) 2/9."""
    assert small.text("moe_load_imbalance") == literal("""
        layer_idx,timestamp_sec,std_dev,max_min_ratio,max_mean_ratio,step,num_tokens,rank
        3,0,1.11803399,,2,10,3,0
        7,0,0.816496581,,2,10,3,0
        3,0.5,0.707106781,,2,11,2,0
        7,0.5,0.471404521,,1.5,11,2,0
        3,1.25,0,,,12,0,0
        """)


def test_summary(small: Written) -> None:
    assert small.text("moe_summary.json") == literal("""
        {
          "layer_3": {
            "num_experts": 4,
            "top_k": 2,
            "total_activations": 10,
            "unique_experts_activated": 3,
            "activation_coverage_pct": 75.0,
            "mean_activations_per_expert": 2.5,
            "std_dev_activations": 1.8027756377319946,
            "min_activations": 0,
            "max_activations": 5,
            "load_balance_ratio": null
          },
          "layer_7": {
            "num_experts": 3,
            "top_k": 1,
            "total_activations": 5,
            "unique_experts_activated": 3,
            "activation_coverage_pct": 100.0,
            "mean_activations_per_expert": 1.6666666666666667,
            "std_dev_activations": 0.9428090415820634,
            "min_activations": 1,
            "max_activations": 3,
            "load_balance_ratio": 3.0
          }
        }
        """)
    assert math.isclose(1.8027756377319946, math.sqrt(13 / 4))  # of (5, 0, 3, 2)
    assert math.isclose(0.9428090415820634, math.sqrt(8 / 9))  # of (1, 3, 1)


def test_layer_timings(small: Written) -> None:
    """Concurrent kernels count twice in kernel_time_ns and once in busy_ns; the copy begins after a gap."""
    assert small.text("moe_layer_timings") == (
        "rank,step,layer_idx,num_tokens,prefill_tokens,decode_tokens,kernel_count,kernel_time_ns,memcpy_count,"
        "memcpy_time_ns,memset_count,memset_time_ns,busy_ns,gpu_start_ns,gpu_end_ns,launched_by\n"
        "0,10,3,3,3,0,3,600,1,50,0,0,550,5000,5650,eager\n"
        "0,10,7,3,3,0,1,200,0,0,1,20,220,6000,6300,eager\n"
        "0,11,3,2,0,2,1,100,0,0,0,0,100,7000,7100,eager\n"
        "0,11,7,2,0,2,0,0,0,0,0,0,0,,,none\n"
        "0,12,3,0,0,0,0,0,0,0,0,0,0,,,none\n"
        "0,12,7,0,0,0,0,0,0,0,0,0,0,,,none\n"
    )


def test_kernel_timings(small: Written) -> None:
    """The longest first within a layer, then what is outside layers; a name with a comma is quoted."""
    assert small.text("moe_kernel_timings") == literal("""
        rank,layer_idx,phase,kernel_name,launched_by,count,total_ns,mean_ns,min_ns,max_ns
        0,3,experts,fused,eager,2,500,250,200,300
        0,3,other,fused,eager,1,100,100,100,100
        0,3,route,"topk<int, 4>",eager,1,100,100,100,100
        0,3,other,[CUDA memcpy kind 1],eager,1,50,50,50,50
        0,7,experts,fused,eager,1,200,200,200,200
        0,7,experts,[CUDA memset],eager,1,20,20,20,20
        0,,step_attention,flash_fwd_kernel,eager,1,100,100,100,100
        """)


def test_copies_are_named_as_nsys_stats_does(tmp_path: Path) -> None:
    path = small_run().save(tmp_path / "named.sqlite")
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE ENUM_CUDA_MEMCPY_OPER (id INTEGER, name TEXT, label TEXT)")
    connection.execute("INSERT INTO ENUM_CUDA_MEMCPY_OPER VALUES (1, 'CUDA_MEMCPY_KIND_HTOD', 'Host-to-Device')")
    connection.commit()
    connection.close()
    names = written(tmp_path, path).rows("moe_kernel_timings", "kernel_name")
    assert names[3] == ("[CUDA memcpy Host-to-Device]",)


def test_layer_correlation(small: Written) -> None:
    """Layer 3 tells its tiles of two rows, layer 7 has the default of 16, and neither the bytes of an expert.

    Of (3, 0, 2, 1) there are ceil(3/2) + ceil(2/2) + ceil(1/2) = 4 tiles; the shares are 1/2, 0, 1/3, 1/6, and the
    differences of all pairs add up to 2 (3 + 1 + 2 + 2 + 1 + 1) = 20, of 2 x 4 x 6.
    """
    assert small.text("moe_layer_correlation") == (
        "rank,step,layer_idx,num_tokens,prefill_tokens,decode_tokens,top_k,total_activations,active_experts,max_count,"
        "mean_count,std_dev,max_mean_ratio,block_m,expert_tiles,kernel_count,kernel_time_ns,busy_ns,launched_by,"
        "step_kind,cv,entropy_bits,gini,block_m_source,local_experts,local_activations,local_active_experts,"
        "local_max_count,local_expert_tiles,weight_bytes,route_ns,dispatch_ns,experts_ns,combine_ns,shared_ns,"
        "collective_ns,other_ns,collective_inferred_ns,own_ns,step_gpu_ns,step_attention_ns,step_collective_ns,"
        "step_sampling_ns,step_dense_ns,step_norm_ns,step_memory_ns,step_recording_ns,step_other_ns,step_unplaced_ns,"
        "between_steps_ns,step_share_pct\n"
        "0,10,3,3,3,0,2,6,3,3,1.5,1.11803399,2,2,4,3,600,550,eager,"
        "prefill,0.745355992,1.45914792,0.416666667,moe.meta,4,6,3,3,4,,100,0,500,0,0,0,0,0,600,"
        "970,100,0,0,0,0,0,0,0,0,0,67.0103093\n"
        "0,10,7,3,3,0,1,3,2,2,1,0.816496581,2,16,2,1,200,220,eager,"
        "prefill,0.816496581,0.918295834,0.444444444,default,3,3,2,2,2,,0,0,200,0,0,0,0,0,200,"
        "970,100,0,0,0,0,0,0,0,0,0,22.6804124\n"
        "0,11,3,2,0,2,2,4,3,2,1,0.707106781,2,2,3,1,100,100,eager,"
        "decode,0.707106781,1.5,0.375,moe.meta,4,4,3,2,3,,0,0,0,0,0,0,100,0,100,"
        "100,0,0,0,0,0,0,0,0,0,0,100\n"
        "0,11,7,2,0,2,1,2,2,1,0.666666667,0.471404521,1.5,16,2,0,0,0,none,"
        "decode,0.707106781,1,0.333333333,default,3,2,2,1,2,,0,0,0,0,0,0,0,0,,"
        "100,0,0,0,0,0,0,0,0,0,0,0\n"
        "0,12,3,0,0,0,2,0,0,0,0,0,,2,0,0,0,0,none,"
        "none,,,,moe.meta,4,0,0,0,0,,0,0,0,0,0,0,0,0,,0,0,0,0,0,0,0,0,0,0,0,\n"
        "0,12,7,0,0,0,,,,,,,,,,0,0,0,none,"
        "none,,,,,,,,,,,0,0,0,0,0,0,0,0,,0,0,0,0,0,0,0,0,0,0,0,\n"
    )
    shares = (1 / 2, 1 / 3, 1 / 6)
    assert math.isclose(-sum(p * math.log2(p) for p in shares), 1.45914792, rel_tol=1e-8)


def test_words_give_the_same_files(small: Written, tmp_path: Path) -> None:
    """The word form of the same run: byte by byte, but for what the validation file says of the encoding."""
    (tmp_path / "words").mkdir()
    words = written(tmp_path / "words", small_run("words"))
    for name in (*(f"{stem}.csv" for stem in TABLES), "moe_summary.json"):
        assert (words.folder / name).read_bytes() == (small.folder / name).read_bytes(), name
    assert words.validation["inputs"][0]["payload_encoding"] == "words"
    assert words.check("words_whole") == ("pass", "Every word-form payload is whole.", {"truncated": 0, "damaged": 0})


def test_parquet_has_what_csv_has(small: Written, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    both = written(tmp_path / "both", small_run(), formats=("csv", "parquet"))
    for stem in TABLES:
        assert both.text(stem) == small.text(stem)
        table = pl.read_parquet(both.folder / f"{stem}.parquet")
        assert as_text(table).write_csv() == small.text(stem)
        read = csv.reader(io.StringIO(small.text(stem)))
        assert next(read) == table.columns
    timings = pl.read_parquet(both.folder / "moe_layer_timings.parquet")
    assert timings.schema == {
        name: pl.String if name == "launched_by" else pl.Int64 for name in timings.columns
    }  # nulls, not zeros or text, where the GPU did nothing
    assert timings["gpu_start_ns"].to_list() == [5000, 6000, 7000, None, None, None]
    weights = pl.read_parquet(both.folder / "moe_routing_weights_hist.parquet")["weight"]
    assert float(weights.to_numpy().astype(np.float32)[2]) == float(np.float32(2 / 3))


# Co-selection ------------------------------------------------------------------------------------------------------

PAIRS_HEADER = "layer_idx,expert_id_1,expert_id_2,coselection_count,tokens\n"


def pairs_run(*, pairs: bool, rank: int = 0, **process: Any) -> Export:
    """One layer, top-3 of 4 experts; step 0 sampled, pairs of both steps."""
    export = Export()
    worker = Process(export, layers=1, experts=4, top_k=3, rank=rank, **process)
    worker.send_meta()
    for step in range(2):
        with worker.step(step), worker.layer(0):
            worker.kernel()
        worker.counts(step, 0, [3, 2, 2, 2])
    worker.topk(0, 0, [[3, 0, 1], [0, 2, 3], [2, 1, 0]])
    if pairs:
        # Over (0,1), (0,2), (0,3), (1,2), (1,3), (2,3).
        table = (0, 1, 0, rank, 6, [4, 3, 4, 2, 5, 0])
        worker.mark("pairs", np.array(table, dtype=schema.pairs_dtype(4)))
    return export


def test_all_pairs_of_a_token_count(tmp_path: Path) -> None:
    """Also the first with the last of a token's top-k, in either order."""
    found = written(tmp_path, pairs_run(pairs=False)).text("moe_expert_coselection")
    assert found == PAIRS_HEADER + "0,0,1,2,3\n0,0,2,2,3\n0,0,3,2,3\n0,1,2,1,3\n0,1,3,1,3\n0,2,3,1,3\n"


@pytest.mark.parametrize("encoding", ["binary", "words"])
def test_exact_pairs_come_first(tmp_path: Path, encoding: str) -> None:
    """Pairs accumulated on the device cover all six tokens; a pair that never met has no row."""
    found = written(tmp_path, pairs_run(pairs=True, encoding=encoding)).text("moe_expert_coselection")
    assert found == PAIRS_HEADER + "0,0,1,4,6\n0,0,2,3,6\n0,0,3,4,6\n0,1,2,2,6\n0,1,3,5,6\n"


def test_with_steps_left_out_samples_serve(tmp_path: Path) -> None:
    """A span of steps can't be divided."""
    kept, dropped = (Selection(last_step=0), Selection(first_step=1))
    found = written(tmp_path, pairs_run(pairs=True), selection=kept).text("moe_expert_coselection")
    assert found.splitlines()[1] == "0,0,1,2,3"
    found = written(tmp_path, pairs_run(pairs=True), selection=dropped).text("moe_expert_coselection")
    assert found == PAIRS_HEADER


def test_pairs_of_selected_layers_and_ranks(tmp_path: Path) -> None:
    def run(selection: Selection) -> int:
        ranks = [pairs_run(pairs=True, rank=rank, world_size=2, pid=100 + rank) for rank in (0, 1)]
        rows = written(tmp_path, *ranks, selection=selection).rows("moe_expert_coselection", "coselection_count")
        return sum(int(count) for (count,) in rows)

    assert run(Selection()) == 2 * 18
    assert run(Selection(ranks=frozenset({1}))) == 18
    assert run(Selection(layers=frozenset({0}))) == 2 * 18
    with pytest.raises(NvtxmoeError, match="the filters keep nothing"):
        run(Selection(layers=frozenset({1})))


@pytest.mark.parametrize("rank", [0, 1])
def test_pairs_of_a_tensor_parallel_group_count_once(tmp_path: Path, rank: int) -> None:
    """Also where the group's first rank is not among the inputs, or left out."""
    both = [pairs_run(pairs=True, rank=r, world_size=2, tp_size=2, pid=100 + r) for r in (0, 1)]
    exact = written(tmp_path, pairs_run(pairs=True)).text("moe_expert_coselection")
    assert written(tmp_path, *both).text("moe_expert_coselection") == exact
    assert written(tmp_path, both[rank]).text("moe_expert_coselection") == exact
    alone = Selection(ranks=frozenset({rank}))
    assert written(tmp_path, *both, selection=alone).text("moe_expert_coselection") == exact


def test_a_layer_without_any_activation(tmp_path: Path) -> None:
    """Shares and ratios of nothing are null, in Parquet too."""
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    with worker.step(0, tokens=0):
        pass
    worker.counts(0, 0, [0, 0, 0, 0], tokens=0)
    found = written(tmp_path, export, formats=("csv", "parquet"))
    assert found.text("moe_expert_activations").splitlines()[1:] == [f"0,{expert},0," for expert in range(4)]
    table = pl.read_parquet(found.folder / "moe_expert_activations.parquet")
    assert table["percentage"].to_list() == [None] * 4
    imbalance = pl.read_parquet(found.folder / "moe_load_imbalance.parquet")
    assert imbalance.select("std_dev", "max_min_ratio", "max_mean_ratio").rows() == [(0.0, None, None)]
    summary = found.json("moe_summary")["layer_0"]
    assert (summary["load_balance_ratio"], summary["activation_coverage_pct"]) == (None, 0.0)
    assert found.verdict == "incomplete"  # nothing of CUDA is there


def test_an_empty_run_has_headers_only(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    found = written(tmp_path, export)
    for stem in TABLES:
        assert found.text(stem).count("\n") == 1
        assert list(csv.DictReader(io.StringIO(found.text(stem)))) == []
    assert found.text("moe_summary.json") == json.dumps({}) + "\n"
