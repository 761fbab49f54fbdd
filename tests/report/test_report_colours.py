"""Colours of charts: with each kind of colour blindness, in greyscale, under their labels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise

import pytest

from nvtxmoe_analysis.report.charts import stragglers, time_and_feature
from nvtxmoe_analysis.report.theme import CLASSES, CONFIG, HOW, INK, KINDS, PALE, PHASES, is_light
from tests.support.colour_vision import VISION, distance, lab

PALETTES: Mapping[str, Mapping[str, str]] = {
    "phases": PHASES,
    "classes": CLASSES,
    "kinds": KINDS,
    "how": HOW,
    "collectives": dict(stragglers.COLLECTIVES.values()),
    "points": time_and_feature.COLOURS,
}
#: Least distance in CIE Lab, where about 2 is just noticeable, and least difference of L* of neighbours.
APART, LIGHTER = 12, 10


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("name", PALETTES)
def test_any_two_colours_are_told_apart(name: str, vision: str) -> None:
    near = {
        (first, second): round(found)
        for (first, a), (second, b) in combinations(PALETTES[name].items(), 2)
        if (found := distance(a, b, vision)) < APART
    }
    assert near == {}


@pytest.mark.parametrize("name", ["phases", "classes", "how", "collectives"])
def test_neighbours_in_a_stack_differ_in_greyscale(name: str) -> None:
    for (first, a), (second, b) in pairwise(PALETTES[name].items()):
        assert abs(lab(a)[0] - lab(b)[0]) >= LIGHTER, (first, second)


def test_labels_are_readable_on_their_bars() -> None:
    for name, colour in CLASSES.items():
        ink = INK if is_light(colour) else PALE
        assert abs(lab(ink)[0] - lab(colour)[0]) >= 35, name


@pytest.mark.parametrize("look", CONFIG)
def test_the_ramp_goes_one_way_in_lightness(look: str) -> None:
    lightness = [lab(colour)[0] for colour in CONFIG[look]["range"]["ramp"]]
    steps = [later - earlier for earlier, later in pairwise(lightness)]
    assert all(step > 4 for step in steps) or all(step < -4 for step in steps), lightness
