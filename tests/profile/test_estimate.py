"""The estimate of a capture's bytes, by hand-computed values and against what is really written."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe.capture.recording import recorder
from nvtxmoe.capture.startup.settings import EMITS
from nvtxmoe.formats import schema, word_payloads
from nvtxmoe.sizing.estimate import (
    ARRAY_HEAD,
    BLOB_HEADER,
    COLLECTIVES_A_BLOCK,
    COLLECTIVES_A_STEP,
    CSV_COLLECTIVE,
    CSV_CORRELATION,
    CSV_IMBALANCE,
    CSV_STRAGGLER,
    CSV_TIMINGS,
    META_EVERY,
    OPERATIONS,
    PAIRS_EVERY,
    Estimate,
    estimate,
)
from nvtxmoe.sizing.model_config import ModelShape, model_shape
from scripts.bench import capture_rows, capture_size, result_rows
from tests.support.nsys_runs import again
from tests.support.written_results import written

SHAPE = ModelShape("mixtral", blocks=2, layers=2, experts=8, top_k=2)
ONLY_COUNTS = frozenset({"counts"})

# The shape of a model ------------------------------------------------------------------------------------------------

QWEN = {
    "model_type": "qwen3_moe", "num_hidden_layers": 6, "num_experts": 128, "num_experts_per_tok": 8,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
MIXTRAL = {"model_type": "mixtral", "num_hidden_layers": 32, "num_local_experts": 8, "num_experts_per_tok": 2}
OLMOE = {"model_type": "olmoe", "num_hidden_layers": 16, "num_experts": 64, "num_experts_per_tok": 8}
DEEPSEEK = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "moe_layer_freq": 1,
}  # fmt: skip
GPT_OSS = {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4}


@pytest.mark.parametrize(
    ("config", "layers", "experts", "top_k"),
    [
        (QWEN, 6, 128, 8),
        (QWEN | {"decoder_sparse_step": 2}, 3, 128, 8),  # blocks 1, 3, 5
        (QWEN | {"mlp_only_layers": [0, 5]}, 4, 128, 8),
        (QWEN | {"decoder_sparse_step": 2, "mlp_only_layers": [0, 5]}, 2, 128, 8),
        (QWEN | {"model_type": "qwen2_moe", "num_experts": 60, "num_experts_per_tok": 4}, 6, 60, 4),
        ({"model_type": "qwen3_vl_moe", "text_config": QWEN | {"model_type": "qwen3_vl_moe_text"}}, 6, 128, 8),
        ({"model_type": "some_wrapper", "text_config": MIXTRAL}, 32, 8, 2),
        (MIXTRAL, 32, 8, 2),
        (OLMOE, 16, 64, 8),
        (DEEPSEEK, 58, 256, 8),
        (DEEPSEEK | {"model_type": "deepseek_v2", "first_k_dense_replace": 1}, 60, 256, 8),
        (DEEPSEEK | {"moe_layer_freq": 2}, 29, 256, 8),  # blocks 4, 6, ... 60
        (GPT_OSS, 24, 32, 4),
    ],
)
def test_shapes_that_are_known(config: dict[str, Any], layers: int, experts: int, top_k: int, tmp_path: Path) -> None:
    blocks = config.get("text_config", config)["num_hidden_layers"]
    name = config.get("text_config", config)["model_type"]
    expected = ModelShape(name, blocks, layers, experts, top_k)
    assert model_shape(config) == expected
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_shape(tmp_path) == model_shape(tmp_path / "config.json") == expected


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama", "num_hidden_layers": 32},
        {"model_type": ["mixtral"]},
        MIXTRAL | {"num_local_experts": None},
        MIXTRAL | {"num_experts_per_tok": 9},
        MIXTRAL | {"num_hidden_layers": True},
        {key: value for key, value in DEEPSEEK.items() if key != "first_k_dense_replace"},
        DEEPSEEK | {"first_k_dense_replace": 61},
        DEEPSEEK | {"num_experts_per_tok": None},
        QWEN | {"decoder_sparse_step": 0},
        QWEN | {"mlp_only_layers": 3},
        QWEN | {"mlp_only_layers": list(range(6))},
    ],
)
def test_shapes_that_are_not_guessed(config: dict[str, Any]) -> None:
    assert model_shape(config) is None


@pytest.mark.parametrize("text", [None, "no json", "[1]", "\udcff"])
def test_files_that_are_no_config(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    assert model_shape(tmp_path) is None


# Bytes, by hand ------------------------------------------------------------------------------------------------------


def test_counts_alone_in_the_word_form() -> None:
    """Ten eager steps without ranges: a moe.step range and its 4 words, and a count of 24 + 8 x 4 bytes a layer."""
    found = estimate(SHAPE, tokens=4, steps=10, emit=ONLY_COUNTS)
    meta_marks = 1 + -(-(700 + 2 * (160 + 5 * 8)) // 8)
    marks = 10 * ((1 + 4) + 2 * (1 + 7)) + meta_marks
    assert found.words.report == round(10 * 12.4 + marks * 10.4)
    assert found.words.export == round(10 * 48.4 + marks * 47.3)
    assert found.binary.report is None
    assert found.binary.export == round(
        10 * (61.2 + 61.2 - 61.2 + 32 + 32) + (61.2 + 40 + 1100) + 10 * (61.2 + 32 + 8 + 2 * 56)
    )
    # one assignment a mean expert: 0.65 bytes each
    assert found.journal == round(10 * 24 + 1100 + 20 * (8 + 8 * 0.65))
    assert found.results_direct == round(20 * (43 + 8 * 0.56))
    assert found.results_nsys == round(20 * (43 + 8 * 0.56 + 74 + 250))


def test_ranges_are_six_a_layer_in_eager_steps_only() -> None:
    emit = frozenset({"counts", "ranges"})
    without, eager = (estimate(SHAPE, tokens=4, steps=10, emit=e) for e in (ONLY_COUNTS, emit))
    assert eager.words.report is not None
    assert without.words.report is not None
    assert eager.words.report - without.words.report == round(10 * 2 * 6 * 12.4)
    assert estimate(SHAPE, tokens=4, steps=10, emit=emit, eager=False) == without


def test_sampled_rows() -> None:
    """Three of 250 steps are sampled: 16 + 6 x 2 bytes a token."""
    emit = frozenset({"counts", "topk"})
    with_rows = estimate(SHAPE, tokens=4, steps=250, emit=emit)
    without = estimate(SHAPE, tokens=4, steps=250, emit=ONLY_COUNTS)
    assert with_rows.journal - without.journal == 3 * 2 * (10 + 4 * 2.5 + 8 * 5.5)
    assert with_rows.results_direct - without.results_direct == 3 * 2 * 4 * 2 * 26
    assert estimate(SHAPE, tokens=4, steps=250, emit=emit, log_interval=0) == without


def test_what_the_gpu_adds() -> None:
    """31.7 operations a block, each a kernel row and 0.92 calls; no blocks without experts are left out."""
    shape = ModelShape("deepseek_v3", blocks=3, layers=1, experts=8, top_k=2)
    assert estimate(shape, tokens=4, steps=10).cuda.export == round(30 * 31.7 * (80.9 + 0.92 * 40.1))
    assert estimate(shape, tokens=4, steps=10).cuda.report is None


def test_what_several_ranks_add_to_the_results() -> None:
    """A line of the straggler a (step, layer), and on each rank two collectives in each block and two besides."""
    shape = ModelShape("deepseek_v3", blocks=3, layers=1, experts=8, top_k=2)
    one, four = (estimate(shape, tokens=4, steps=10, ranks=ranks, emit=ONLY_COUNTS) for ranks in (1, 4))
    assert four.results_direct == pytest.approx(4 * one.results_direct, abs=2)
    assert four.results_nsys == pytest.approx(4 * one.results_nsys + 10 * 43 + 4 * 10 * (3 * 2 + 2) * 187, abs=2)


def test_without_counts_there_are_none_in_the_results() -> None:
    assert estimate(SHAPE, tokens=4, steps=10, emit=frozenset()).results_direct == 0


def test_physical_counts_only_with_eplb() -> None:
    emit = frozenset({"physical", "counts"})
    plain, eplb = (estimate(SHAPE, tokens=4, steps=10, emit=emit, eplb=on) for on in (False, True))
    assert plain == estimate(SHAPE, tokens=4, steps=10, emit=ONLY_COUNTS)
    assert eplb.journal - plain.journal == round(20 * (8 + 8 * 0.65))


def test_the_disk() -> None:
    found = estimate(SHAPE, tokens=4, steps=10)
    assert found.disk(("moe",), "words") == (found.journal + found.results_direct, False)
    assert found.words.report is not None
    assert found.words.export is not None
    assert found.cuda.export is not None
    assert found.disk(("nsys",), "words") == (
        found.words.report + found.words.export + found.cuda.export + found.results_nsys, True,
    )  # fmt: skip
    assert found.binary.export is not None
    assert found.disk(("nsys",), "binary")[0] == found.binary.export + found.cuda.export + found.results_nsys
    both = found.disk(("nsys", "moe"), "words")[0]
    assert both == found.disk(("nsys",), "words")[0] + found.disk(("moe",), "words")[0]


def test_pairs() -> None:
    """250 steps are three spans: 32 + 4 x 28 bytes, 250 x 4 pairs over 3 x 28."""
    emit = frozenset({"counts", "pairs"})
    with_pairs, without = (estimate(SHAPE, tokens=4, steps=250, emit=e) for e in (emit, ONLY_COUNTS))
    assert with_pairs.binary.export is not None
    assert without.binary.export is not None
    assert with_pairs.binary.export - without.binary.export == pytest.approx(3 * 2 * (61.2 + 32 + 144), abs=1)
    each = 0.88 + (1.15 - 0.88) * (1000 / 84 - 4) / 12
    assert with_pairs.journal - without.journal == pytest.approx(3 * 2 * (8 + 28 * each), abs=1)


def test_what_comes_now_and_then_comes_as_often_as_it_is_sent() -> None:
    assert (META_EVERY, PAIRS_EVERY) == (recorder.META_EVERY, recorder.PAIRS_EVERY)


# More of anything never estimates less -------------------------------------------------------------------------------


def figures(found: Estimate) -> list[int]:
    sizes = (*vars(found.words).values(), *vars(found.binary).values(), *vars(found.cuda).values())
    return [*(one or 0 for one in sizes), found.journal, found.results_direct, found.results_nsys]


@given(
    layers=st.integers(1, 100),
    experts=st.integers(8, 600),
    top_k=st.integers(1, 8),
    tokens=st.integers(1, 20_000),
    steps=st.integers(1, 3000),
    ranks=st.integers(1, 16),
    log_interval=st.integers(2, 300),
    emit=st.sets(st.sampled_from(sorted(EMITS))),
    more=st.sampled_from(["layers", "experts", "top_k", "tokens", "steps", "ranks", "log_interval", "emit", "eplb"]),
    by=st.integers(1, 1000),
)
def test_more_never_takes_less(
    layers: int, experts: int, top_k: int, tokens: int, steps: int, ranks: int, log_interval: int, emit: set[str],
    more: str, by: int,
) -> None:  # fmt: skip
    asked: dict[str, Any] = {
        "layers": layers, "experts": experts, "top_k": top_k, "tokens": tokens, "steps": steps, "ranks": ranks,
        "log_interval": log_interval, "emit": frozenset(emit), "eplb": False,
    }  # fmt: skip

    def of(asked: dict[str, Any]) -> list[int]:
        options = dict(asked)
        count, experts, top_k = options.pop("layers"), options.pop("experts"), options.pop("top_k")
        return figures(estimate(ModelShape("x", count, count, experts, top_k), **options))

    greater = dict(asked)
    if more == "emit":
        greater["emit"] = frozenset(EMITS)
    elif more == "eplb":
        greater["eplb"] = True
    elif more == "log_interval":  # the smaller, the more
        greater["log_interval"] = max(1, log_interval - by)
    elif more == "top_k":
        greater["top_k"] = min(experts, top_k + by)
    else:
        greater[more] += by
    for less, larger in zip(of(asked), of(greater), strict=True):
        assert larger >= less - 1  # of rounding


# Against what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(8, 2, 16), (64, 8, 256), (128, 8, 8), (256, 8, 64)])
def test_the_journal_takes_what_was_estimated(experts: int, top_k: int, tokens: int) -> None:
    """Fresh routing, other seeds than those of the measurement: within a fifth."""
    shape = ModelShape("x", 4, 4, experts, top_k)
    found = estimate(shape, tokens=tokens, steps=100, emit=ONLY_COUNTS)
    bare = estimate(shape, tokens=tokens, steps=100, emit=frozenset())
    written = capture_size.journal_bytes("counts", tokens, experts, top_k, seed=99, layers=4, steps=20)
    assert (found.journal - bare.journal) / 400 == pytest.approx(written, rel=0.2)


@pytest.mark.parametrize("kind", ["tp2", "dp2"])
def test_the_results_take_what_was_estimated(kind: str, golden_vllm_ranks: dict[str, Path], tmp_path: Path) -> None:
    """Of a whole analysis of two ranks: the files with times within a fifth; and the collectives a block and step."""
    found = written(tmp_path, golden_vllm_ranks[kind])
    size = {stem: (found.folder / f"{stem}.csv").stat().st_size for stem in result_rows.GROWING}
    cells = len(found.rows("moe_layer_timings", "rank"))
    timed = cells * (CSV_TIMINGS + CSV_CORRELATION)
    assert size["moe_layer_timings"] + size["moe_layer_correlation"] == pytest.approx(timed, rel=0.2)
    straggler = len(found.rows("moe_straggler", "step")) * CSV_STRAGGLER
    assert size["moe_straggler"] == pytest.approx(straggler, rel=0.2)
    assert size["moe_collectives"] == pytest.approx(
        len(found.rows("moe_collectives", "rank")) * CSV_COLLECTIVE, rel=0.25
    )
    steps, blocks = cells / 4, 4
    wanted = steps * (blocks * COLLECTIVES_A_BLOCK + COLLECTIVES_A_STEP)
    assert wanted * 0.8 <= len(found.rows("moe_collectives", "rank")) <= wanted


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(8, 2, 16), (64, 8, 64), (128, 8, 8)])
def test_counts_in_the_results_take_what_was_estimated(experts: int, top_k: int, tokens: int) -> None:
    """Fresh routing, other seeds than those of the measurement: within a fifth, but for so few experts."""
    rng = np.random.default_rng(99)
    number = result_rows.LONG_STEPS * result_rows.LAYERS
    drawn = [capture_size.routing(rng, tokens, experts, top_k)[0] for _ in range(number)]
    shape = ModelShape("x", 1, 1, experts, top_k)
    estimated = estimate(shape, tokens=tokens, steps=1000, emit=ONLY_COUNTS).results_direct / 1000 - CSV_IMBALANCE
    assert result_rows.parquet_bytes(drawn, experts) == pytest.approx(estimated, rel=0.2 if experts > 8 else 0.5)


def test_blobs_of_a_real_export_are_the_payload_behind_its_header(golden_1gpu: Path) -> None:
    """moe.counts of 32 experts; arrays of moe.topk are longer by their length, a row of 16 + 6 x 4 bytes a token."""
    with closing(sqlite3.connect(golden_1gpu)) as database:
        rows = database.execute(
            "SELECT coalesce(e.text, s.value), length(e.binaryData) FROM NVTX_EVENTS e "
            "LEFT JOIN StringIds s ON s.id = e.textId WHERE e.eventType = 34"
        ).fetchall()
    counts = {size for name, size in rows if name == "moe.counts"}
    topk = {size for name, size in rows if name == "moe.topk"}
    assert counts == {BLOB_HEADER + 24 + 4 * 32}
    assert len(topk) > 1
    assert {(size - BLOB_HEADER - ARRAY_HEAD) % (16 + 6 * 4) for size in topk} == {0}


def test_binary_counts_are_split_above_the_largest_payload() -> None:
    """Nine layers of 65,536 experts: three fit into 1 MiB."""
    large = ModelShape("x", 9, 9, 65_536, 8)
    layer_bytes = schema.counts_dtype(large.experts).itemsize
    assert 3 * layer_bytes < schema.MOST_PAYLOAD_BYTES < 4 * layer_bytes
    found, without = (
        estimate(large, tokens=4, steps=1, emit=emit).binary.export for emit in (ONLY_COUNTS, frozenset[str]())
    )
    assert found is not None
    assert without is not None
    assert found - without == pytest.approx(3 * (61.2 + 32 + 8) + 9 * layer_bytes, abs=1)


def test_operations_a_layer_are_those_of_the_golden_captures(golden_1gpu: Path, golden_2gpu: Path) -> None:
    """The reference figures of tests/golden/README.md over their count cells; the larger is the estimate's."""
    one, _ = capture_rows.activity(golden_1gpu)
    two, _ = capture_rows.activity(golden_2gpu)
    assert one == pytest.approx((1300 + 552 + 3044) / 184)
    assert two == pytest.approx((3408 + 1128 + 7396) / 376)
    assert pytest.approx(two, abs=0.05) == OPERATIONS


def test_the_marks_are_those_of_the_word_form() -> None:
    """The number of marks behind the estimate, from the encoder itself."""
    from nvtxmoe.sizing.estimate import _marks  # noqa: PLC0415

    for size in (1, 7, 8, 9, 56, 100):
        assert _marks(size) == len(word_payloads.encode(bytes(size)))


def test_a_real_report_takes_what_was_estimated(
    nsys_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes per mark under the real nsys, within a third of the constants: on a busy machine times lie further apart,
    and numbers that are further apart take more bytes.
    """
    monkeypatch.setattr(capture_size, "SHORT", 10_000)
    monkeypatch.setattr(capture_size, "LONG", 50_000)
    for kind, report, export in (("marks of counts", 10.4, 47.3), ("ranges", 12.4, 48.4)):
        weighed = again(partial(capture_size.slopes, nsys_path, tmp_path, kind), tmp_path)
        assert weighed[0] == pytest.approx(report, rel=1 / 3)
        assert weighed[1] == pytest.approx(export, rel=1 / 3)
