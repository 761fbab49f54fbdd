"""Tiles a small real capture into a big export, with the true answer beside it.

``python scripts/bench/tile_capture.py CAPTURE.sqlite -o OUTDIR`` writes OUTDIR/tiled.sqlite,
OUTDIR/tiled_pqtdir/*.parquet, OUTDIR/truth_*.parquet and OUTDIR/truth.json. Every process keeps the part before
serving (graph capture) once and repeats the serving part, shifted in time; ids collide between processes.
All times are integer nanoseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nvtxmoe.formats import schema
from scripts.bench import tile_source as source_tables
from scripts.bench.tile_payloads import Payloads, rewrite_meta
from scripts.bench.tile_sinks import ParquetSink, Sink, SqliteSink
from scripts.bench.tile_source import KERNEL, NVTX, ONCE_EVENT_TYPES, RUNTIME, Frames, Source
from scripts.bench.tile_truth import Shape, source_answer, write_truth

#: A process runs this much behind the one before it, so that their rows interleave without ties in time.
STAGGER_NS = 61_803
#: Idle time between two tiles.
GAP_NS = 1_000_000
#: Process r has the source's pid + r * PID_STEP: far enough to meet no other process of the source.
PID_STEP = 1_009
#: Small tables with rows of their own in every process, as in a real capture of two.
PER_PROCESS = ("PROCESSES", "TARGET_INFO_CUDA_DEVICE", "TARGET_INFO_CUDA_CONTEXT_INFO", "TARGET_INFO_CUDA_STREAM")
#: Small tables that repeat in every process without saying which.
REPEATED = ("NVTX_PAYLOAD_SCHEMAS", "NVTX_PAYLOAD_SCHEMA_ENTRIES")
#: Columns of NVTX frames that the export does not have.
OWN_COLUMNS = ("name", "rank")


@dataclass(frozen=True)
class Plan:
    """How many tiles there are, and in every how many of them sampled tokens stay."""

    tiles: int
    topk_every: int


@dataclass(frozen=True)
class Stride:
    """What is added from one tile to the next."""

    time_ns: int
    correlation_ids: int
    grid_ids: int


def in_process(table: str, frame: pl.DataFrame, rank: int) -> pl.DataFrame:
    """Rows of the source's process as those of another: only pid, device and time differ."""
    shifts: dict[str, int] = {"globalTid": rank * PID_STEP << 24, "globalPid": rank * PID_STEP << 24}
    shifts |= {"pid": rank * PID_STEP, "processId": rank * PID_STEP, "deviceId": rank}
    if table not in PER_PROCESS:
        shifts |= {"start": rank * STAGGER_NS, "end": rank * STAGGER_NS}
    return frame.with_columns(pl.col(name) + shifts[name] for name in frame.columns if name in shifts)


def all_processes(table: str, frame: pl.DataFrame, pid: int, ranks: range) -> pl.DataFrame:
    """Rows of the processes of these ranks, interleaved in time as nsys does."""
    if table != NVTX:
        parts = [in_process(table, frame, rank) for rank in ranks]
    else:  # rows of other processes than the engine stand there once
        of_rank_process = source_tables.of_process("globalTid", pid)
        parts = [
            in_process(table, frame.filter(of_rank_process), rank).with_columns(rank=pl.lit(rank, pl.Int64))
            for rank in ranks
        ]
        parts.append(frame.filter(~of_rank_process).with_columns(rank=pl.lit(None, pl.Int64)))
    return in_order(pl.concat(parts))


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Sort by time, or by id where a table has no times."""
    return frame.sort("start" if "start" in frame.columns else "correlationId", maintain_order=True)


def with_meta(nvtx: pl.DataFrame, world_size: int) -> pl.DataFrame:
    """The head's NVTX rows, every process's moe.meta saying its own rank."""
    blobs = [
        rewrite_meta(blob, rank, world_size) if name == schema.META else blob
        for name, rank, blob in nvtx.select("name", "rank", "binaryData").iter_rows()
    ]
    return nvtx.with_columns(pl.Series("binaryData", blobs, dtype=pl.Binary))


def span_of(frames: list[pl.DataFrame], column: str) -> tuple[int, int]:
    """Smallest and largest value of a column over frames."""
    values = np.concatenate([frame[column].drop_nulls().to_numpy() for frame in frames])
    return int(values.min()), int(values.max())


def stride_of(source: Source, processes: int) -> Stride:
    """Tiles follow each other without touching in time or ids."""
    timed = [frame for frame in source.tile.values() if "start" in frame.columns]
    last_ns = max(span_of(timed, "start")[1], span_of(timed, "end")[1])
    first_id, last_id = span_of([source.tile[RUNTIME]], "correlationId")
    has_grid_ids = "gridId" in source.tile[KERNEL].columns  # a trimmed capture has none
    first_grid, last_grid = span_of([source.tile[KERNEL]], "gridId") if has_grid_ids else (0, 0)
    time_ns = last_ns - source.window.serving_ns + processes * STAGGER_NS + GAP_NS
    return Stride(time_ns, last_id - first_id + 1, last_grid - first_grid + 1)


def shifted(frame: pl.DataFrame, tile: int, stride: Stride) -> pl.DataFrame:
    """Rows of the first tile as those of a later one."""
    shifts = {"start": stride.time_ns, "end": stride.time_ns}
    shifts |= {"correlationId": stride.correlation_ids, "gridId": stride.grid_ids}
    return frame.with_columns(pl.col(name) + tile * shifts[name] for name in frame.columns if name in shifts)


class Output:
    """Hands rows to the sinks and counts them."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks
        self._rows: Counter[str] = Counter()

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Write rows of one table."""
        if table == NVTX:
            self._rows["ranges"] += int((frame["eventType"] == 59).sum())
            self._rows["marks"] += int((frame["eventType"] == 34).sum())
        self._rows[table] += frame.height
        for sink in self._sinks:
            sink.append(table, frame.drop(OWN_COLUMNS, strict=False) if table == NVTX else frame)

    def rows(self) -> dict[str, int]:
        """Rows written, by the words that truth.json uses."""
        tables = {"kernels": KERNEL, "runtime_calls": RUNTIME, "ranges": "ranges", "marks": "marks"}
        tables |= {"memcpys": "CUPTI_ACTIVITY_KIND_MEMCPY", "memsets": "CUPTI_ACTIVITY_KIND_MEMSET"}
        return {word: self._rows[table] for word, table in tables.items()}


def write_once(output: Output, source: Source, ranks: range) -> None:
    """Write the small tables and what only the head has."""
    for table, frame in source.small.items():
        if table in PER_PROCESS:
            output.append(table, pl.concat([in_process(table, frame, r) for r in ranks]))
        else:
            output.append(table, pl.concat([frame] * len(ranks)) if table in REPEATED else frame)
    for table in source.head.keys() - source.tile.keys():
        output.append(table, all_processes(table, source.head[table], source.pid, ranks))


def write_tiles(output: Output, heads: Frames, rounds: Frames, payloads: Payloads, plan: Plan, stride: Stride) -> None:
    """Write the serving part of all processes, tile after tile; the heads reach into the first."""
    for tile in range(plan.tiles):
        for table, frame in rounds.items():
            rows = shifted(frame, tile, stride)
            if table == NVTX:
                rows = rows.with_columns(pl.Series("binaryData", payloads.rewrite(tile), dtype=pl.Binary))
                rows = rows.filter(~pl.col("eventType").is_in(ONCE_EVENT_TYPES)) if tile else rows
                rows = rows.filter(pl.col("name").ne_missing(schema.TOPK)) if tile % plan.topk_every else rows
            output.append(table, rows if tile else in_order(pl.concat([heads[table], rows])))


def tile_capture(
    capture: Path,
    folder: Path,
    kernels: int,
    calls_per_kernel: float,
    processes: int,
    seed: int,
    formats: set[str],
    topk_every: int = 1,
    first_rank: int = 0,
    world_size: int | None = None,
) -> None:
    """Write the tiled export of about that many kernels in all, in the given formats, and its truth.

    Its processes are the ranks from ``first_rank`` on, of ``world_size`` (default: there are no others).
    """
    ranks = range(first_rank, first_rank + processes)
    rng = np.random.default_rng(seed)
    source = source_tables.read_source(capture)
    head, tile = source.head, source.tile
    tiles = max(1, round((kernels / processes - head[KERNEL].height) / tile[KERNEL].height))
    wanted_calls = calls_per_kernel * (head[KERNEL].height + tiles * tile[KERNEL].height)
    source_tables.fit_calls(tile, source.small, round((wanted_calls - head[RUNTIME].height) / tiles), rng)
    stride = stride_of(source, ranks.stop)
    rounds = {table: all_processes(table, frame, source.pid, ranks) for table, frame in tile.items()}
    heads = {table: all_processes(table, head[table], source.pid, ranks) for table in tile}
    heads[NVTX] = with_meta(heads[NVTX], world_size or ranks.stop)
    payloads = Payloads(rounds[NVTX], rng)
    folder.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = []
    if "sqlite" in formats:
        sinks.append(SqliteSink(folder / "tiled.sqlite", source.declarations))
    if "parquet" in formats:
        sinks.append(ParquetSink(folder / "tiled_pqtdir"))
    output = Output(sinks)
    write_once(output, source, ranks)
    plan = Plan(tiles, topk_every)
    write_tiles(output, heads, rounds, payloads, plan, stride)
    for sink in sinks:
        sink.close()
    shape = Shape(ranks, tiles, payloads.steps_per_tile, len(range(0, tiles, topk_every)))
    write_truth(folder, source_answer(capture, source.window), payloads, shape, output.rows())


def main() -> None:
    """Read the command line, tile, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", type=Path, help="SQLite export of one engine process, unpacked")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUTDIR")
    parser.add_argument("--kernels", type=int, default=5_000_000, help="about how many, in all processes")
    parser.add_argument("--calls-per-kernel", type=float, default=1.4)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument(
        "--topk-every", type=int, default=12, help="keep sampled tokens in every so many tiles; 12 is 1 step in 92"
    )
    parser.add_argument("--seed", type=int, default=0)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--sqlite-only", dest="formats", action="store_const", const={"sqlite"})
    only.add_argument("--parquet-only", dest="formats", action="store_const", const={"parquet"})
    args = parser.parse_args()
    began = time.perf_counter()
    formats: set[str] = args.formats or {"sqlite", "parquet"}
    tile_capture(
        args.capture,
        args.output,
        args.kernels,
        args.calls_per_kernel,
        args.processes,
        args.seed,
        formats,
        args.topk_every,
    )
    print((args.output / "truth.json").read_text(), end="")
    print(json.dumps({"seconds": round(time.perf_counter() - began, 1)}))


if __name__ == "__main__":
    main()
