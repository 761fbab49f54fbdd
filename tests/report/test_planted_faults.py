"""Each capture has one known problem, and its finding stands first; a healthy one raises none."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report import findings as findings_package
from nvtxmoe_analysis.report.advice import write_findings
from nvtxmoe_analysis.report.finding import COST, INCOMPLETE, NOTE, VERDICT, Finding, stake
from nvtxmoe_analysis.report.findings import finding_modules
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import duration
from nvtxmoe_analysis.report.numbers import SourcedNumber
from nvtxmoe_analysis.report.sentences import sentence
from nvtxmoe_analysis.report.steady import START_UP as LEFT_OUT
from tests.support.paths import ROOT
from tests.support.planted_faults import FAULTS, START_UP, Planted, hot
from tests.support.report_numbers import check_figure

CAPTURES = ROOT / "tests" / "placement" / "captures"


@pytest.fixture(scope="module", params=FAULTS, ids=lambda name: name.replace(" ", "-").replace(",", ""))
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Analysis]:
    """Name and analysis of a run."""
    folder = tmp_path_factory.mktemp("planted")
    export = FAULTS[request.param][1].write(folder / "run.sqlite")
    return request.param, analyze([export], folder / "out")


def test_the_planted_problem_stands_first(planted: tuple[str, Analysis]) -> None:
    name, done = planted
    wanted = FAULTS[name][0]
    found = done.advice.findings
    assert found[0].id == wanted, [(one.id, one.kind, str(one.headline)) for one in found]
    assert done.complete == (wanted != "incomplete-capture"), done.validation["reasons"]
    if wanted == "healthy":
        assert not [one.id for one in found if one.kind in (COST, INCOMPLETE)]


def test_start_up_is_left_out(planted: tuple[str, Analysis]) -> None:
    """Twenty times slower steps at the start are in no time per step."""
    _, done = planted
    steady = done.advice.steady
    assert steady is not None and not steady.numbers & set(range(START_UP))
    assert steady.left_out[LEFT_OUT] == frozenset(range(START_UP))


def test_the_first_screen_is_about_the_first_finding(planted: tuple[str, Analysis]) -> None:
    _, done = planted
    first, found = done.advice.answers, done.advice.findings
    assert {answer.question for answer in first} == {
        "Is MoE the problem?", "What can be won?", "What next?", "How sure?",
    }  # fmt: skip
    chosen = {answer.question: answer for answer in first}
    assert chosen["What next?"].finding == found[0].id
    if found[0].kind == INCOMPLETE:
        assert (first[0].question, first[0].short) == ("How sure?", "incomplete")
    else:
        assert chosen["What can be won?"].finding == found[0].id
        assert chosen["How sure?"].finding == found[0].id
    if found[0].id == "moe-not-the-problem":
        assert chosen["Is MoE the problem?"].short == "no"


def test_every_problem_has_a_next_step_and_evidence(planted: tuple[str, Analysis]) -> None:
    _, done = planted
    document = json.loads((done.folder.parent / "findings.json").read_text())
    assert document["findings"] == [json.loads(json.dumps(one.as_dict())) for one in done.advice.findings]
    for one in document["findings"]:
        if one["kind"] != COST:
            continue
        assert one["next_step"]["action"] and one["next_step"]["command"] and one["next_step"]["expected"]
        assert one["next_step"]["documented"].endswith(f"findings.md#{one['id']}")
        assert one["evidence"] and all((done.folder / place["file"]).is_file() for place in one["evidence"])
        assert one["certainty"] in ("measured", "estimated")
        if one["at_stake"] is not None:
            assert one["at_stake"]["us_per_step"] > 0 and one["at_stake"]["share_pct"] >= 2


def test_costs_are_ranked_by_the_time_at_stake_that_is_sure(planted: tuple[str, Analysis]) -> None:
    _, done = planted
    document = json.loads((done.folder.parent / "findings.json").read_text())
    costs = [
        one["at_stake"]
        for one in document["findings"]
        if one["kind"] == COST and one["at_stake"] is not None and one["id"] != "other-steps"
    ]
    sure = [one["us_per_step"] if one["low_us"] is None else one["low_us"] for one in costs]
    assert sure == sorted(sure, reverse=True)


def test_an_estimate_that_may_be_nothing_comes_after_what_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranked by the lower end of the interval, and by the estimate where that is the same."""
    step = SourcedNumber(1e6, "1.00 ms")
    intervals: dict[str, tuple[float, tuple[float, float] | None]] = {
        "vague": (9e5, (0.0, 9.5e5)), "vaguer": (8e5, (0.0, 9.5e5)), "measured": (3e5, None), "sure": (5e5, (4e5, 6e5)),
    }  # fmt: skip

    def module(name: str) -> SimpleNamespace:
        value, interval = intervals[name]
        number = SourcedNumber(value, name, interval=interval, estimated=interval is not None)
        found = Finding(name, sentence("{}", number), kind=COST, stake=stake(number, step))
        return SimpleNamespace(ID=name, ORDER=1, MEANING="", find=lambda ledger: [found])

    modules = {name: module(name) for name in sorted(intervals)}
    monkeypatch.setattr(findings_package, "finding_modules", lambda: modules)
    ranked = findings_package.findings(cast(Ledger, SimpleNamespace(findings=[], steady=None)))
    assert [one.id for one in ranked] == ["sure", "measured", "vague", "vaguer"]


def test_other_steps_name_theirs_and_come_after_the_headlines(tmp_path: Path) -> None:
    """Ranks come late to mixed steps alone: nothing is said of decode steps, and the first screen says both."""
    done = analyze([FAULTS["late launches in mixed steps"][1].write(tmp_path / "run.sqlite")], tmp_path / "out")
    found = done.advice.findings[0]
    assert (found.id, found.of_others) == ("other-steps", True)
    assert found.stake is not None and found.stake.steps == "steady mixed step"
    rows = pl.read_csv(done.folder / "moe_layer_correlation.csv").unique(["rank", "step"])
    mixed = rows.filter(step_kind="mixed")
    share, moe, step, part = found.headline.numbers
    time, whole = (int(part["step_gpu_ns"].sum()) for part in (mixed, rows))
    assert share.value == pytest.approx(100 * time / whole)
    assert step.value == pytest.approx(mixed["step_gpu_ns"].mean())
    assert part.value == pytest.approx(100 * moe.value / step.value)
    for number in found.numbers:
        check_figure(number, done.folder)
    problem, gain, *_ = done.advice.answers
    assert str(found.headline) in str(problem.text) and "per steady decode step" in str(problem.text)
    assert gain.short.endswith(" of the mean rank's mixed step")
    assert [one.id for one in done.advice.findings if one.kind == COST] == ["other-steps"]


def every_third(**changes: Any) -> Planted:
    """Every third step is prefill; MoE layers take 2 % of decode steps and most of prefill steps."""
    planted = Planted(
        attention_ns=lambda layer, rank: 30_000,
        prefill=lambda step: Planted().tokens[max(0, step - START_UP)] * (step % 3 == 2),
        matmul_ns=lambda load: 1_500_000 + 100 * (load.step % 5) if load.step % 3 == 2 else 300 + 2 * load.assignments,
        transfer_ns=100,
    )
    return replace(planted, **changes)


PADDED = {
    "popularity": hot(0.25),
    "held": (range(8), range(8, 16)),
    "matmul_ns": lambda load: 80_000 + 3_000 * load.assignments if load.step % 3 == 2 else 300 + 2 * load.assignments,
}


ONE_PREFILL = {
    "prefill": lambda step: Planted().tokens[6] * (step == 8),
    "matmul_ns": lambda load: 4_000_000 if load.step == 8 else 2_000 + 100 * (load.step % 5),
}


@pytest.mark.parametrize(
    ("changes", "word", "first"),
    [
        (PADDED, "decode: no; prefill: yes", "other-steps"),
        ({}, "decode: no; prefill: no problem found", "moe-not-the-problem"),
        (ONE_PREFILL, "decode: no; prefill: not known", "moe-not-the-problem"),
    ],
    ids=["a problem in them", "no problem in them", "too few of them"],
)
def test_the_answer_looks_at_all_kinds_of_steps_that_matter(
    changes: dict[str, Any], word: str, first: str, tmp_path: Path
) -> None:
    """MoE layers are a small part of decode steps and most of prefill steps, which take most of the GPU time."""
    advice = analyze([every_third(**changes).write(tmp_path / "run.sqlite")], tmp_path / "out").advice
    assert advice.findings[0].id == first
    assert advice.answers[0].short == word
    verdict = next(one for one in advice.findings if one.id == "moe-not-the-problem")
    assert str(verdict.headline).startswith("In decode steps, MoE layers are not the problem: ")
    assert verdict.next_step is not None and verdict.next_step.action == "In decode steps, look at attention first."
    others = next(one for one in advice.findings if one.id == "other-steps")
    assert str(others.headline) in [str(detail) for detail in verdict.details]


def test_no_problem_found_names_every_kind_of_steps_that_was_looked_at(tmp_path: Path) -> None:
    prefill = Planted(prefill=lambda step: Planted().tokens[max(0, step - START_UP)] * (step % 3 == 2))
    advice = analyze([prefill.write(tmp_path / "run.sqlite")], tmp_path / "out").advice
    assert advice.findings[0].id == "healthy"
    assert "of 16 steady decode steps and 16 (rank, step) of 8 steady prefill steps" in str(advice.findings[0].headline)
    assert advice.answers[0].short == "no problem found"


def test_decode_steps_without_a_problem_stay_so_beside_others_with_one(tmp_path: Path) -> None:
    """Shares of mixed steps are not compared with shares of decode steps."""
    advice = analyze([FAULTS["late launches in mixed steps"][1].write(tmp_path / "run.sqlite")], tmp_path).advice
    word = dict(part.split(": ") for part in advice.answers[0].short.split("; "))
    assert word["decode"] == "no problem found" and word["mixed"] in ("no", "partly", "no, waiting is")


def test_bars_above_the_total_are_no_parts_of_it(tmp_path: Path) -> None:
    """Few decode steps after slow ones: the model of the experts' work is mostly of start-up."""
    few = Planted(tokens=Planted().tokens[:6], prefill=lambda step: 90 * (step in (3, 5)))
    found = analyze([few.write(tmp_path / "run.sqlite")], tmp_path / "out").advice.findings
    parts = next(one for one in found if one.id == "where-time-goes")
    assert all(number.value <= 100 for number in parts.headline.numbers if number.how == "percent")
    assert str(parts.details[0]).startswith("Not known, because the estimate exceeds the total: least work of")


def test_what_uneven_loads_cost_names_its_steps(tmp_path: Path) -> None:
    """One sentence for decode and one for prefill steps, with numbers of their own."""
    advice = analyze([every_third(**PADDED).write(tmp_path / "run.sqlite")], tmp_path / "out").advice
    others = next(one for one in advice.findings if one.id == "other-steps")
    costs = [str(detail) for detail in others.details if "Uneven loads" in str(detail)]
    assert costs and all(" per steady prefill step of the mean rank" in cost for cost in costs)
    even = next(one for one in advice.findings if one.id == "uneven-ranks")
    assert " per steady decode step of the mean rank" in str(even.headline)


def test_a_predicted_share_names_the_steps_that_it_is_of() -> None:
    step, valued = SourcedNumber(1e6, "1.00 ms"), SourcedNumber(2e6, "2.00 ms", how="predicted")
    saved = SourcedNumber(1e5, "0.100 ms")
    assert [stake(saved, whole).whole for whole in (step, valued)] == ["it", "2.00 ms, the mean of the valued steps"]


def test_every_problem_is_planted() -> None:
    """Each module that can raise a problem has a run of its own."""
    ids = {module.ID for module in finding_modules().values() if module.ORDER <= 30}
    assert ids == {wanted for wanted, _ in FAULTS.values()}


@pytest.mark.parametrize(("name", "first"), [("skewed", "uneven-ranks"), ("even", None)])
def test_real_captures_of_two_gpus_with_planted_routing(name: str, first: str | None, tmp_path: Path) -> None:
    """Results of two H200s: gates skewed on purpose, and even ones. Their collectives are not in these files."""
    with tarfile.open(CAPTURES / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path / FOLDER, filter="data")
    advice, _ = write_findings(tmp_path)
    for one in advice.findings:
        if one.id == "uneven-ranks" and one.stake is not None:  # of the steps that were valued
            time, step = one.stake.share.parts
            assert step.column == "phases.decode.step_gpu_ns"
            assert time.column.startswith("phases.decode.")
            check_figure(time, tmp_path / FOLDER)
    costs = [one.id for one in advice.findings if one.kind == COST]
    assert costs == ([] if first is None else [first, "other-steps"])  # prefill steps gain, too
    assert "healthy" not in {one.id for one in advice.findings}  # how much of the collectives is waiting is unknown


def truth(path: Path) -> str:
    """The first finding's id, as a program reads it from the file."""
    return str(json.loads((path / "findings.json").read_text())["findings"][0]["id"])


def test_a_real_capture_of_which_most_is_waiting(golden_2gpu: Path, tmp_path: Path) -> None:
    done = analyze([golden_2gpu], tmp_path)
    assert truth(tmp_path) == "launch-skew"
    chosen = {answer.question: answer for answer in done.advice.answers}
    problem = chosen["Is MoE the problem?"]
    assert problem.short == "decode: no, waiting is; prefill, mixed: not known"
    wait, waiting_pct, moe, step, share, without = problem.text.numbers[:6]
    assert waiting_pct.value == pytest.approx(100 * wait.value / step.value)
    assert share.value == pytest.approx(100 * moe.value / step.value) and share.value < 10
    assert without.value == pytest.approx(100 * moe.value / (step.value - wait.value)) and without.value > 30
    assert chosen["What can be won?"].short.endswith(" of the mean rank's decode step")
    found = {one.id: one for one in done.advice.findings}
    skew = found["launch-skew"]
    assert " of the mean rank, " in str(skew.headline)
    rows = pl.read_csv(done.folder / "moe_collectives.csv")
    steady = done.advice.steady
    assert steady is not None
    first = rows.filter(pl.col("step").is_in(steady.numbers)).filter(
        pl.col("start_ns") == pl.col("start_ns").min().over("rank", "step")
    )
    waits = first.group_by("rank").agg(pl.col("wait_ns").mean()).sort("wait_ns")
    own = str(skew.details[1])
    assert own.startswith(f"Rank {waits['rank'][-1]} waits {duration(waits['wait_ns'][-1])} there per step, and rank ")
    verdict = found["moe-not-the-problem"]
    assert str(verdict.headline).startswith("In decode steps, waiting comes before MoE layers: ")
    assert verdict.next_step is not None
    assert verdict.next_step.action == "In decode steps, look at waiting for other ranks first."
    assert verdict.certainty == "estimated" and "is estimated" in str(verdict.confidence)


def test_a_real_capture_with_eager_steps_among_graphs(golden_program: Path, tmp_path: Path) -> None:
    analyze([golden_program], tmp_path)
    assert truth(tmp_path) == "eager-decode"


def test_eager_steps_that_never_idle_get_no_advice(tmp_path: Path) -> None:
    done = analyze([Planted(eager=lambda step: True, gap_ns=0).write(tmp_path / "run.sqlite")], tmp_path / "out")
    (eager,) = [one for one in done.advice.findings if one.id == "eager-decode"]
    assert (eager.kind, eager.next_step) == (NOTE, None)


def test_a_real_capture_that_reads_weights_for_few_rows(golden_1gpu: Path, tmp_path: Path) -> None:
    analyze([golden_1gpu], tmp_path)
    assert truth(tmp_path) == "active-experts"


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        (Selection(layers=frozenset({1})), "Other layers were filtered out."),
        (Selection(ranks=frozenset({0})), "Other ranks were filtered out."),
    ],
    ids=["layers", "ranks"],
)
@pytest.mark.parametrize("name", ["healthy", "attention takes all", "late launches"])
def test_filtered_results_give_no_verdict(name: str, kept: Selection, why: str, tmp_path: Path) -> None:
    """What was filtered out may be the problem."""
    done = analyze([FAULTS[name][1].write(tmp_path / "run.sqlite")], tmp_path / "out", selection=kept)
    assert not [one.id for one in done.advice.findings if one.kind == VERDICT]
    if kept.layers:  # the step's first collective may be another layer's
        assert "launch-skew" not in {one.id for one in done.advice.findings}
    problem, *_ = done.advice.answers
    assert (problem.question, problem.short) == ("Is MoE the problem?", "not known")
    assert str(problem.text).startswith(why)
    if not [one for one in done.advice.findings if one.kind == COST]:
        gain, then, sure = done.advice.answers[1:]
        assert gain.short == "not known"
        assert then.short in ("analyse all", "analyse all ranks")
        assert str(sure.text).endswith(f"Not known: {why[:1].lower()}{why[1:]}")


def test_placements_of_filtered_results_need_all_steps(tmp_path: Path) -> None:
    """`nvtxmoe place` refuses filtered results, so the next step is to analyse without filters."""
    name = next(name for name, (wanted, _) in FAULTS.items() if wanted == "uneven-ranks")
    export = FAULTS[name][1].write(tmp_path / "run.sqlite")
    done = analyze([export], tmp_path / "out", selection=Selection(only="decode"))
    first = done.advice.findings[0]
    assert first.id == "uneven-ranks" and first.next_step is not None
    assert first.next_step.command == f"nvtxmoe analyze {export} -o {tmp_path / 'out'}-all --report"


def test_all_ranks_kept_is_no_filter(tmp_path: Path) -> None:
    kept = Selection(ranks=frozenset({0, 1}))
    done = analyze([FAULTS["healthy"][1].write(tmp_path / "run.sqlite")], tmp_path / "out", selection=kept)
    assert done.advice.findings[0].id == "healthy"


@pytest.mark.parametrize("name", ["attention takes all", "attention takes most", "healthy"])
def test_few_steps_give_no_verdict(name: str, tmp_path: Path) -> None:
    kept = Selection(first_step=START_UP, last_step=START_UP + 1)
    done = analyze([FAULTS[name][1].write(tmp_path / "run.sqlite")], tmp_path / "out", selection=kept)
    assert not [one.id for one in done.advice.findings if one.kind == VERDICT]
    problem, gain, *_ = done.advice.answers
    assert (problem.short, gain.short) == ("not known", "not known")
    assert str(problem.text).startswith("Too few steady steps: 2, at least 5 needed.")


def test_step_0_is_a_filter(tmp_path: Path) -> None:
    done = analyze(
        [FAULTS["healthy"][1].write(tmp_path / "run.sqlite")], tmp_path / "out",
        selection=Selection(first_step=0, last_step=0),
    )  # fmt: skip
    limits = next(one for one in done.advice.findings if one.id == "limits")
    assert any("(first step 0, last step 0)" in str(detail) for detail in limits.details)
