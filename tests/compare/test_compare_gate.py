"""`--fail-if`: what can be written, what fails, what can't be decided, and the exit codes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from nvtxmoe.errors import GATE_FAILED, NvtxmoeError
from nvtxmoe_analysis.compare.gate import (
    ESTIMATE,
    FAILED,
    INTERVAL,
    LAYERED,
    PASSED,
    RULES,
    SIGNIFICANT,
    UNDECIDED,
    WATCHED,
    judge,
    parse,
)
from nvtxmoe_analysis.compare.tables import ACTIVATIONS, METRICS
from tests.support.cli import run
from tests.support.compare_runs import Load, make_results

TIMES = ("kernel_time", "kernel_time_per_token", "own_time", "step_time")


def row(layer: int | None = None, kind: str = "all", **said: float | str | None) -> dict[str, object]:
    """A difference of kernel time: 10 % more, 8 to 12, significant."""
    values = {
        "metric": "kernel_time", "difference": 3000.0, "ci_low": 2000.0, "ci_high": 4000.0, "change_pct": 10.0,
        "change_pct_ci_low": 8.0, "change_pct_ci_high": 12.0, "p_value": 0.001, "p_adjusted": 0.01,
    }  # fmt: skip
    return {"layer_idx": layer, "step_kind": kind, **values, **said}


def outcome(text: str, *rows: dict[str, object], rule: str = SIGNIFICANT, js: bool = False) -> tuple[str, int | None]:
    metrics = pl.DataFrame([] if js else list(rows), schema=METRICS)
    activations = pl.DataFrame(list(rows) if js else [], schema=ACTIVATIONS)
    found = judge(parse(text), metrics, activations, rule, 0.05)
    assert (found.reason is not None) == (found.verdict == UNDECIDED)
    return found.verdict, found.layer


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", WATCHED)
def test_each_metric_by_kind_and_by_layer(metric: str) -> None:
    number = "0.05" if metric == "js" else "5%"
    gate = parse(f"{metric}>{number}")
    assert (gate.metric, gate.kind, gate.per_layer, gate.above) == (metric, "all", False, True)
    assert (gate.limit, gate.percent) == ((0.05, False) if metric == "js" else (5.0, True))
    for kind in ("decode", "prefill", "mixed"):
        assert parse(f" {metric}@{kind} > {number} ").kind == kind
    if metric in LAYERED:
        assert parse(f"layer_{metric}@decode>{number}").per_layer
    else:
        with pytest.raises(NvtxmoeError, match="of whole steps and has no layers"):
            parse(f"layer_{metric}>{number}")


def test_units_and_falls() -> None:
    assert [parse(f"kernel_time>{n}").limit for n in ("7ns", "3us", "0.5ms")] == [7.0, 3_000.0, 500_000.0]
    assert not parse("kernel_time>3us").percent
    gate = parse("kernel_time<-5%")
    assert (gate.above, gate.limit) == (False, -5.0)
    assert (parse("imbalance>0.2").limit, parse("imbalance>0.2").percent) == (0.2, False)
    assert parse("imbalance>2%").percent
    assert parse("js>0.01bits").limit == 0.01


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not METRIC>NUMBER"),
        ("kernel_time", "not METRIC>NUMBER"),
        ("kernel_time>=5%", "not METRIC>NUMBER"),
        ("kernel_time>five%", "not METRIC>NUMBER"),
        ("kernel_time>1e3us", "there is no metric|not METRIC>NUMBER|unit"),
        ("kernel_time>nan%", "not METRIC>NUMBER"),
        ("kernel_time>5", "kernel_time needs a unit. Units: %, ns, us or ms"),
        ("kernel_time>5s", "has not the unit s"),
        ("imbalance>5us", "has not the unit us"),
        ("js>5%", "0 to 1 bits"),
        ("js<0.1", "0 to 1 bits"),
        ("kernel_time<5%", "B's less A's"),
        ("kernel_time>-5%", "B's less A's"),
        ("kernel_time@warmup>5%", "no kind of step warmup"),
        ("kernel_time@unknown>5%", "no kind of step unknown"),
    ],
)
def test_what_can_not_be_read(text: str, said: str) -> None:
    with pytest.raises(NvtxmoeError, match=said):
        parse(text)


# Judging --------------------------------------------------------------------------------------------------------------


def test_limits_of_each_rule() -> None:
    """The estimate is 10 %, its interval 8 to 12."""
    for limit, failing in ((7, RULES), (9, (SIGNIFICANT, ESTIMATE)), (10, ()), (11, ())):
        for rule in RULES:
            wanted = FAILED if rule in failing else PASSED
            assert outcome(f"kernel_time>{limit}%", row(), rule=rule)[0] == wanted, (limit, rule)
    assert outcome("kernel_time>2us", row())[0] == FAILED
    assert outcome("kernel_time>3us", row())[0] == PASSED
    assert outcome("kernel_time<-1%", row(), rule=ESTIMATE)[0] == PASSED


def test_falls_of_each_rule() -> None:
    fall = row(change_pct=-10.0, change_pct_ci_low=-12.0, change_pct_ci_high=-8.0)
    for limit, failing in ((-7, RULES), (-9, (SIGNIFICANT, ESTIMATE)), (-11, ())):
        for rule in RULES:
            wanted = FAILED if rule in failing else PASSED
            assert outcome(f"kernel_time<{limit}%", fall, rule=rule)[0] == wanted, (limit, rule)


def test_what_is_not_significant_passes_but_by_its_estimate() -> None:
    noise = row(p_adjusted=0.2, change_pct_ci_low=-1.0)
    assert [outcome("kernel_time>5%", noise, rule=rule)[0] for rule in RULES] == [PASSED, PASSED, FAILED]


def test_a_gate_looks_at_its_own_rows_only() -> None:
    rows = [row(), row(0, change_pct=1.0), row(1, change_pct=20.0), row(2, change_pct=30.0, p_adjusted=0.3)]
    rows += [row(kind="decode", change_pct=40.0), row(metric="own_time", change_pct=50.0)]
    assert outcome("kernel_time>15%", *rows) == (PASSED, None)
    assert outcome("layer_kernel_time>15%", *rows) == (FAILED, 1)
    assert outcome("layer_kernel_time>15%", *rows, rule=ESTIMATE) == (FAILED, 2)
    assert outcome("kernel_time@decode>35%", *rows) == (FAILED, None)
    assert outcome("own_time>45%", *rows) == (FAILED, None)


def test_undecided() -> None:
    unsure = row(p_value=None, p_adjusted=None, change_pct_ci_low=None, reason="A has only 3 decode steps")
    assert outcome("kernel_time>5%", unsure)[0] == UNDECIDED
    assert outcome("kernel_time>5%", unsure, rule=ESTIMATE)[0] == FAILED
    assert outcome("kernel_time@prefill>5%", row())[0] == UNDECIDED
    assert outcome("step_time>5%", row())[0] == UNDECIDED


def test_layers_that_are_not_known_have_not_passed() -> None:
    gone = row(1, change_pct=None, p_value=None, p_adjusted=None, reason="no decode steps with like numbers of tokens")
    assert outcome("layer_kernel_time>50%", row(0), gone)[0] == UNDECIDED
    assert outcome("layer_kernel_time>5%", row(0), gone) == (FAILED, 0)


def test_divergence_above_its_noise() -> None:
    said = {"excess_bits": 0.04, "ci_low": 0.03, "ci_high": 0.05, "p_adjusted": 0.001}
    cell: dict[str, object] = {"layer_idx": None, "step_kind": "all", **said}
    assert outcome("js>0.035", cell, js=True)[0] == FAILED
    assert outcome("js>0.035", cell, js=True, rule=INTERVAL)[0] == PASSED
    assert outcome("layer_js>0.01", cell, js=True)[0] == UNDECIDED


# Exit codes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """B's layer 1 is 30 % slower."""
    folder = tmp_path_factory.mktemp("gates")
    return make_results(folder / "a", Load(), 1), make_results(folder / "b", Load(slow={1: 1.3}), 2)


def test_exit_code_of_a_gate_that_fails_or_passes(pair: tuple[Path, Path]) -> None:
    ran = run("compare", *pair, "--fail-if", "layer_kernel_time>20%", "--fail-if", "js>0.2")
    assert (ran.code, ran.err) == (GATE_FAILED, "") == (4, "")
    assert "layer_kernel_time>20%: failed" in ran.out and "layer 1" in ran.out
    assert "js>0.2: passed" in ran.out
    ran = run("compare", *pair, "--fail-if", "kernel_time>20%", "--fail-if", "kernel_time<-1%")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count(": passed") == 2


def test_exit_code_of_what_can_not_be_decided(pair: tuple[Path, Path]) -> None:
    ran = run("compare", *pair, "--json", "--fail-if", "kernel_time@prefill>5%")
    assert ran.code == 2
    assert "'kernel_time@prefill>5%' can't be decided: the runs have no kernel_time of prefill steps" in ran.err
    assert (ran.json["failed"], ran.json["gates"][0]["verdict"]) == (False, "undecided")
    # What fails is known, whatever else is not.
    assert run("compare", *pair, "--fail-if", "kernel_time@prefill>5%", "--fail-if", "kernel_time>1%").code == 4


def test_a_wrong_metric_is_one_line_with_all_metrics(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ran = run("compare", *pair, "-o", tmp_path, "--fail-if", "latency>5%")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "there is no metric latency" in ran.err
    for metric in WATCHED:
        assert metric in ran.err
    assert not list(tmp_path.iterdir())
