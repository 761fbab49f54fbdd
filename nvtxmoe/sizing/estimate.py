"""How many bytes a capture will take, before it is made.

The constants were measured by scripts/bench/capture_size.py; docs/development/benchmarks-capture-size.md has the
table with its spread. What was not measured (the .nsys-rep of binary payloads and of CUDA activity) is None here and
makes a sum an "at least".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from nvtxmoe.capture.startup.settings import DEFAULT_EMITS
from nvtxmoe.formats import schema
from nvtxmoe.formats.word_payloads import WORD_BYTES
from nvtxmoe.sizing.model_config import ModelShape, model_shape

__all__ = ["Estimate", "FileBytes", "ModelShape", "estimate", "model_shape"]

# Word form, nsys 2023.4: bytes an event in the .nsys-rep and in its SQLite export.
REPORT_COUNTS_MARK, EXPORT_COUNTS_MARK = 10.4, 47.3
REPORT_TOPK_MARK, EXPORT_TOPK_MARK = 16.2, 49.5
REPORT_RANGE, EXPORT_RANGE = 12.4, 48.4
# SQLite exports of nsys 2025.3: bytes a row. A blob stands in its row as it is, behind a header; an array begins with
# its length.
EXPORT_ROW, BLOB_HEADER, ARRAY_HEAD = 61.2, 32, 8
EXPORT_KERNEL, EXPORT_CALL = 80.9, 40.1
#: Kernels, copies and memsets a block and step, and runtime calls for each. Of a 4-layer model with CUDA graphs, where
#: what runs once a step weighs more than in a deep one.
OPERATIONS, CALLS = 31.7, 0.92
# The journal (zlib): bytes of any record, of a sampled token, and of one of its assignments; of a step's own record.
JOURNAL_RECORD, JOURNAL_TOPK_RECORD, JOURNAL_TOKEN, JOURNAL_ASSIGNMENT, JOURNAL_STEP = 8.0, 10.0, 2.5, 5.5, 24.0
#: Bytes an expert's count takes there, by the assignments of the mean expert.
JOURNAL_COUNT = (
    (0.0, 0.0), (0.0625, 0.19), (0.25, 0.40), (1.0, 0.65), (4.0, 0.88), (16.0, 1.15), (64.0, 1.46), (256.0, 1.81),
    (1024.0, 2.10),
)  # fmt: skip
#: A count is a u4.
MOST_COUNT = 4.0
# CSV files of the results: bytes a (step, layer) of moe_load_imbalance, an assignment of moe_routing_weights_hist, a
# (rank, step, layer) of moe_layer_timings and of moe_layer_correlation; of several ranks also a (step, layer) of
# moe_straggler, and a rank's collective of moe_collectives.
CSV_IMBALANCE, CSV_ASSIGNMENT = 43.0, 26.0
CSV_TIMINGS, CSV_CORRELATION, CSV_STRAGGLER, CSV_COLLECTIVE = 74.0, 250.0, 43.0, 187.0
#: Collectives of a rank and step: a block, and besides.
COLLECTIVES_A_BLOCK, COLLECTIVES_A_STEP = 2, 2
#: Bytes an expert's count takes in moe_step_activations.parquet, by the assignments of the mean expert.
PARQUET_COUNT = (
    (0.0, 0.0), (0.0625, 0.13), (0.25, 0.30), (1.0, 0.56), (4.0, 0.78), (16.0, 1.00), (64.0, 1.23), (256.0, 1.54),
    (1024.0, 1.82),
)  # fmt: skip
#: Phases of a layer that are ranges, and the layer's own.
RANGES_A_LAYER = 1 + len(schema.PHASES)
#: As in nvtxmoe.capture.recording.recorder: steps after which moe.meta is sent again, and steps of a span of pairs.
META_EVERY, PAIRS_EVERY = 500, 100
#: The text of moe.meta: bytes, and those a layer and a layer's expert.
META_BYTES, META_LAYER, META_EXPERT = 700, 160, 5


@dataclass(frozen=True)
class FileBytes:
    """Bytes of a whole run. None: not measured yet."""

    report: int | None
    export: int | None

    @property
    def known(self) -> int:
        """What is known of both together."""
        return (self.report or 0) + (self.export or 0)


@dataclass(frozen=True)
class Estimate:
    """Bytes of a run, all ranks and steps together.

    Attributes:
        words, binary: routing and ranges as NVTX, in either form.
        cuda: what nsys records of the GPU with node-level tracing of graphs.
        journal: routing in direct mode.
        results_direct, results_nsys: the files made of it that grow: in direct mode, and with times. CSV, but for
            moe_step_activations.
    """

    shape: ModelShape
    steps: int
    tokens: int
    ranks: int
    words: FileBytes
    binary: FileBytes
    cuda: FileBytes
    journal: int
    results_direct: int
    results_nsys: int

    def disk(self, sinks: tuple[str, ...], encoding: str) -> tuple[int, bool]:
        """Bytes of everything, and whether that is an "at least" because a part was not measured.

        Parameters:
            sinks: of ``nsys`` and ``moe``.
            encoding: of the NVTX payloads, ``words`` or ``binary``.
        """
        total, floor = 0, False
        if "moe" in sinks:
            total += self.journal + self.results_direct
        if "nsys" in sinks:
            nvtx = self.words if encoding == "words" else self.binary
            total += nvtx.known + self.cuda.known + self.results_nsys
            floor = None in (nvtx.report, nvtx.export, self.cuda.report, self.cuda.export)
        return total, floor

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(
    shape: ModelShape,
    *,
    tokens: int,
    steps: int,
    ranks: int = 1,
    log_interval: int = 100,
    layers: int | None = None,
    emit: frozenset[str] = DEFAULT_EMITS,
    eplb: bool = False,
    eager: bool = True,
) -> Estimate:
    """Bytes of a run, every rank seeing ``tokens`` tokens in each of ``steps`` steps.

    Parameters:
        log_interval: token-level rows every so many steps; 0: never.
        layers: how many MoE layers are recorded; all by default.
        emit: as the setting (nvtxmoe.capture.startup.settings.EMITS).
        eplb: whether there are physical counts to record.
        eager: whether layers run as Python in every step. In a CUDA graph's replay they do not, and have no ranges.
    """
    many = shape.layers if layers is None else min(layers, shape.layers)
    sampled = 0 if not log_interval else -(-steps // log_interval)
    spans = -(-steps // PAIRS_EVERY)
    size = _Sizes(shape, tokens, steps_a_span=steps / spans)
    times = {
        "counts": steps * ("counts" in emit) + steps * (eplb and "physical" in emit),
        "topk": sampled * ("topk" in emit),
        "pairs": spans * ("pairs" in emit),
    }
    ranges = steps * many * RANGES_A_LAYER * (eager and "ranges" in emit)
    metas = 1 + steps // META_EVERY
    meta = META_BYTES + many * (META_LAYER + META_EXPERT * shape.experts)

    report = (steps + ranges) * REPORT_RANGE
    export = (steps + ranges) * EXPORT_RANGE
    blobs = (steps + ranges) * EXPORT_ROW + steps * (BLOB_HEADER + size.step)
    journal = steps * JOURNAL_STEP + metas * meta
    for count, raw in ((steps, size.step), (metas, meta)):
        report += count * _marks(raw) * REPORT_COUNTS_MARK
        export += count * _marks(raw) * EXPORT_COUNTS_MARK
    blobs += metas * (EXPORT_ROW + BLOB_HEADER + ARRAY_HEAD + meta)
    for event, count in times.items():
        raw, packed = size.of(event)
        report += many * count * _marks(raw) * (REPORT_TOPK_MARK if event == "topk" else REPORT_COUNTS_MARK)
        export += many * count * _marks(raw) * (EXPORT_TOPK_MARK if event == "topk" else EXPORT_COUNTS_MARK)
        marks = count * _binary_marks(event, many, raw)
        blobs += marks * (EXPORT_ROW + BLOB_HEADER + ARRAY_HEAD * (event != "pairs")) + many * count * raw
        journal += many * count * packed
    assignments = tokens * shape.top_k
    counted = CSV_IMBALANCE + _counts_packed(assignments, shape.experts, PARQUET_COUNT)
    direct = many * (steps * ("counts" in emit) * counted + times["topk"] * assignments * CSV_ASSIGNMENT)
    timed = steps * many * (CSV_TIMINGS + CSV_CORRELATION)
    collective_bytes = steps * (shape.blocks * COLLECTIVES_A_BLOCK + COLLECTIVES_A_STEP) * CSV_COLLECTIVE
    between = ranks * collective_bytes + steps * many * CSV_STRAGGLER if ranks > 1 else 0.0
    return Estimate(
        shape=shape,
        steps=steps,
        tokens=tokens,
        ranks=ranks,
        words=FileBytes(_whole_bytes(ranks * report), _whole_bytes(ranks * export)),
        binary=FileBytes(None, _whole_bytes(ranks * blobs)),
        cuda=FileBytes(
            None, _whole_bytes(ranks * steps * shape.blocks * OPERATIONS * (EXPORT_KERNEL + CALLS * EXPORT_CALL))
        ),
        journal=_whole_bytes(ranks * journal),
        results_direct=_whole_bytes(ranks * direct),
        results_nsys=_whole_bytes(ranks * (direct + timed) + between),
    )


class _Sizes:
    """Bytes of one layer's payloads: raw, and packed in the journal."""

    def __init__(self, shape: ModelShape, tokens: int, steps_a_span: float) -> None:
        self.step = schema.STEP_DTYPE.itemsize
        assignments = tokens * shape.top_k
        counts = schema.counts_dtype(1).itemsize + 4 * (shape.experts - 1)
        topk = tokens * schema.topk_dtype(shape.top_k).itemsize
        entries = schema.pairs_length(shape.experts)
        pairs = 32 + 4 * entries
        chosen = steps_a_span * tokens * shape.top_k * (shape.top_k - 1) / 2
        self._of = {
            "counts": (counts, JOURNAL_RECORD + _counts_packed(assignments, shape.experts, JOURNAL_COUNT)),
            "topk": (topk, JOURNAL_TOPK_RECORD + tokens * JOURNAL_TOKEN + assignments * JOURNAL_ASSIGNMENT),
            "pairs": (pairs, JOURNAL_RECORD + _counts_packed(chosen, entries, JOURNAL_COUNT)),
        }

    def of(self, event: str) -> tuple[int, float]:
        return self._of[event]


def _counts_packed(assignments: float, cells: int, curve: tuple[tuple[float, float], ...]) -> float:
    """Bytes of so many packed counts; the curve between the measured points is straight.

    Parameters:
        curve: (assignments of the mean cell, bytes a cell).
    """
    mean = assignments / max(1, cells)
    for (low, below), (high, above) in pairwise(curve):
        if mean <= high or high == curve[-1][0]:
            return cells * min(MOST_COUNT, below + (above - below) * (mean - low) / (high - low))
    raise AssertionError("the last pair takes all the rest")


def _binary_marks(event: str, layers: int, payload_bytes: int) -> int:
    """Marks of the layers of a step in the binary form: counts of all layers are one array, up to its largest size."""
    if event != "counts" or not layers:
        return layers
    return -(-layers // max(1, schema.MOST_PAYLOAD_BYTES // payload_bytes))


def _marks(payload_bytes: int) -> int:
    """Marks of one payload in the word form."""
    return 1 + -(-payload_bytes // WORD_BYTES)


def _whole_bytes(number: float) -> int:
    return round(number)
