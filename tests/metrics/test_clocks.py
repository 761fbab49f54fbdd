"""Clocks of several reports: the line between bounds against linear programming, and planted offsets in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from nvtxmoe_analysis.metrics.clocks.align import NO_END, NO_START, ReportBounds, align
from nvtxmoe_analysis.metrics.clocks.fit import MOST_DRIFT, TOLERANCE_NS, Line, fit_line, residual_of
from tests.support.collective_simulation import GATHER, SPLIT, Clock, Run, expected, not_split, uneven
from tests.support.written_results import Written, written

Ints = npt.NDArray[np.int64]
EPOCH_NS = 1_700_000_000_000_000_000


# The line -----------------------------------------------------------------------------------------------------------


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def test_one_bound_gives_its_middle() -> None:
    bounds = ints(77), ints(-100), ints(300)
    line = fit_line(*bounds)
    assert line == Line(77, 100, 0.0, 200.0, 1)
    assert residual_of(line, *bounds).at(ints(77)) == [200.0]


def test_bounds_at_one_time_are_intersected() -> None:
    bounds = ints(5, 5, 5), ints(-100, -20, -50), ints(300, 100, 40)
    line = fit_line(*bounds)
    assert (line.offset_ns, line.drift, line.margin_ns) == (10, 0.0, 30.0)
    assert residual_of(line, *bounds).at(ints(5)) == [30.0]


def test_huge_offsets_lose_nothing() -> None:
    """Reports without a common clock may be decades apart."""
    at = 3 * EPOCH_NS // 2
    line = fit_line(ints(0, 1000), ints(at - 5, at - 5), ints(at + 5, at + 5))
    assert line.at(ints(0, 1000)).tolist() == [at, at]


def test_drift_is_found() -> None:
    """20 ppm over a minute are 1.2 ms: with bounds of 4 us to either side no constant offset would do."""
    time = np.arange(0, 60_000_000_000, 7_000_000, dtype=np.int64)
    true = 5_000_000_000 + np.rint(20e-6 * time).astype(np.int64)
    bounds = time, true - 4000, true + 4000
    line = fit_line(*bounds)
    assert line.fits
    assert line.drift == pytest.approx(20e-6, abs=1e-9)
    assert np.abs(line.at(time) - true).max() <= 2
    # Every drift that fits keeps within the bounds at both ends.
    assert residual_of(line, *bounds).at(time) == pytest.approx(4000, abs=100)


@pytest.mark.parametrize(("gap", "fits"), [(2 * TOLERANCE_NS, True), (2 * TOLERANCE_NS + 2, False)])
def test_bounds_that_contradict(gap: int, fits: bool) -> None:
    """Two at one time; within the tolerance the middle of both is taken."""
    bounds = ints(0, 0), ints(0, 500 + gap), ints(500, 9000)
    line = fit_line(*bounds)
    assert line.fits is fits
    assert line.margin_ns == -gap / 2
    assert line.offset_ns == 500 + gap // 2
    assert residual_of(line, *bounds).at(ints(0)) == [0.0]


def oracle(time: Ints, low: Ints, high: Ints) -> tuple[float, float | None]:
    """The best margin, and how far apart two lines that fit can be at an end of the span, by linear programming.

    In us, from the first lower bound, and drift in units of the span: the solver wants numbers of one size.
    """
    span = max(1, int(time.max() - time.min()))
    t = (time - time.min()) / span
    lower, upper = (low - low[0]) / 1e3, (high - low[0]) / 1e3
    # offset + drift * t + margin <= upper, and -offset - drift * t + margin <= -lower.
    rows = np.concatenate([np.stack([np.ones_like(t), t], 1), np.stack([-np.ones_like(t), -t], 1)])
    right = np.concatenate([upper, -lower])
    free, drift = (None, None), (-MOST_DRIFT * span / 1e3, MOST_DRIFT * span / 1e3)

    def solved(costs: list[float], matrix: npt.NDArray[np.float64], limits: list[Any]) -> Any:
        found = linprog(costs, matrix, right, bounds=limits, method="highs-ds", options={"presolve": False})
        assert found.status == 0, found.message
        return found

    margin = -1e3 * solved([0, 0, -1], np.column_stack([rows, np.ones(len(rows))]), [free, drift, free]).fun
    if margin < 0:
        return margin, None
    widest = 0.0
    for end in (0.0, float(t.max())):
        least, most = (sign * solved([sign, sign * end], rows, [free, drift]).fun for sign in (1, -1))
        widest = max(widest, 1e3 * (most - least))
    return margin, widest


bound = st.tuples(st.integers(0, 10**10), st.integers(1, 50_000), st.integers(1, 50_000))


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(bound, min_size=1, max_size=40), st.floats(-300e-6, 300e-6), st.integers(-(10**9), 10**9))
def test_line_against_linear_programming(bounds: list[tuple[int, int, int]], drift: float, offset: int) -> None:
    """The true line keeps between the bounds, so one fits; it is as far from them as can be, and the truth is no
    farther from it than the residual, which is no more than any two lines that fit can differ."""
    time = ints(*(at for at, _, _ in bounds))
    true = offset + np.rint(drift * (time - time.min())).astype(np.int64)
    low, high = true - ints(*(b for _, b, _ in bounds)), true + ints(*(a for _, _, a in bounds))
    line = fit_line(time, low, high)
    residual = residual_of(line, time, low, high)
    margin, widest = oracle(time, low, high)
    assert line.fits
    assert line.margin_ns == pytest.approx(margin, abs=0.1)
    assert (np.abs(line.at(time) - true) <= residual.at(time) + 2).all()
    assert widest is not None
    assert widest / 2 - 2 <= residual.reach_ns.max() <= widest + 2


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(-9000, 9000), st.integers(-5000, 9000)), min_size=1))
def test_any_bounds_against_linear_programming(bounds: list[tuple[int, int, int]]) -> None:
    """Also those between which no line fits."""
    time, low = ints(*(at for at, _, _ in bounds)), ints(*(b for _, b, _ in bounds))
    high = low + ints(*(width for _, _, width in bounds))
    line = fit_line(time, low, high)
    margin, _ = oracle(time, low, high)
    assert line.margin_ns == pytest.approx(margin, abs=0.1)


# Which report against which -----------------------------------------------------------------------------------------


def seen(*collectives: dict[int, tuple[int, int]], reports: int) -> ReportBounds:
    """Collectives given as last start and first end by report."""
    last = np.full((reports, len(collectives)), NO_START)
    first = np.full((reports, len(collectives)), NO_END)
    for number, one in enumerate(collectives):
        for report, (start, end) in one.items():
            last[report, number], first[report, number] = start, end
    ones = np.ones(len(collectives), dtype=np.int64)
    return ReportBounds(ones, last, first)


def test_reports_that_share_nothing_keep_their_own_time() -> None:
    found = align(seen({0: (0, 10)}, {1: (0, 10)}, reports=2), [0, 0])
    assert [(one.reference, one.line, one.fits) for one in found] == [(0, None, True), (1, None, True)]


def test_a_chain_of_reports() -> None:
    """Report 2 meets only report 1: it is put on report 0's axis through it, and the residuals add up."""
    met = seen(
        {0: (1000, 1100), 1: (3000, 3100)},  # 1 is 2000 later than 0
        {0: (5000, 5100), 1: (7000, 7100)},
        {1: (9000, 9200), 2: (4000, 4200)},  # 2 is 5000 earlier than 1, so 3000 earlier than 0
        reports=3,
    )
    found = align(met, [None, 7, None])
    assert [(one.reference, one.against) for one in found] == [(0, None), (0, 0), (0, 1)]
    offsets = [one.line.at(ints(4000)).item() for one in found if one.line is not None]
    assert offsets == [-2000, 3000]
    assert [one.recorded_ns for one in found] == [None, None, None]
    direct, through = found[1].most_residual_ns, found[2].residual_ns(ints(4000)).item()
    assert direct >= 100
    assert through >= direct + 200


def test_the_report_with_the_most_in_common() -> None:
    """Report 2 shares one collective with report 0 and two with report 1."""
    met = seen(
        {0: (0, 100), 1: (0, 100)},
        {0: (200, 300), 1: (200, 300), 2: (200, 300)},
        {0: (400, 500), 1: (400, 500)},
        {1: (600, 700), 2: (600, 700)},
        reports=3,
    )
    assert [one.against for one in align(met, [0, 0, 0])] == [None, 0, 1]


# Whole runs ---------------------------------------------------------------------------------------------------------


def two_reports(folder: Path, other: Clock, **run: Any) -> tuple[Run, Written]:
    """Ranks 0 and 1 in a report whose clock is true, 2 and 3 in one with another clock."""
    ranks = Run([[0, 1], [2, 3]], uneven, clocks=[Clock(recorded_ns=EPOCH_NS), other], gather=True, **run)
    return ranks, written(folder, *ranks.build())


def within(found: Written, run: Run, residual_ns: float) -> bool:
    """Whether every wait and transfer is true but for the residual (and a nanosecond of rounding); those of refused
    collectives are empty."""
    rows = found.rows("moe_collectives", *SPLIT)
    true = expected(run.met)
    assert [row[:4] for row in rows] == [row[:4] for row in true]
    pairs = [(row[at], other[at]) for row, other in zip(rows, true, strict=True) for at in (4, 5)]
    differ = [abs(int(one) - int(other)) for one, other in pairs if one != ""]
    return max(differ) <= residual_ns + 2


@pytest.mark.parametrize("off_ns", [0, 1500, -40_000_000, 86_400_000_000_000])
@pytest.mark.parametrize("drift", [0.0, 30e-6])
def test_planted_offsets(tmp_path: Path, off_ns: int, drift: float) -> None:
    """Report 1's clock began two seconds later, and its recorded unix time is off by so much."""
    later = 2_000_000_000
    clock = Clock(offset_ns=-later, drift=drift, recorded_ns=EPOCH_NS - later + off_ns)
    run, found = two_reports(tmp_path, clock, steps=200, step_ns=5_000_000)
    said = found.json("moe_straggler")["clock"]
    (first, second) = said["by_report"]
    assert first["aligned_by"] == "its own time"
    holds = off_ns in (0, 1500) and not drift
    # The shortest transfers bound it, and those last 4 us; what was recorded may lie anywhere between the bounds.
    most = 4_200 + (off_ns if holds else 0)
    assert 3_900 <= 1e3 * second["median_residual_us"] <= 1e3 * second["most_residual_us"] <= most
    assert within(found, run, 1e3 * second["most_residual_us"])
    assert second["drift_ppm"] == pytest.approx(1e6 * drift, abs=0.05)
    assert second["collectives"] == 600
    assert second["aligned_by"] == ("recorded clocks" if holds else "collectives")
    assert second["correction_us"] == (
        0
        if holds
        else pytest.approx(-off_ns / 1e3 + 1e6 * drift * second["offset_at_ns"] / 1e9, abs=second["most_residual_us"])
    )
    assert said["verdict"] == ("agree" if holds else "corrected")
    assert (second["recorded_violations"] == 0) is holds
    assert found.check("clocks_agree")[0] == "pass"
    assert not_split(found) == {}


def test_reports_without_recorded_clocks(tmp_path: Path) -> None:
    """The collectives alone tell."""
    run, found = two_reports(tmp_path, Clock(offset_ns=123_456_789_000, recorded_ns=None))
    said = found.json("moe_straggler")["clock"]
    assert said["verdict"] == "corrected"
    assert said["by_report"][1]["recorded_offset_ns"] is None
    assert said["by_report"][1]["recorded_by"] is None
    assert said["statement"].endswith("Not every report has a recorded clock.")
    assert within(found, run, 1e3 * said["by_report"][1]["most_residual_us"])


def test_the_clock_of_moe_meta(tmp_path: Path) -> None:
    """Where the export has none: of two processes one's mark came 2 us after it read its clock, the other's 9 us."""
    run = Run(
        [[0], [1, 2]],
        uneven,
        clocks=[Clock(recorded_ns=EPOCH_NS), Clock(offset_ns=-5000, recorded_ns=None)],
        meta=lambda rank: {"clock": {"unix_ns": EPOCH_NS - 5000 + 100 * rank, "monotonic_ns": 1}},
    )
    exports = run.build()
    ident = exports[1].strings["moe.meta"]
    marks = [row for row in exports[1].rows["NVTX_EVENTS"] if row["textId"] == ident]
    for row, at in zip(marks, (100 + 2000, 200 + 9000), strict=True):
        row["start"] = at
    first, second = written(tmp_path, *exports).json("moe_straggler")["clock"]["by_report"]
    assert (first["recorded_by"], second["recorded_by"]) == ("export", "moe.meta")
    assert second["recorded_offset_ns"] == -7000


def test_two_reports_that_may_be_off_in_opposite_directions(tmp_path: Path) -> None:
    """Ranks 1 and 2 are each bound by rank 0 alone, and the middles are off by 3 us, one early and one late: in step 2
    rank 1 then ends before rank 2 began, which is within what is said not to be known."""
    own = ((30_000, 30_000, 24_000), (30_000, 30_000, 30_000), (10_000, 29_000, 30_000))
    tails = ((2000, 8000, 8000), (8000, 8000, 2000), (10_000, 2000, 10_000))
    run = Run(
        [[0], [1], [2]],
        lambda step, layer, rank: own[step][rank],
        tail_ns=lambda step, layer, rank: tails[step][rank],
        clocks=[Clock(recorded_ns=None)] * 3,
        layers=1,
    )
    found = written(tmp_path, *run.build())
    reports = found.json("moe_straggler")["clock"]["by_report"]
    assert [round(one["offset_ns"] / 1e3) for one in reports[1:]] == [-3, 3]
    assert not_split(found) == {}
    assert within(found, run, 2e3 * max(one["most_residual_us"] for one in reports[1:]))


def test_offsets_that_nothing_bounds(tmp_path: Path) -> None:
    """Transfers of 100 us bound an offset no better than that, which is too much for kernels of that length."""
    _, found = two_reports(tmp_path, Clock(), tail_ns=lambda step, layer, rank: 100_000)
    said = found.json("moe_straggler")["clock"]
    assert said["by_report"][1]["median_residual_us"] >= 90
    assert (said["verdict"], said["collectives_across_reports"], said["collectives_refused"]) == ("not_aligned", 0, 9)
    assert not_split(found) == {"clocks_not_aligned": 36}
    status, message, figures = found.check("clocks_agree")
    assert (status, figures["verdict"]) == ("warn", "not_aligned")
    assert message.endswith("9 of 9 collectives over several reports are not split.")


def test_offsets_that_are_known_well_enough_for_long_waits(tmp_path: Path) -> None:
    """A residual of 100 us is little for a rank that waits three milliseconds: layer 0's collective is split."""
    run = Run(
        [[0], [1]],
        lambda step, layer, rank: 3_000_000 if layer == 0 and rank == step % 2 else 1000,
        tail_ns=lambda step, layer, rank: 100_000,
        clocks=[Clock(), Clock()],
        step_ns=10_000_000,
        steps=4,
    )
    found = written(tmp_path, *run.build())
    assert not_split(found) == {"clocks_not_aligned": 8}
    assert {row[0] for row in found.rows("moe_collectives", "layer_idx", "reason") if row[1]} == {"1"}
    waits = [int(wait) for wait, rank in found.rows("moe_collectives", "wait_ns", "rank") if wait]
    most = 1e3 * found.json("moe_straggler")["clock"]["by_report"][1]["most_residual_us"]
    assert sorted(abs(wait - 2_999_000) <= most for wait in waits) == [False] * 4 + [True] * 4


def test_clocks_that_jump(tmp_path: Path) -> None:
    """Report 1's clock was set back by a millisecond half-way: no line fits, so its kernels are no collective."""
    run = Run([[0], [1]], uneven, steps=40, clocks=[Clock(recorded_ns=0), Clock(recorded_ns=0)])
    exports = run.build()
    for row in exports[1].rows["CUPTI_ACTIVITY_KIND_KERNEL"]:
        if row["start"] > 20_000_000:
            row.update(start=row["start"] - 1_000_000, end=row["end"] - 1_000_000)
    found = written(tmp_path, *exports)
    assert not_split(found) == {"not_simultaneous": 160}
    assert found.check("clocks_agree")[0] == "warn"


def test_groups_within_reports_need_no_common_clock(tmp_path: Path) -> None:
    """Two engines, each on a host of its own, that share no collective."""
    run = Run([[0, 1], [2, 3]], uneven, tp_size=2, meta=lambda rank: {"ep_size": 1, "dp_size": 1}, clocks=[
        Clock(recorded_ns=EPOCH_NS), Clock(offset_ns=999, recorded_ns=None)
    ])  # fmt: skip
    exports = run.build()
    found = written(tmp_path, *exports)
    rows = found.rows("moe_collectives", "rank", "group", "ranks", "reason")
    assert set(rows) == {(str(rank), str(rank // 2 * 2), "2", "") for rank in range(4)}
    assert [one["aligned_by"] for one in found.json("moe_straggler")["clock"]["by_report"]] == ["its own time"] * 2


@pytest.mark.slow
@settings(max_examples=6)
@given(
    own=st.lists(st.integers(1000, 60_000), min_size=16, max_size=16),
    tails=st.lists(st.integers(2000, 9000), min_size=8, max_size=8),
    offset=st.integers(-(10**12), 10**12),
    drift=st.floats(-100e-6, 100e-6),
)
@example(
    own=[36001, 1000, 1000, 1000, 32001, 1000, 1000, 1000, 8981, 1000, 1000, 1000, 8483, 1000, 1000, 1000],
    tails=[2000] * 8,
    offset=0,
    drift=0.0,
)
def test_any_run(
    tmp_path_factory: pytest.TempPathFactory, own: list[int], tails: list[int], offset: int, drift: float
) -> None:
    """Whatever the ranks did and the clocks say, what is split is true but for the residual that is stated."""
    run = Run(
        [[0, 1], [2, 3]],
        lambda step, layer, rank: own[(4 * step + 7 * layer + rank) % 16],
        tail_ns=lambda step, layer, rank: tails[(3 * step + layer + rank) % 8],
        clocks=[Clock(recorded_ns=0), Clock(offset_ns=offset, drift=drift, recorded_ns=0)],
        steps=12,
        name=GATHER,
    )
    found = written(tmp_path_factory.mktemp("any"), *run.build())
    said = found.json("moe_straggler")["clock"]["by_report"][1]
    assert said["fits"]
    # What waits long before all of its collectives bounds the offset badly: then some are refused.
    refused = not_split(found)
    assert not refused or (refused.keys() == {"clocks_not_aligned"} and said["most_residual_us"] > 10)
    assert within(found, run, 1e3 * said["most_residual_us"])
