"""What a rank's experts got where data-parallel ranks share them: tiny captures by hand, random ones and a real one
against plain Python."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.formats import schema
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.outputs.write import as_text
from tests.support.export_builder import Export, Process
from tests.support.metrics_of_inputs import table_of
from tests.support.written_results import Written, written

IDLE = None
#: A batch: its number and its counts by layer (a layer whose counts were not captured is not there); or an idle one.
Batch = tuple[int, dict[int, list[int]]] | None
#: Of a (rank, step, layer): activations, active experts, most of one expert, weight bytes; blank where not known.
Loads = dict[tuple[int, int, int], tuple[str, ...]]
COLUMNS = ("local_activations", "local_active_experts", "local_max_count", "weight_bytes")
UNKNOWN = ("", "", "", "")
#: Experts 0 and 1 on the first rank, 2 and 3 on the second.
HALVES = [[0, 1], [2, 3]]


def step(number: int, *counts: list[int]) -> Batch:
    """A batch with counts of layers 0, 1, ..."""
    return number, dict(enumerate(counts))


def rank_of(
    export: Export,
    rank: int,
    batches: Sequence[Batch],
    held: list[int] | None,
    *,
    world: int = 2,
    event: str = "counts",
    meta: dict[str, Any] | None = None,
    **process: Any,
) -> Process:
    """A data-parallel rank; with expert parallelism unless ``held`` is None. Counts are of top-1."""
    layers = 1 + max((layer for batch in batches if batch for layer in batch[1]), default=0)
    ep_size = 1 if held is None else world
    said = {"ep_size": ep_size, "ep_rank": rank if held else 0, "dp_size": world, "dp_rank": rank, **(meta or {})}
    options = {"layers": layers, "experts": 4, "top_k": 1, "meta": said, **process}
    worker = Process(export, pid=100 + rank, rank=rank, world_size=world, **options)
    for layer in worker.meta["layers"]:
        layer.update(local_experts=held, expert_bytes=10)
    worker.send_meta()
    for batch in batches:
        if batch is IDLE:
            with worker.range(schema.IDLE, 0):
                worker.kernel()
            continue
        number, cells = batch
        tokens = sum(next(iter(cells.values()), []))
        with worker.step(number, tokens=tokens, prefill=tokens if tokens > 4 else 0):
            worker.kernel()
        for layer, counts in cells.items():
            worker.counts(number, layer, counts, tokens=sum(counts))
            if event != "counts":
                worker.counts(number, layer, [*counts, 0], tokens=sum(counts), event=event)
    return worker


def exports(
    ranks: Sequence[Sequence[Batch]], held: Sequence[list[int] | None], apart: bool, **more: Any
) -> list[Export]:
    """One report of all ranks, or one of each."""
    found = [Export() for _ in ranks] if apart else [Export()] * len(ranks)
    for rank, batches in enumerate(ranks):
        rank_of(found[rank], rank, batches, held[rank], world=len(ranks), **more)
    return found if apart else found[:1]


def loads(found: Written, *columns: str) -> Loads:
    return loads_of(found.text("moe_layer_correlation"), *columns)


def loads_of(text: str, *columns: str) -> Loads:
    """Cells of moe_layer_correlation.csv by rank, step and layer."""
    rows = csv.DictReader(io.StringIO(text))
    return {
        (int(row["rank"]), int(row["step"]), int(row["layer_idx"])): tuple(row[c] for c in columns or COLUMNS)
        for row in rows
        if row["step"]
    }


@pytest.fixture(params=[False, True], ids=["one report", "a report each"])
def apart(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# By hand -----------------------------------------------------------------------------------------------------------


def test_tokens_of_all_ranks(apart: bool, tmp_path: Path) -> None:
    """Two steps of two layers: a rank's experts get both ranks' tokens."""
    ranks = [
        [step(0, [1, 2, 0, 3], [1, 1, 1, 1]), step(1, [4, 0, 0, 0], [0, 0, 0, 4])],
        [step(0, [5, 0, 0, 1], [2, 0, 0, 0]), step(1, [0, 0, 2, 0], [1, 0, 1, 0])],
    ]
    assert loads(written(tmp_path, *exports(ranks, HALVES, apart))) == {
        (0, 0, 0): ("8", "2", "6", "20"),  # 1 + 5, 2 + 0
        (1, 0, 0): ("4", "1", "4", "10"),  # 0, 3 + 1
        (0, 0, 1): ("4", "2", "3", "20"),
        (1, 0, 1): ("2", "2", "1", "20"),
        (0, 1, 0): ("4", "1", "4", "10"),
        (1, 1, 0): ("2", "1", "2", "10"),
        (0, 1, 1): ("1", "1", "1", "10"),
        (1, 1, 1): ("5", "2", "4", "20"),
    }


def test_idle_batches(apart: bool, tmp_path: Path) -> None:
    """Rank 1 is idle before, between and after its steps; an idle batch brings no tokens and has no row."""
    alone = [1, 0, 2, 0]
    ranks = [
        [step(number, alone) for number in (3, 4, 5, 6, 7, 8)],
        [IDLE, step(4, [1, 1, 1, 1]), IDLE, IDLE, step(7, [0, 0, 9, 0]), IDLE],
    ]
    own, both = ("1", "1", "1", "10"), ("3", "2", "2", "20")
    assert loads(written(tmp_path, *exports(ranks, HALVES, apart))) == {
        (0, 3, 0): own,
        (0, 4, 0): both,
        (0, 5, 0): own,
        (0, 6, 0): own,
        (0, 7, 0): own,
        (0, 8, 0): own,
        (1, 4, 0): ("4", "2", "3", "20"),
        (1, 7, 0): ("11", "1", "11", "10"),
    }


def test_counts_that_are_missing(apart: bool, tmp_path: Path) -> None:
    """Rank 1 has step 1, but of layer 0 no counts: nobody's load of that layer is known, nor is its own."""
    one, two = [1, 0, 0, 0], [0, 2, 0, 0]
    ranks = [[step(0, one, one), step(1, one, one)], [step(0, two, two), (1, {1: two})]]
    found = loads(written(tmp_path, *exports(ranks, HALVES, apart)))
    assert found[0, 1, 0] == found[1, 1, 0] == UNKNOWN
    assert found[0, 1, 1] == found[0, 0, 0] == ("3", "2", "2", "20")
    assert found[1, 1, 1] == ("0", "0", "0", "0")


@pytest.mark.parametrize(
    ("batches", "known"),
    [
        # A gap of two numbers and one idle batch: one was not captured, and it is not known which.
        ([step(0, [0, 1, 0, 0]), IDLE, step(3, [0, 1, 0, 0])], {0, 3}),
        ([step(0, [0, 1, 0, 0]), step(3, [0, 1, 0, 0])], {0, 3}),
        # More idle batches than numbers.
        ([step(0, [0, 1, 0, 0]), IDLE, IDLE, IDLE, step(3, [0, 1, 0, 0])], {0, 3}),
        # Captured from step 2 on.
        ([step(2, [0, 1, 0, 0]), IDLE], {2, 3}),
        ([IDLE, IDLE, step(3, [0, 1, 0, 0])], {1, 2, 3}),
        # More before the first step than there are numbers.
        ([IDLE, IDLE, step(1, [0, 1, 0, 0]), step(2, [0, 1, 0, 0])], {1, 2}),
        # Idle all along: nothing tells which numbers.
        ([IDLE, IDLE, IDLE, IDLE], set()),
        ([], set()),
    ],
)
def test_batches_that_were_not_captured(batches: list[Batch], known: set[int], apart: bool, tmp_path: Path) -> None:
    ranks = [[step(number, [1, 0, 0, 0]) for number in range(4)], batches]
    found = loads(written(tmp_path, *exports(ranks, HALVES, apart)))
    assert {number for rank, number, _ in found if rank == 0 and found[rank, number, 0] != UNKNOWN} == known


@pytest.mark.parametrize("nameless", range(3))
def test_an_idle_batch_beside_a_step_without_a_number(nameless: int, tmp_path: Path) -> None:
    """The second rank is idle in step 1; counts tell of a step all the same."""
    one = [1, 0, 0, 0]
    ranks = [[step(n, one) for n in range(4)], [step(0, one), IDLE, step(2, one), step(3, one)]]
    (export,) = exports(ranks, HALVES, apart=False)
    steps = [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.string(schema.STEP)]
    steps[4 + nameless]["binaryData"] = None
    found = loads(written(tmp_path, export), "local_activations")
    wanted = {0: ("2",), 1: ("1",), 2: ("2",), 3: ("2",)}
    if nameless < 2:
        wanted[1] = ("",)
    assert {number: found[0, number, 0] for number in range(4)} == wanted


def test_idle_batches_after_a_step_without_a_number(tmp_path: Path) -> None:
    """The second rank was captured from step 1 on, and is idle in step 2."""
    one = [1, 0, 0, 0]
    (export,) = exports([[step(n, one) for n in range(3)], [step(1, one), IDLE]], HALVES, apart=False)
    [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.string(schema.STEP)][-1]["binaryData"] = None
    found = loads(written(tmp_path, export), "local_activations")
    assert [found[0, number, 0] for number in range(3)] == [("",), ("2",), ("",)]


def test_ranks_of_an_engine_that_contradict_each_other(tmp_path: Path) -> None:
    """Of one engine, one rank says that it was idle and the other that it had a step, whose counts are missing."""
    export = Export()
    engines = [[step(0, [1, 0, 0, 0]), step(1, [1, 0, 0, 0])]] * 2
    engines += [[step(0, [0, 1, 0, 0]), IDLE], [step(0, [0, 1, 0, 0]), (1, {})]]
    for rank, batches in enumerate(engines):
        meta = {"dp_size": 2, "dp_rank": rank // 2, "ep_rank": rank}
        rank_of(export, rank, batches, [rank], world=4, tp_size=2, meta=meta)
    found = loads(written(tmp_path, export), "local_activations")
    assert (found[0, 0, 0], found[1, 0, 0]) == (("1",), ("1",))
    assert found[0, 1, 0] == found[1, 1, 0] == ("",)


def test_a_rank_that_is_not_here(tmp_path: Path) -> None:
    """Its report is not among the inputs, or its moe.meta is missing: what it sent is not known."""
    ranks = [[step(0, [1, 2, 3, 4])], [step(0, [1, 0, 0, 0])]]
    both = exports(ranks, HALVES, apart=True)
    assert loads(written(tmp_path, both[0])) == {(0, 0, 0): UNKNOWN}
    marks = [r for r in both[1].rows["NVTX_EVENTS"] if r["textId"] == both[1].string(schema.META)]
    assert len(marks) == 1
    both[1].rows["NVTX_EVENTS"].remove(marks[0])
    assert loads(written(tmp_path, *both)) == {(0, 0, 0): UNKNOWN, (1, 0, 0): UNKNOWN}


def test_without_expert_parallelism(apart: bool, tmp_path: Path) -> None:
    """Every expert is divided between the data-parallel ranks: each works on all tokens."""
    ranks = [[step(0, [1, 2, 0, 3])], [step(0, [5, 0, 0, 1])]]
    found = loads(written(tmp_path, *exports(ranks, [None, None], apart)), "local_experts", *COLUMNS)
    assert found == dict.fromkeys([(0, 0, 0), (1, 0, 0)], ("4", "12", "3", "6", "30"))


def test_tensor_parallel_copies_count_once(tmp_path: Path) -> None:
    """Two engines of two ranks, an expert each."""
    first, second = [[step(0, [1, 2, 0, 3]), IDLE], [step(0, [5, 0, 0, 1]), step(1, [1, 1, 1, 1])]]
    export = Export()
    for rank, batches in enumerate([first, first, second, second]):
        meta = {"dp_size": 2, "dp_rank": rank // 2, "ep_rank": rank}
        rank_of(export, rank, batches, [rank], world=4, tp_size=2, meta=meta)
    found = loads(written(tmp_path, export), "local_activations")
    assert [found[rank, 0, 0] for rank in range(4)] == [("6",), ("2",), ("0",), ("4",)]
    assert [found[rank, 1, 0] for rank in (2, 3)] == [("1",), ("1",)]


def test_engines_that_do_not_share_experts(tmp_path: Path) -> None:
    """Expert parallelism within each of two engines: a rank's experts get its engine's tokens alone."""
    export = Export()
    for rank in range(4):
        counts = [1, 2, 0, 3] if rank < 2 else [5, 0, 0, 1]
        meta = {"dp_size": 2, "ep_size": 2, "ep_rank": rank % 2}
        rank_of(export, rank, [step(0, counts)], HALVES[rank % 2], world=4, tp_size=2, meta=meta)
    found = loads(written(tmp_path, export), "local_activations")
    assert [found[rank, 0, 0] for rank in range(4)] == [("3",), ("3",), ("5",), ("1",)]


def test_physical_experts(apart: bool, tmp_path: Path) -> None:
    """With EPLB the slots' counts are added; a cell of which one rank has none is not known."""
    ranks = [[step(0, [1, 2, 0, 3]), step(1, [1, 0, 0, 0])], [step(0, [5, 0, 0, 1]), IDLE]]
    held = [[0, 1, 4], [2, 3]]
    made = exports(ranks, held, apart, meta={"eplb": True}, event="physical")
    found = loads(written(tmp_path, *made), "local_experts", *COLUMNS)
    assert found == {
        (0, 0, 0): ("3", "8", "2", "6", "20"),
        (1, 0, 0): ("2", "4", "1", "4", "10"),
        (0, 1, 0): ("3", "1", "1", "1", "10"),
    }
    rows = made[-1].rows["NVTX_EVENTS"]
    rows.remove([row for row in rows if row["textId"] == made[-1].string(schema.PHYSICAL)][-1])
    assert loads(written(tmp_path, *made))[0, 0, 0] == UNKNOWN


@pytest.mark.parametrize(
    "selection",
    [
        Selection(ranks=frozenset({0})),
        Selection(only="decode"),
        Selection(first_step=1),
        Selection(skip_first=1),
        Selection(layers=frozenset({1})),
    ],
)
def test_filters_leave_a_load_as_it_is(selection: Selection, apart: bool, tmp_path: Path) -> None:
    """A rank's experts get the other rank's tokens whatever is shown: of step 1 rank 0 decodes and rank 1 prefills."""
    small, large = [1, 0, 1, 0], [4, 4, 4, 4]
    ranks = [
        [step(0, large, small), step(1, small, large), step(2, small, small)],
        [step(0, small, small), step(1, large, small), IDLE],
    ]
    whole = loads(written(tmp_path, *exports(ranks, HALVES, apart)))
    assert whole[0, 1, 0] == ("9", "2", "5", "20")
    kept = loads(written(tmp_path, *exports(ranks, HALVES, apart), selection=selection))
    assert 0 < len(kept) < len(whole)
    assert kept == {cell: whole[cell] for cell in kept}


def test_tiles_are_those_of_all_tokens(tmp_path: Path) -> None:
    """20 tokens each: 40 rows are in tiles of 32, where 20 alone would be in tiles of 16. Idle: 20 rows."""
    ranks = [[step(0, [20, 0, 0, 0]), step(1, [20, 0, 0, 0])], [step(0, [17, 0, 3, 0]), IDLE]]
    found = loads(
        written(tmp_path, *exports(ranks, HALVES, apart=False)), "block_m", "expert_tiles", "local_expert_tiles"
    )
    assert found == {(0, 0, 0): ("32", "1", "2"), (1, 0, 0): ("32", "2", "1"), (0, 1, 0): ("16", "2", "2")}


# Against plain Python ----------------------------------------------------------------------------------------------


def plain_loads(ranks: Sequence[Sequence[Batch]], held: Sequence[list[int]]) -> Loads:
    """Walk over the batches of ranks that were captured from number 0 on."""
    tokens = [dict(enumerate(batches)) for batches in ranks]
    wanted: Loads = {}
    for rank, batches in enumerate(ranks):
        for number, batch in enumerate(batches):
            if batch is IDLE:
                continue
            for layer in batch[1]:
                total = [0] * 4
                for other in tokens:
                    theirs = other[number]
                    if theirs is not IDLE:
                        total = [a + b for a, b in zip(total, theirs[1][layer], strict=True)]
                mine = [total[expert] for expert in held[rank]]
                active = sum(count > 0 for count in mine)
                wanted[rank, number, layer] = tuple(map(str, (sum(mine), active, max(mine), 10 * active)))
    return wanted


@st.composite
def runs(draw: st.DrawFn) -> list[list[Batch]]:
    """Two to four ranks in lockstep; each has a step, so that its idle batches can be numbered."""
    length = draw(st.integers(1, 6))
    counts = st.lists(st.integers(0, 300), min_size=4, max_size=4)
    ranks = []
    for _ in range(draw(st.integers(2, 4))):
        busy = draw(st.sets(st.integers(0, length - 1), min_size=1))
        ranks.append([step(n, draw(counts), draw(counts)) if n in busy else IDLE for n in range(length)])
    return ranks


@pytest.mark.slow
@settings(max_examples=25)
@given(runs(), st.booleans(), st.sampled_from(["binary", "words"]))
def test_random_runs(ranks: list[list[Batch]], apart: bool, encoding: str) -> None:
    held = [[e for e in range(4) if e % len(ranks) == rank] for rank in range(len(ranks))]
    with TemporaryDirectory() as folder:
        made = exports(ranks, held, apart, encoding=encoding)
        paths = [export.save(Path(folder, f"{number}.sqlite")) for number, export in enumerate(made)]
        table = table_of("moe_layer_correlation", *paths)
        assert loads_of(as_text(table).write_csv()) == plain_loads(ranks, held)


# A real capture ----------------------------------------------------------------------------------------------------
