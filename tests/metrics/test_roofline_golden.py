"""moe_roofline of every real capture, against plain Python over the rows of the export."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from scripts.bench.roofline_by_hand import Row, roofline
from tests.support.edited_meta import edited_meta, with_sizes
from tests.support.written_results import written

pytestmark = pytest.mark.slow

CAPTURES = ("1gpu", "2gpu", "vllm", "tp2", "dp2", "eplb", "two-tp2", "two-dp2", "fp8", "gpt-oss", "program", "ep")
#: Those whose moe.meta has the sizes of experts.
WITH_SIZES = ("ep",)
#: Column of moe_roofline by name in the script.
COLUMNS = {
    "routed_rows": "routed_rows",
    "active": "local_active_experts",
    "padded_rows": "padded_rows",
    "weight_bytes": "weight_bytes",
    "activation_bytes": "activation_bytes",
    "routed_flop": "routed_flop",
    "matmul_ns": "matmul_ns",
    "experts_ns": "experts_ns",
    "mbu_pct": "mbu_pct",
    "mfu_pct": "mfu_pct",
    "limit": "limit",
    "roofline_ns": "roofline_ns",
}
#: Sizes of the models of scripts/gpu/made_up_models.py, which these captures ran; they were recorded without.
SIZES: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 256, "gated": True, "activation_dtype": "bfloat16"}


@pytest.fixture
def exports(
    golden_1gpu: Path,
    golden_2gpu: Path,
    golden_vllm: Path,
    golden_program: Path,
    golden_vllm_ranks: dict[str, Path],
    golden_two_reports: dict[str, list[Path]],
    golden_vllm_033: dict[str, Path],
    golden_h200_ranks: Path,
) -> dict[str, list[Path]]:
    one = {"1gpu": golden_1gpu, "2gpu": golden_2gpu, "vllm": golden_vllm, "program": golden_program}
    one["ep"] = golden_h200_ranks
    alone = {**one, **golden_vllm_ranks, **golden_vllm_033}
    return {
        **{name: [path] for name, path in alone.items()},
        **{f"two-{name}": paths for name, paths in golden_two_reports.items()},
    }


def same(found: Any, wanted: Any) -> bool:
    if isinstance(found, float) and isinstance(wanted, (int, float)):
        return math.isclose(found, wanted, rel_tol=1e-8)
    return bool(found == wanted)


def compare(paths: list[Path], folder: Path) -> tuple[list[Row], pl.DataFrame]:
    """Compare every cell; return the script's rows and the table."""
    by_hand = roofline(paths)
    table = written(folder, *paths, formats=("parquet",)).folder / "moe_roofline.parquet"
    rows = {(row["rank"], row["step"], row["layer_idx"]): row for row in pl.read_parquet(table).iter_rows(named=True)}
    assert set(by_hand) <= set(rows)
    for key, wanted in by_hand.items():
        # Of data-parallel ranks of which one has no counts the script knows times alone.
        names = COLUMNS if wanted["known"] else ("matmul_ns", "experts_ns")
        for name in names:
            assert same(rows[key][COLUMNS[name]], wanted[name]), (key, name, rows[key], wanted)
    return list(by_hand.values()), pl.read_parquet(table)


@pytest.mark.parametrize("capture", CAPTURES)
def test_as_recorded(capture: str, exports: dict[str, list[Path]], tmp_path: Path) -> None:
    """Without sizes in moe.meta operations are null, not guessed."""
    by_hand, table = compare(exports[capture], tmp_path)
    assert all(row["matmul_ns"] for row in by_hand)
    if capture in WITH_SIZES:
        assert table["routed_flop"].null_count() == table["mfu_pct"].null_count() == 0
        assert {row["limit"] for row in by_hand} == {"memory"}
        return
    assert table["routed_flop"].null_count() == table["mfu_pct"].null_count() == len(table)
    assert sum(row["known"] for row in by_hand) >= 0.9 * len(by_hand)


@pytest.mark.parametrize(
    ("capture", "input_dtype", "limits"),
    [
        ("fp8", "float8_e4m3fn", {"memory"}),
        ("dp2", "bfloat16", {"memory"}),
    ],
)
def test_with_sizes(
    capture: str, input_dtype: str, limits: set[str], exports: dict[str, list[Path]], tmp_path: Path
) -> None:
    """With the sizes that today's capture records everything is known."""
    edit = partial(with_sizes, **SIZES, input_dtype=input_dtype)
    paths = [edited_meta(path, tmp_path / path.name, edit) for path in exports[capture]]
    by_hand, table = compare(paths, tmp_path)
    known = [row for row in by_hand if row["known"]]
    assert all(row["roofline_ns"] < row["matmul_ns"] for row in known)
    assert {row["limit"] for row in known} == limits
    assert table.filter(pl.col("routed_rows").is_not_null())["roofline_pct"].null_count() == 0
