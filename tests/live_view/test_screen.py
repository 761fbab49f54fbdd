"""The drawn screen at 80 columns and others: no unit is cut, keys change it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from nvtxmoe.live_view.keys import KeyReader
from nvtxmoe.live_view.model import ExpertShare, LayerRow, View, view_of
from nvtxmoe.live_view.scrape import parse
from nvtxmoe.live_view.screen import ASCII_BLOCKS, BLOCKS, draw
from nvtxmoe.live_view.state import State, picked_layer, pressed
from tests.support.live_pages import Served, text_of
from tests.support.live_ranks import Model


@pytest.fixture
def view(tmp_path: Path) -> View:
    served = Served(tmp_path)
    served.steps(10)
    before = parse(text_of(served.collector), 100.0)
    served.steps(20)
    return view_of(parse(text_of(served.collector), 110.0), before)


def large() -> View:
    """The largest numbers that may come, of 61 layers on 16 ranks."""
    shares = tuple(ExpertShare(1000 + number, 0.123456) for number in range(3))
    layers = tuple(
        LayerRow(number, 255.999, 255.97, 256, 0.98765, 98765.43, 98765432.1, shares, shares, (0.5, 1.0) * 8)
        for number in range(61)
    )
    view = view_of(parse("nvtxmoe_ranks 16\n", 0.0))
    return replace(
        view, model="a-name/" + "long" * 30, vllm="0.33.0", nvtxmoe="0.1.0", tokens_per_s=1234567.8,
        prefill_tokens_per_s=1134567.8, decode_tokens_per_s=100000.0, steps_per_s=1234.5, rates_over_s=10.0,
        dropped_steps={"recorder": 1234567, "metrics": 1234567}, hidden_layers=61, failed_hooks=12,
        own_cpu_ratio=12.3456, own_cpu_us_per_step=12345.6, collect_us=123456.7, rank_balancedness=0.98765,
        estimated_lost_us_per_step={"low": 12345.6, "estimate": 23456.7, "high": 34567.8}, estimated_coverage=0.987,
        heat="load of each expert-parallel rank over the layer's mean", layers=layers,
    )  # fmt: skip


UNITS = (
    "tokens 1,234,568/s", "prefill 1,134,568/s", "decode 100,000/s", "steps 1,234.5/s",
    "dropped 2,469,134 steps (metrics 1,234,567, recorder 1,234,567)", "hidden 61 layers", "failed 12 hooks",
    "own CPU 1234.6 % of a core, 12,346 us per rank's step", "page 123.5 ms", "rank balance 0.988",
    "estimated lost 23,456.7 us/step (12,345.6 to 34,567.8 us)", "estimate of 99 % of layers",
    "vLLM 0.33.0", "nvtxmoe 0.1.0", "16 ranks", "up/down pick a layer", "q quit", "t time lost",
    "layer 0 hottest:", "expert 1000 12.35 %", "expert 1002 12.35 %", "█ is 1.00 x",
)  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_unit_is_cut(width: int) -> None:
    lines = draw(large(), State(), width, 40, keys=True).plain.split("\n")
    assert max(map(cell_len, lines)) <= width
    assert len(lines) == 40
    for words in UNITS:
        assert any(words in line for line in lines), words
    at = next(number for number, line in enumerate(lines) if line.split()[:2] == ["layer", "mean"])
    heads = lines[at].split(), lines[at - 1].split()
    assert heads[0][:6] == ["layer", "mean", "experts", "us/step", "balance", "never"]
    assert heads[1][:5] == ["max/", "active", "est.", "lost", "rank"]
    row = lines[at + 1].split()
    assert row[:7] == [">", "0", "256.00", "256.0", "98,765.4", "0.988", "256"]
    assert row[7] == "98,765,432"
    assert row[8] == "▄█" * 8


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_nothing_is_cut_and_columns_without_room_are_named(width: int) -> None:
    lines = draw(large(), State(), width, None).plain.split("\n")
    assert max(map(cell_len, lines)) <= width
    text = re.sub(r"\s+", "", "".join(lines))
    for unit in UNITS:
        if not unit.startswith(("up/", "q ", "t ")):
            assert re.sub(r"\s+", "", unit) in text, unit
    assert (large().model or "no model") in text
    assert ("noroomfor:" in text) == (width < 80)
    assert ("assignmentspers" in text) == (width < 80)


@pytest.mark.parametrize("width", [20, 40, 60])
@pytest.mark.parametrize("height", [1, 10, 24])
def test_small_terminals_lose_columns_not_digits(width: int, height: int) -> None:
    lines = draw(large(), State(layer=30), width, height, keys=True).plain.split("\n")
    assert max(map(cell_len, lines)) <= width
    row = next(line for line in lines if line.startswith(">"))
    assert height == 1 or lines.index(row) < len(lines) <= height
    numbers = re.findall(r"[\d,.]+", row)
    assert numbers == ["30", "256.00", "256.0", "98,765.4", "0.988", "256"][: len(numbers)]


def test_the_picked_layer_is_always_in_sight() -> None:
    state, seen = State(order="layer"), []
    for _ in range(70):
        lines = draw(large(), state, 80, 24, keys=True).plain.split("\n")
        assert len(lines) == 24
        seen.append(int(next(line for line in lines if line.startswith(">"))[1:].split()[0]))
        state = pressed(state, "down", large())
    assert seen == [*range(61), *[60] * 9]


def test_keys_sort_and_pick(view: View) -> None:
    state = State()
    picks = []
    for key in ("down", "down", "down", "up", "l", "home", "end", "x", "page up"):
        state = pressed(state, key, view)
        row = picked_layer(view, state)
        assert row is not None
        picks.append(row.layer)
    assert picks == [2, 1, 1, 2, 2, 1, 3, 3, 1]
    assert state.order == "layer"
    assert pressed(state, "t", view).order == "lost"
    assert picked_layer(view, State(layer=99)) == picked_layer(view, State())


def test_a_key_without_values_changes_nothing(tmp_path: Path) -> None:
    served = Served(tmp_path, Model(layers=3, experts=8), slopes=False)
    served.steps(1)
    view = view_of(parse(text_of(served.collector), 0.0))
    assert pressed(State(), "t", view) == State()
    drawn = draw(view, State(), 80, 24, keys=True).plain
    assert "time lost" not in drawn and "us/step" not in drawn and "rank balance" not in drawn


def test_without_counts(tmp_path: Path) -> None:
    view = view_of(parse(text_of(Served(tmp_path).collector), 0.0))
    assert "No counts yet" in draw(view, State(), 80, 24, keys=True).plain
    assert pressed(State(), "down", view) == State()


def test_terminals_without_blocks(view: View) -> None:
    drawn = draw(view, State(), 80, ascii_only=True).plain
    assert drawn.isascii()
    assert set(draw(view, State(), 80).plain) & set(BLOCKS[1:])
    assert len(BLOCKS) == len(ASCII_BLOCKS)


def test_more_cells_than_room_are_folded_by_their_largest() -> None:
    cells = [0.0] * 256
    cells[200] = 8.0
    view = replace(large(), layers=(replace(large().layers[0], heat=tuple(cells)),))
    row = next(line for line in draw(view, State(), 120).plain.split("\n") if "98,765,432" in line)
    heat = row[row.index("98,765,432") + 12 :]
    assert heat == " " * (200 // 8) + "█"


def test_trouble_is_shown_and_obeys_nothing(view: View) -> None:
    lines = draw(view, State(trouble="http://h/metrics: \x1b[2J" + "refused " * 20), 80, 24, keys=True).plain
    assert "\x1b" not in lines and "refused" in lines
    assert max(map(cell_len, lines.split("\n"))) <= 80


@pytest.mark.parametrize("cut", range(9))
def test_keys_that_arrive_in_parts(cut: int) -> None:
    data = b"q\x1b[A\x1bOB\x1b[6~i\x1b[1;5Cx"
    reader = KeyReader()
    assert reader.feed(data[:cut]) + reader.feed(data[cut:]) == ["q", "up", "down", "page down", "i", "x"]


def test_an_escape_key_alone_swallows_nothing_else() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b") == []
    assert reader.feed(b"q") == ["q"]
    assert reader.feed("é\x1b\x1b[B".encode()) == ["é", "down"]
