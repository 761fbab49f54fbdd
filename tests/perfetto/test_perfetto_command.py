"""`nvtxmoe export --perfetto`: what it prints, refuses and leaves behind; traces of odd captures."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.formats import schema
from nvtxmoe_analysis.perfetto import export as module
from tests.support import export_builder
from tests.support.cli import TWO_GPUS, everything, refused, run
from tests.support.constructed_runs import make_nodes, replay, simple
from tests.support.export_builder import Export, Process, simple_run
from tests.support.perfetto_reader import Trace, read
from tests.support.sessions import BEGUN_NS, journal, meta, run_of, step_of


def exported(folder: Path, export: Export | Path, *options: object) -> Trace:
    """The trace of one input."""
    source = export if isinstance(export, Path) else export.save(folder / "built.sqlite")
    ran = run("export", source, "--perfetto", folder / "out.pftrace", *options)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return read(folder / "out.pftrace")


def test_what_it_prints(tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo.pftrace.gz"
    ran = run("export", TWO_GPUS, "--perfetto", out)
    assert ran.code == 0
    first, *counted, last = ran.out.splitlines()
    trace = read(out)
    values = sum(map(len, trace.counters.values()))
    tracks = {one.track for one in trace.slices} | set(trace.counters)
    assert first.startswith(
        f"{out}: {len(trace.slices):,} slices and {values:,} values of counters on {len(tracks)} tr"
    )
    assert [line.split() for line in counted] == [
        ["318", "host"], ["376", "GPU", "layers"], ["1,128", "GPU", "phases"], ["2,350", "collectives"],
        ["4,536", "operations"],
    ]  # fmt: skip
    assert last == "Open it in https://ui.perfetto.dev (nothing is uploaded), or with Perfetto's trace_processor."
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_json(tmp_path: Path) -> None:
    out = tmp_path / "demo.pftrace"
    said = run("export", TWO_GPUS, "--perfetto", out, "--json", "--all", "--experts", 0).json
    trace = read(out)
    assert said["file"] == str(out)
    assert said["bytes"] == out.stat().st_size
    assert said["slices"]["operations"] == sum(" stream " in trace.path(one.track)[-1] for one in trace.slices)
    assert said["counter_values"] == sum(map(len, trace.counters.values())) == 3 * 47 * 4
    assert (said["clock"], said["offsets_ns"], said["cells_without_time"]) == ("own", [0], 0)
    assert said["unix_ns"] == trace.clocks[1]


def test_compressed_and_not_are_one_trace_and_always_the_same(tmp_path: Path) -> None:
    names = ("a.pftrace", "b.pftrace", "a.pftrace.gz", "b.pftrace.gz")
    plain, again, packed, packed_again = (tmp_path / name for name in names)
    for out in (plain, again, packed, packed_again):
        assert run("export", TWO_GPUS, "--perfetto", out).code == 0
    assert plain.read_bytes() == again.read_bytes() == gzip.decompress(packed.read_bytes())
    assert packed.read_bytes() == packed_again.read_bytes()


# What it refuses ------------------------------------------------------------------------------------------------------


def test_too_many_operations(tmp_path: Path) -> None:
    out = tmp_path / "demo.pftrace"
    ran = run("export", TWO_GPUS, "--perfetto", out, "--max-operations", 4535)
    refused(ran, out, "4,536 operations, more than 4,535", "--steps", "--max-operations N")
    assert everything(tmp_path) == {}
    assert run("export", TWO_GPUS, "--perfetto", out, "--max-operations", 4536).code == 0
    refused(run("export", TWO_GPUS, "--perfetto", out, "--all", "--max-operations", 4536), "12,340 operations")
    assert run("export", TWO_GPUS, "--perfetto", out, "--steps", "40:", "--max-operations", 1000).code == 0


def test_outputs_that_can_not_be(tmp_path: Path) -> None:
    source = simple().save(tmp_path / "built.sqlite")
    file = tmp_path / "file"
    file.touch()
    before = everything(tmp_path)
    refused(run("export", source, "--perfetto", tmp_path), tmp_path, "a folder")
    refused(run("export", source, "--perfetto", source), source, "input and output are the same")
    refused(run("export", source, "--perfetto", file / "trace"), file / "trace", "Not a directory")
    refused(run("export", tmp_path / "absent.sqlite", "--perfetto", tmp_path / "trace"), "no such file")
    assert run("export", source).code == 2
    assert everything(tmp_path) == before


def test_the_earlier_trace_stays_where_the_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = simple().save(tmp_path / "built.sqlite"), tmp_path / "out.pftrace"
    assert run("export", source, "--perfetto", out).code == 0
    before = everything(tmp_path)

    def fails(*_: Any, **__: Any) -> Any:
        yield b"half a trace"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "trace", fails)
    refused(run("export", source, "--perfetto", out), out, "cannot write the trace: No space left on device")
    assert everything(tmp_path) == before


def test_an_operation_long_before_every_range_is_left_out(tmp_path: Path) -> None:
    """Its times are impossible for its launch call: no sum has it, nor the trace."""
    export = simple()
    export.rows["CUPTI_ACTIVITY_KIND_KERNEL"][0].update(start=-(10**15), end=-(10**15) + 5)
    trace = exported(tmp_path, export, "--all")
    assert len(trace.on("rank 0", "GPU 0 stream 7")) == len(export.rows["CUPTI_ACTIVITY_KIND_KERNEL"]) - 1


# Odd captures ---------------------------------------------------------------------------------------------------------


def test_operations_that_overlap_on_a_stream(tmp_path: Path) -> None:
    """Branches of a graph run side by side: tracks of one name, which the viewer shows as one."""
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    make_nodes(worker, 3)
    with worker.step(0):
        replay(worker, [101, 102, 103])
    worker.counts(0, 0, [2, 2, 1, 1])
    for row, (start, end) in zip(
        export.rows["CUPTI_ACTIVITY_KIND_KERNEL"], ((5000, 5100), (5050, 5200), (5100, 5150)), strict=True
    ):
        row.update(start=start, end=end)
    trace = exported(tmp_path, export)
    assert len(trace.named("rank 0", "GPU 0 stream 7")) == 2
    slices = trace.on("rank 0", "GPU 0 stream 7")
    assert sorted((one.start, one.end) for one in slices) == [(5000, 5100), (5050, 5200), (5100, 5150)]
    assert {one.args["launched_by"] for one in slices} == {"graph"}
    (layer,) = trace.on("rank 0", "GPU layers")
    assert (layer.start, layer.end, layer.args["busy_ns"]) == (5000, 5200, 200)


def test_a_device_and_streams_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that has no number."""
    kernel = "CUPTI_ACTIVITY_KIND_KERNEL"
    monkeypatch.setitem(
        export_builder.TABLES,
        kernel,
        export_builder.TABLES[kernel].replace("streamId INTEGER NOT NULL", "streamId INTEGER"),
    )
    export = simple()
    for index, row in enumerate(export.rows["CUPTI_ACTIVITY_KIND_KERNEL"]):
        row.update(deviceId=3, streamId=None if index % 3 == 2 else 7 + index % 3)
    trace = exported(tmp_path, export, "--all")
    tracks = [trace.tracks[uuid] for uuid in trace.named("rank 0", "GPU 3 stream *")]
    ordered = [one.name for one in sorted(tracks, key=lambda one: one.sibling_order_rank)]
    assert list(dict.fromkeys(ordered)) == ["GPU 3 stream 7", "GPU 3 stream 8", "GPU 3 stream ?"]


def test_a_step_that_did_not_end(tmp_path: Path) -> None:
    export = simple()
    (last,) = [row for row in export.rows["NVTX_EVENTS"] if row["eventType"] == 59][-5:-4]
    names = {ident: text for text, ident in export.strings.items()}
    assert names[last["textId"]] == schema.STEP
    last["end"] = None
    trace = exported(tmp_path, export)
    steps = [one for one in trace.on("rank 0", "host") if one.depth == 0]
    assert [one.args.get("open") for one in steps] == [None, None, True]
    ends = [row["end"] for row in export.rows["NVTX_EVENTS"] if row["end"] is not None]
    starts = [row["start"] for row in export.rows["NVTX_EVENTS"] if row["eventType"] == 59]
    assert steps[-1].end == max(*ends, *starts)


def test_ranges_that_cross_have_lanes_of_their_own(tmp_path: Path) -> None:
    export = simple()
    names = {ident: text for text, ident in export.strings.items()}
    layers = [row for row in export.rows["NVTX_EVENTS"] if names.get(row["textId"], "").startswith("moe.layer.")]
    layers[0]["end"] = layers[1]["start"] + 5
    trace = exported(tmp_path, export)
    assert len(trace.named("rank 0", "host")) == 2
    assert len([one for one in trace.on("rank 0", "host") if one.name.startswith("layer ")]) == 6


def test_idle_batches(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export)
    with worker.range(schema.IDLE):
        worker.kernel(70, "dummy")
    trace = exported(tmp_path, export, "--all")
    assert [one.name for one in trace.on("rank 0", "host")].count("idle") == 1
    (dummy,) = [one for one in trace.on("rank 0", "GPU 0 stream 7") if one.name == "dummy"]
    assert (dummy.args["phase"], dummy.category) == ("idle", "idle")
    assert "step" not in dummy.args
    assert "idle" not in [one.name for one in exported(tmp_path, tmp_path / "built.sqlite", "--steps", "1:").slices]


def test_counts_without_their_step(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export)
    worker.counts(99, 0, [2, 2, 1, 1])
    source = export.save(tmp_path / "built.sqlite")
    ran = run("export", source, "--perfetto", tmp_path / "out.pftrace")
    assert ran.code == 0
    trace = read(tmp_path / "out.pftrace")  # the counts are left out everywhere: see the check counts_have_steps
    (tokens,) = trace.named("rank 0", "expert load", "layer 0 tokens")
    assert [value for _, value in trace.counters[tokens]] == [3, 3, 3]


def test_a_process_without_metadata(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export, layers=1, rank=4)
    with worker.step(0), worker.layer(0):
        worker.kernel()
    trace = exported(tmp_path, export)
    assert len(trace.on("rank 4", "GPU layers")) == 1


def test_reports_of_unknown_clocks_are_told(tmp_path: Path) -> None:
    paths = []
    for rank in (0, 1):
        export = simple(rank=rank, world_size=2, pid=100 + rank)
        export.rows["TARGET_INFO_SESSION_START_TIME"] = []
        paths.append(export.save(tmp_path / f"{rank}.sqlite"))
    ran = run("export", *paths, "--perfetto", tmp_path / "out.pftrace")
    assert ran.code == 0
    assert "could not be put on one axis" in ran.out
    trace = read(tmp_path / "out.pftrace")
    assert {trace.path(uuid)[0] for uuid in trace.tracks} == {"rank 0", "rank 1"}


# Sessions -------------------------------------------------------------------------------------------------------------


def test_a_session_has_counters_alone(tmp_path: Path) -> None:
    session = tmp_path / "session"
    journal(session, run_of())
    trace = exported(tmp_path, session)
    assert trace.slices == []
    (tokens,) = trace.named("rank 0", "expert load", "layer 1 tokens")
    assert [value for _, value in trace.counters[tokens]] == [3, 3, 3]
    # Unix time is too long for an axis: it begins with the first step, and the snapshot tells when that was.
    assert trace.counters[tokens][0][0] == 0
    assert trace.clocks[6] == 0
    assert BEGUN_NS <= trace.clocks[1] < BEGUN_NS + 10**9


def test_two_ranks_of_a_session(tmp_path: Path) -> None:
    session = tmp_path / "session"
    for rank in (0, 1):
        records = [meta(rank=rank, world_size=2), *step_of(0, rank)]
        journal(session, records, rank=rank, pid=100 + rank)
    trace = exported(tmp_path, session)
    for rank in (0, 1):
        assert len(trace.named(f"rank {rank}", "expert load", "layer 0 *")) == 3 + 4


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    for path, kind in ((tmp_path / "fifo", "a FIFO"), (tmp_path / "link", "a device"), (Path("/dev/null"), "a device")):
        before = path.lstat().st_ino, path.lstat().st_mode
        refused(run("export", TWO_GPUS, "--perfetto", path), f"{path}: {kind}, where a file would be written")
        assert (path.lstat().st_ino, path.lstat().st_mode) == before
    assert {path.name for path in tmp_path.iterdir()} == {"fifo", "link"}


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "trace"
    target.parent.mkdir()
    (tmp_path / "out.pftrace").symlink_to(target)
    assert exported(tmp_path, simple()).slices
    assert (tmp_path / "out.pftrace").is_symlink()
    assert len(read(target).slices) > 0
