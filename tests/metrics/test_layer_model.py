"""moe_layer_model as `analyze` writes it: of constructed exports whose times are planted, and of real captures."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from nvtxmoe_analysis.metrics.layer_model.design import design
from nvtxmoe_analysis.metrics.layer_model.samples import samples
from nvtxmoe_analysis.outputs.layer_model import TABLE
from nvtxmoe_analysis.stats import huber
from tests.support.export_builder import Export, Process
from tests.support.written_results import Written, written

EXPERTS = 8


def run_of(rank: int, ranks: int, *, slope_ns: int, steps: int = 40, layers: int = 2) -> Export:
    """Each active expert costs ``slope_ns`` in layer 0 and twice that in layer 1, on top of 5 us; nothing is noisy."""
    export = Export()
    worker = Process(
        export, pid=100 + rank, rank=rank, world_size=ranks, tp_size=ranks, layers=layers, experts=EXPERTS, top_k=2
    )
    worker.send_meta()
    rng = np.random.default_rng(0)
    for step in range(steps):
        tokens = int(rng.integers(4, 30))
        counts = [_routed(rng, tokens) for _ in range(layers)]
        with worker.step(step, tokens=tokens):
            for layer in range(layers):
                active = sum(count > 0 for count in counts[layer])
                with worker.layer(layer), worker.phase("experts", layer):
                    kernel = worker.kernel(name="fused_moe")
                    kernel["end"] = kernel["start"] + 5000 + slope_ns * (layer + 1) * active
        for layer in range(layers):
            worker.counts(step, layer, counts[layer], tokens=tokens)
    return export


def _routed(rng: np.random.Generator, tokens: int) -> list[int]:
    popular = rng.normal(0, 2, EXPERTS)
    chosen = np.argsort(-(popular + rng.gumbel(size=(tokens, EXPERTS))), axis=1)[:, :2]
    return [int(count) for count in np.bincount(chosen.ravel(), minlength=EXPERTS)]


def best(found: Written) -> dict[tuple[str, str], dict[str, str]]:
    """The best row by layer and kind, as text."""
    names = list(TABLE.types)
    rows = [dict(zip(names, row, strict=True)) for row in found.rows("moe_layer_model", *names)]
    return {(row["layer_idx"], row["step_kind"]): row for row in rows if row["role"] == "best"}


def test_planted_times_come_out(tmp_path: Path) -> None:
    """Through attribution, features and fit: exact slopes of each layer, and their mean of all."""
    found = written(tmp_path, run_of(0, 2, slope_ns=700), run_of(1, 2, slope_ns=700))
    rows = best(found)
    assert set(rows) == {("", "decode"), ("0", "decode"), ("1", "decode")}
    for layer, slope in (("0", 700), ("1", 1400)):
        row = rows[layer, "decode"]
        assert (row["feature"], row["target"]) == ("local_active_experts", "own_ns")
        assert [float(row[f"slope_{end}"]) for end in ("ns_per_unit", "ci_low", "ci_high")] == pytest.approx(
            [slope] * 3
        )
        assert float(row["intercept_ns"]) == pytest.approx(5000)
        assert float(row["r2"]) == pytest.approx(1)
        assert float(row["cv_error_ns"]) == pytest.approx(0, abs=1e-3)
        assert (row["rows"], row["steps"]) == ("80", "40")
        assert row["sentence"].startswith(f"layer {layer}, decode: each further active expert costs {slope / 1000:.1f}")
    assert float(rows["", "decode"]["slope_ns_per_unit"]) == pytest.approx(1050)
    assert rows["", "decode"]["rows"] == "160"


def test_no_slope_at_all(tmp_path: Path) -> None:
    """A time without any noise that nothing moves."""
    rows = best(written(tmp_path, run_of(0, 1, slope_ns=0)))
    for row in rows.values():
        assert (row["status"], row["feature"], row["slope_ns_per_unit"]) == ("no_effect", "", "")
        assert float(row["cv_error_constant_ns"]) == pytest.approx(0, abs=1e-6)
    assert rows["0", "decode"]["sentence"] == (
        "layer 0, decode: nothing explains the 5.0 us, no effect of any feature can be told from chance: "
        "a further active expert costs between 0 and 0 ns (95 % CI)"
    )


def test_a_short_run_is_refused(tmp_path: Path) -> None:
    """All rows are there, and each says why it says nothing."""
    found = written(tmp_path, run_of(0, 1, slope_ns=700, steps=3))
    assert found.text("moe_layer_model") == (
        ",".join(TABLE.types) + "\n"
        ",decode,own_ns,,best,refused,6,3,,,,,,,,"
        '"6 rows in 3 steps, at least 20 rows and 8 steps needed",'
        '"all layers, decode: not fitted, 6 rows in 3 steps, at least 20 rows and 8 steps needed",,,,,\n'
        "0,decode,own_ns,,best,refused,3,3,,,,,,,,"
        '"3 rows in 3 steps, at least 20 rows and 8 steps needed",'
        '"layer 0, decode: not fitted, 3 rows in 3 steps, at least 20 rows and 8 steps needed",,,,,\n'
        "1,decode,own_ns,,best,refused,3,3,,,,,,,,"
        '"3 rows in 3 steps, at least 20 rows and 8 steps needed",'
        '"layer 1, decode: not fitted, 3 rows in 3 steps, at least 20 rows and 8 steps needed",,,,,\n'
    )
    assert list(found.json("moe_layer_model")["layers"]) == ["all", "layer_0", "layer_1"]


def test_a_run_without_work_has_no_rows(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.step(0, tokens=2):
        worker.kernel(name="attention")
    found = written(tmp_path, export)
    assert found.text("moe_layer_model") == ",".join(TABLE.types) + "\n"
    assert found.json("moe_layer_model")["layers"] == {}


# Real captures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_gpu(golden_1gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("model"), golden_1gpu)


def test_active_experts_explain_decode_on_a_gpu(one_gpu: Written) -> None:
    """42 steps of decode on an H100: 1.6 to 1.7 us an expert in every layer; prefill and mixed steps are too few."""
    rows = best(one_gpu)
    assert {
        layer: row["sentence"].split(", imbalance")[0] for (layer, kind), row in rows.items() if kind == "decode"
    } == {
        "": "all layers, decode: each further active expert costs 1.7 us (95 % CI 1.3 to 2.0)",
        "0": "layer 0, decode: active experts and expert tiles can't be told apart (correlation 1.00): each further "
        "active expert costs 1.7 us (95 % CI 1.2 to 2.2), or each further expert tile costs 1.7 us "
        "(95 % CI 1.1 to 2.4)",
        "1": "layer 1, decode: each further active expert costs 1.6 us (95 % CI 1.4 to 1.9)",
        "2": "layer 2, decode: each further active expert costs 1.6 us (95 % CI 1.2 to 2.0)",
        "3": "layer 3, decode: each further active expert costs 1.7 us (95 % CI 1.3 to 2.1)",
    }
    assert {row["status"] for (_, kind), row in rows.items() if kind != "decode"} == {"refused"}


def test_statsmodels_agrees_on_a_gpu(statsmodels: Any, one_gpu: Written) -> None:
    """RLM over the rows of moe_layer_correlation itself, beside a line in time; the noise has next to no memory."""
    rows = pl.read_csv(one_gpu.folder / "moe_layer_correlation.csv")
    for (layer, kind), row in best(one_gpu).items():
        if kind != "decode" or not layer:
            continue
        mine = rows.filter((pl.col("layer_idx") == int(layer)) & (pl.col("step_kind") == "decode"))
        assert mine["launched_by"].unique().to_list() == ["graph"]
        experts = mine.sort("step")["local_active_experts"].to_numpy().astype(np.float64)
        columns = statsmodels.add_constant(np.column_stack([experts, np.linspace(-0.5, 0.5, len(experts))]))
        theirs = statsmodels.RLM(
            mine.sort("step")["own_ns"].to_numpy(), columns, M=statsmodels.robust.norms.HuberT(1.345)
        ).fit(tol=1e-10)
        room = 0.2 * theirs.bse
        assert float(row["slope_ns_per_unit"]) == pytest.approx(theirs.params[1], abs=room[1])
        assert float(row["intercept_ns"]) == pytest.approx(theirs.params[0], abs=room[0])


def test_two_gpus_with_half_the_experts_each(golden_2gpu: Path, tmp_path: Path) -> None:
    """Of a rank's own experts, both ranks together."""
    rows = best(written(tmp_path, golden_2gpu))
    row = rows["", "decode"]
    assert (row["feature"], row["rows"], row["steps"]) == ("local_active_experts", "344", "43")
    low, slope, high = (float(row[f"slope_{name}"]) for name in ("ci_low", "ns_per_unit", "ci_high"))
    assert 1000 < low < 1200 < slope < 1400 < high < 1600


def test_a_program_whose_experts_all_work(golden_program: Path, tmp_path: Path) -> None:
    """40 steps of 32 tokens over 16 experts: 14 to 16 are active, and it makes no difference that shows. Eager steps,
    one in five, are quicker by a microsecond, which is no feature's doing."""
    rows = best(written(tmp_path, golden_program))
    assert {row["status"] for row in rows.values()} == {"no_effect"}


@pytest.mark.parametrize("capture", ["tp2", "dp2"])
def test_statsmodels_agrees_where_few_values_decide(
    statsmodels: Any, golden_vllm_ranks: dict[str, Path], tmp_path: Path, capture: str
) -> None:
    """Rows of which few differ in a feature, so that the scale settles slowly: every fit, with and without a trend."""
    found = written(tmp_path, golden_vllm_ranks[capture])
    frame = pl.read_csv(found.folder / "moe_layer_correlation.csv", infer_schema_length=None)
    fits = 0
    for sample in samples(frame, "own_ns"):
        if sample.layer is None or sample.reason is not None:
            continue
        designed, strata = design(sample), sample.strata
        levels = (strata.stratum[:, None] == np.arange(strata.strata)).astype(np.float64)
        y = strata.centred(sample.y)
        for x, trend in product(designed.x, (np.zeros((0, sample.rows)), sample.trend)):
            ours = huber.fit(y, x[None, None], strata, columns=trend).slopes[0, 0]
            norm = statsmodels.robust.norms.HuberT(huber.HUBER_K)
            theirs = statsmodels.RLM(y, np.column_stack([x, levels, trend.T]), M=norm).fit(maxiter=2000, tol=1e-12)
            assert ours == pytest.approx(theirs.params[0], abs=0.1 * theirs.bse[0])
            fits += 1
    assert fits >= 30


def test_no_error_of_what_can_not_be_predicted(golden_vllm_ranks: dict[str, Path], tmp_path: Path) -> None:
    """Without the steps in which the batch runs out some slopes are nothing but rounding."""
    found = written(tmp_path, golden_vllm_ranks["dp2"])
    errors = [(e, c) for e, c in found.rows("moe_layer_model", "cv_error_ns", "cv_error_constant_ns") if e]
    assert errors
    assert max(float(error) / float(constant) for error, constant in errors) < 100


# The document ------------------------------------------------------------------------------------------------------


def test_the_document_says_what_the_table_says(one_gpu: Written) -> None:
    document: dict[str, Any] = one_gpu.json("moe_layer_model")
    assert document["options"]["minimum_rows"] == 20
    seen = 0
    for layer, kinds in document["layers"].items():
        for kind, entry in kinds.items():
            for role, terms in (("best", [entry]), ("alternative", entry["alternatives"]), ("added", entry["added"])):
                for term in terms:
                    seen += 1
                    row = _row(
                        one_gpu, "" if layer == "all" else layer.removeprefix("layer_"), kind, role, term["feature"]
                    )
                    for name in set(TABLE.types) & set(term) - {"role"}:
                        assert _same(term[name], row[name]), (layer, kind, role, name)
    assert seen == len(one_gpu.rows("moe_layer_model", "role"))


def _row(found: Written, layer: str, kind: str, role: str, feature: str | None) -> dict[str, str]:
    names = list(TABLE.types)
    rows = (dict(zip(names, row, strict=True)) for row in found.rows("moe_layer_model", *names))
    key = (layer, kind, role, feature or "")
    (row,) = [r for r in rows if (r["layer_idx"], r["step_kind"], r["role"], r["feature"]) == key]
    return row


def _same(value: object, text: str) -> bool:
    if value is None:
        return text == ""
    return math.isclose(float(text), value, rel_tol=1e-8) if isinstance(value, float) else str(value) == text
