"""The first screen has the verdict on rebalancing experts, whichever finding is first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report.advice import Advice, write_findings
from nvtxmoe_analysis.report.first_screen import GAIN, Answer
from tests.support.placement_captures import unpacked


def gain(advice: Advice) -> Answer:
    """The answer to what can be won."""
    return next(answer for answer in advice.answers if answer.question == GAIN)


@pytest.mark.parametrize(
    ("name", "answer"), [("skewed", "worth it"), ("even", "not worth it"), ("tokens", "cannot tell")]
)
def test_the_verdict_of_predicted_placements(name: str, answer: str, tmp_path: Path) -> None:
    unpacked(name, tmp_path).rename(tmp_path / FOLDER)
    text = str(gain(write_findings(tmp_path)[0]).text)
    verdict = re.findall(r"Rebalancing experts saves [^:]* per steady decode step[^:]*: ([a-z ]+)\.", text)
    assert verdict == [answer]


def test_even_loads_are_named_where_they_would_save_little(golden_2gpu: Path, tmp_path: Path) -> None:
    answer = gain(analyze([golden_2gpu], tmp_path).advice)
    assert answer.finding == "launch-skew"
    aside = "Loads of the ranks are even: equal ones would save about "
    assert str(answer.text).count(aside) == 1
    assert not str(answer.text).startswith(aside)


def test_one_layer_alone_gives_no_verdict(golden_2gpu: Path, tmp_path: Path) -> None:
    answer = gain(analyze([golden_2gpu], tmp_path, selection=Selection(layers=frozenset({0}))).advice)
    assert "Rebalancing" not in str(answer.text)
