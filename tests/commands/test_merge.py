"""`nvtxmoe merge`: a session gives what an export of nsys gives; ranks, killed processes, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import JournalWriter, block, record
from nvtxmoe_analysis.outputs.registry import tables
from tests.support import sessions
from tests.support.cli import RESULTS, files, run
from tests.support.export_builder import Export, simple_run
from tests.support.paths import ROOT
from tests.support.sessions import chosen_of, counts, journal, meta, pairs, run_of, step, step_of
from tests.support.written_results import Written, written

TABLE_FILES = tuple(f"{table.stem}.{table.forms[-1]}" for table in tables().values() if not table.gpu)
FILES = {*TABLE_FILES, "moe_summary.json", "moe_capture_validation.json"}
#: Of these every byte is the same, however a run was recorded.
TIMELESS = (*(name for name in TABLE_FILES if name != "moe_load_imbalance.csv"), "moe_summary.json")


def merged(session: Path, *more: Path) -> Written:
    return written(session, session, *more)


# The same as through nsys ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, Written]:
    """programs/emit_words.py under the real nsys, writing journals too: analysed from the report, and merged."""
    folder = tmp_path_factory.mktemp("twice")
    report, session = folder / "run.nsys-rep", folder / "session"
    profile = [str(nsys_path), "profile", "-t", "nvtx", "-s", "none", "--cpuctxsw=none", "-o", str(report)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run(
        [*profile, sys.executable, str(ROOT / "tests" / "programs" / "emit_words.py")],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path, "EMIT_SESSION": str(session)},
        cwd=folder,
    )
    return written(folder, report, nsys=nsys_path), merged(session)


@pytest.mark.parametrize("name", TIMELESS)
def test_a_journal_gives_the_bytes_that_the_real_nsys_gives(twice: tuple[Written, Written], name: str) -> None:
    nsys, direct = twice
    assert (direct.folder / name).read_bytes() == (nsys.folder / name).read_bytes()


def test_times_are_the_same_but_for_the_clock(twice: tuple[Written, Written]) -> None:
    nsys, direct = (pl.read_csv(one.folder / "moe_load_imbalance.csv") for one in twice)
    assert direct.drop("timestamp_sec").equals(nsys.drop("timestamp_sec"))
    assert direct.height == 36
    apart = (direct["timestamp_sec"] - nsys["timestamp_sec"]).abs()
    assert apart.to_numpy().max() < 1  # both clocks are read one after the other, on a busy machine some ms apart
    assert nsys["timestamp_sec"].to_numpy().max() > 0.1


def test_verdicts_without_a_gpu(twice: tuple[Written, Written]) -> None:
    nsys, direct = twice
    assert (nsys.statuses, nsys.verdict) == ({"cuda_tracing": "fail"}, "incomplete")
    assert (direct.statuses, direct.verdict) == ({}, "complete")


@pytest.mark.parametrize("encoding", ["binary", "words"])
def test_every_event_gives_the_same_in_every_form(tmp_path: Path, encoding: str) -> None:
    """All files to the byte, times among them: the journal has those of the export."""
    export = Export()
    layers = [{**layer, "num_physical_experts": 5} for layer in sessions.meta_of()["layers"]]
    worker = simple_run(export, encoding=encoding, meta={"layers": layers})
    for number in range(3):
        worker.counts(number, 0, [1, 2, 3, 0, 0], event="physical")
    for layer in range(2):
        worker.mark("pairs", np.array((0, 2, layer, 0, 9, range(6)), dtype=schema.pairs_dtype(4)))
    found = written(tmp_path, export)
    ident = export.strings["moe.step"]
    began = iter([row["start"] for row in export.rows["NVTX_EVENTS"] if row["textId"] == ident])
    sent = run_of(layers=layers)
    times = [next(began) + sessions.BEGUN_NS if event == "step" else 0 for event, _ in sent]
    sent += [counts(number, 0, [1, 2, 3, 0, 0], event="physical") for number in range(3)]
    sent += [pairs(0, 2, layer, 4) for layer in range(2)]
    session = tmp_path / "session"
    journal(session, sent, times_ns=[*times, *[0] * 5])
    direct = merged(session)
    for name in (*TIMELESS, "moe_load_imbalance.csv"):
        assert (direct.folder / name).read_bytes() == (found.folder / name).read_bytes(), name
    assert direct.check("counts_sum") == found.check("counts_sum")


def test_odd_numbers_of_experts(tmp_path: Path) -> None:
    """A journal's payloads end where they end: no half word is left over."""
    layers = [{"layer": 0, "name": "odd", "num_experts": 5, "top_k": 2}]
    sent = [meta(layers=layers), step(0), counts(0, 0, [2, 2, 1, 1, 0]), pairs(0, 0, 0, 5)]
    journal(tmp_path, sent)
    found = merged(tmp_path)
    assert found.rows("moe_expert_activations", "activation_count") == [("2",), ("2",), ("1",), ("1",), ("0",)]
    assert len(found.rows("moe_expert_coselection", "tokens")) == 9  # ten pairs, one of them never


# Ranks ---------------------------------------------------------------------------------------------------------------


def activations(found: Written) -> list[int]:
    return [int(count) for (count,) in found.rows("moe_expert_activations", "activation_count")]


def per_layer(*steps: int) -> list[int]:
    """Activations of layers 0 and 1 over these steps, counted by hand."""
    return [
        sum(row.count(expert) for number in steps for row in chosen_of(number, layer))
        for layer in range(2)
        for expert in range(4)
    ]


def test_tensor_parallel_copies_count_once(tmp_path: Path) -> None:
    for rank in range(2):
        journal(tmp_path, run_of(rank, world_size=2, tp_size=2), rank=rank, pid=100 + rank)
    found = merged(tmp_path)
    assert activations(found) == per_layer(0, 1, 2)
    assert found.check("tensor_parallel_copies")[:2] == ("pass", "All 6 copies are equal; each counts once.")
    assert {rank for (rank,) in found.rows("moe_load_imbalance", "rank")} == {"0"}
    assert found.verdict == "complete"


def test_data_parallel_ranks_are_added(tmp_path: Path) -> None:
    for rank in range(2):
        journal(tmp_path, run_of(rank, world_size=2), rank=rank, pid=100 + rank)
    found = merged(tmp_path)
    assert activations(found) == [2 * count for count in per_layer(0, 1, 2)]
    assert found.verdict == "complete"


def test_sessions_of_several_hosts_are_one_run(tmp_path: Path) -> None:
    """Two hosts whose processes have the same id, and clocks of unix time: the second began 5 s later."""
    for rank in range(2):
        sent = run_of(rank, world_size=2, run_id="one")
        times = [sessions.BEGUN_NS + rank * 5_000_000_000 + at for at in range(len(sent))]
        journal(tmp_path / f"host{rank}", sent, rank=rank, pid=87, times_ns=times)
    ran = run("merge", tmp_path / "host0", tmp_path / "host1", "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    found = merged(tmp_path / "host0", tmp_path / "host1")
    assert activations(found) == [2 * count for count in per_layer(0, 1, 2)]
    begun = {rank: float(at) for rank, at in reversed(found.rows("moe_load_imbalance", "rank", "timestamp_sec"))}
    assert begun["1"] - begun["0"] == pytest.approx(5.0)
    assert found.verdict == "complete"


def test_processes_of_one_id_in_one_session(tmp_path: Path) -> None:
    """Containers on a shared file system."""
    for rank in range(2):
        journal(tmp_path, run_of(rank, world_size=2), rank=rank, pid=87)
    found = merged(tmp_path)
    assert activations(found) == [2 * count for count in per_layer(0, 1, 2)]
    processes = found.validation["inputs"][0]["processes"]
    assert [(one["pid"], one["rank"], one["journal"]) for one in processes] == [
        (87, 0, "rank0-87.journal"),
        (87, 1, "rank1-87.journal"),
    ]


def test_processes_stand_in_the_order_of_ranks(tmp_path: Path) -> None:
    for rank in (10, 2, 9):
        journal(tmp_path, run_of(rank, world_size=11), rank=rank, pid=100 - rank)
    assert [one["rank"] for one in merged(tmp_path).validation["inputs"][0]["processes"]] == [2, 9, 10]


def test_the_last_meta_of_a_process_counts(tmp_path: Path) -> None:
    """Whatever its clock did: here the last one bears the earliest time."""
    sent = [meta(model="first"), *step_of(0), meta(model="last", world_size=2)]
    journal(tmp_path, sent, times_ns=[sessions.BEGUN_NS - at for at in range(len(sent))])
    assert merged(tmp_path).check("ranks_present")[2]["world_size"] == 2


# Killed, or still running ---------------------------------------------------------------------------------------------


def test_a_killed_process(tmp_path: Path) -> None:
    """What it had flushed is there: all counts of a step, half of another's, and of two none."""
    sent = [*run_of(steps=1), *step_of(1)[:2], step(2), step(3)]
    path = journal(tmp_path, sent, end=None, block_records=3)
    with path.open("ab") as file:
        file.write(block(record("step", 1, bytes(32)))[:-1])
    size_bytes = path.stat().st_size
    found = merged(tmp_path)
    assert found.check("journals_whole") == (
        "fail",
        "1 of 1 journal without an end (1 cut off): rank0-100.journal. The process was killed or still runs; what it "
        "had written by then is here.",
        {"journals": 1, "not_ended": ["rank0-100.journal"], "truncated": ["rank0-100.journal"]},
    )
    assert (found.statuses, found.verdict) == ({"journals_whole": "fail"}, "incomplete")
    assert found.check("steps_have_counts")[2] == {"cells": 2, "missing": 0}
    assert activations(found) == [*per_layer(0, 1)[:4], *per_layer(0)[4:]]
    (process,) = found.validation["inputs"][0]["processes"]
    assert {key: process[key] for key in ("pid", "rank", "bytes", "ended", "truncated_tail", "lost", "failures")} == {
        "pid": 100, "rank": 0, "bytes": size_bytes, "ended": False, "truncated_tail": True, "lost": {}, "failures": {},
    }  # fmt: skip


def test_counts_that_stopped_long_before_the_kill(tmp_path: Path) -> None:
    """Thirty-two steps may be in flight; the others are a loss. Of a process that ended each is."""
    sent = [*run_of(steps=1), *(step(number) for number in range(1, 36))]
    journal(tmp_path / "killed", sent, end=None)
    found = merged(tmp_path / "killed")
    assert found.check("steps_have_counts")[1:] == (
        "6 of 6 (rank, step, layer) without counts, the first rank 0 step 33 layer 0.",
        {"cells": 6, "missing": 6, "examples": [f"rank 0 step {n} layer {k}" for n, k in ((33, 0), (33, 1), (34, 0))]},
    )
    journal(tmp_path / "ended", sent)
    assert merged(tmp_path / "ended").check("steps_have_counts")[2]["missing"] == 70


def test_a_rank_that_got_further_than_its_twin(tmp_path: Path) -> None:
    """Nothing that either has written is lost."""
    for rank in range(2):
        sent = run_of(rank, steps=2 + rank, world_size=2, tp_size=2)
        journal(tmp_path, sent, rank=rank, pid=100 + rank, end=None)
    found = merged(tmp_path)
    assert activations(found) == per_layer(0, 1, 2)
    assert found.check("journals_whole")[1].startswith("2 of 2 journals without an end: rank0-100.journal, rank1-101.")
    assert {name for name, status in found.statuses.items() if status == "fail"} == {"journals_whole"}


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    """Read as far as it is, and read again later."""
    writer = JournalWriter(tmp_path / "ranks" / "rank0-100.journal")
    for number in range(2):
        sent = [meta(), *step_of(0)] if not number else step_of(number)
        writer.append(b"".join(record(event, 1, payload) for event, payload in sent))
        ran = run("merge", tmp_path)
        assert (ran.code, ran.err) == (0, "")
        assert "- 1 of 1 journal without an end: rank0-100.journal" in ran.out
        assert f"1 rank, {number + 1} step" in ran.out
    writer.append(record("end", 1, json.dumps({**sessions.ENDED, "steps": 2}).encode()))
    writer.close()
    assert "Capture complete" in run("merge", tmp_path).out


# What is written and printed ------------------------------------------------------------------------------------------


def test_the_files_of_a_session(tmp_path: Path) -> None:
    """In the session's own folder, and nothing about GPU time that another analysis left there."""
    journal(tmp_path, run_of())
    (tmp_path / RESULTS).mkdir()
    for name in ("moe_layer_timings.csv", "moe_kernel_timings.parquet", "moe_straggler.json", "notes.txt"):
        (tmp_path / RESULTS / name).touch()
    ran = run("merge", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert files(tmp_path / RESULTS) == {*FILES, "notes.txt"}
    assert run("merge", tmp_path, "--format", "parquet", "--format", "csv").code == 0
    assert files(tmp_path / RESULTS) == {*FILES, "notes.txt", *(f"{Path(name).stem}.parquet" for name in TABLE_FILES)}
    assert run("merge", tmp_path / "ranks", "-o", tmp_path / "out").code == 0
    assert files(tmp_path / "out" / RESULTS) == FILES


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the first session, also where its journals are named."""
    one, two = tmp_path / "one", tmp_path / "two"
    paths = [journal(folder, run_of(rank, world_size=2), rank=rank) for rank, folder in enumerate((one, two))]
    for given in ((two, one), (paths[1], paths[0]), (two / "ranks", one)):
        assert run("merge", *given).code == 0
        assert files(two / RESULTS) == FILES
        assert not (one / RESULTS).exists()
    monkeypatch.chdir(one / "ranks")
    assert run("merge", ".").code == 0
    assert files(one / RESULTS) == FILES


def test_strict(tmp_path: Path) -> None:
    journal(tmp_path, run_of(world_size=2))
    ran = run("merge", tmp_path, "--strict")
    assert ran.code == 3
    assert "1 rank of 2 missing: 1. Give every rank's journal." in ran.out
    assert files(tmp_path / RESULTS) == FILES
    assert run("merge", tmp_path).code == 0


def test_analyze_reads_a_session_too(tmp_path: Path) -> None:
    """The same files; and filters, and SQL."""
    journal(tmp_path, run_of())
    assert run("merge", tmp_path).code == 0
    ran = run("analyze", tmp_path, "-o", tmp_path / "out", "--sqlite", tmp_path / "out.db")
    assert (ran.code, ran.err) == (0, "")
    for name in FILES:
        assert (tmp_path / "out" / RESULTS / name).read_bytes() == (tmp_path / RESULTS / name).read_bytes(), name
    ran = run("analyze", tmp_path, "-o", tmp_path / "out", "--steps", "1:", "--layers", "1", "--json")
    assert (ran.json["steps_kept"], [layer["layer"] for layer in ran.json["layers"]]) == (2, [1])


def test_the_validation_file(tmp_path: Path) -> None:
    path = journal(tmp_path, run_of())
    found: dict[str, Any] = merged(tmp_path).validation
    assert found["coverage"] is None
    # The first record is moe.meta, the second the first step.
    origin = sessions.BEGUN_NS + sessions.EVERY_NS
    assert found["clock"] == {"unit": "ns", "reports_aligned": True, "origin_ns": origin}
    (one,) = found["inputs"]
    assert one == {
        "path": str(tmp_path),
        "kind": "journal",
        "size_bytes": path.stat().st_size,
        "payload_encoding": "journal",
        "steps": 3,
        "processes": [
            {
                "pid": 100,
                "journal": "rank0-100.journal",
                "bytes": path.stat().st_size,
                "ended": True,
                "truncated_tail": False,
                "lost": {},
                "failures": {},
                "rank": 0,
                "world_size": 1,
                "tp_rank": 0,
                "tp_size": 1,
                "ep_rank": 0,
                "ep_size": 1,
                "schema": 1,
                "nvtxmoe": "0.1.0",
                "sample_every": 1,
                "layers": 2,
            }
        ],
    }
    about_gpu = {check["name"]: check for check in found["checks"] if "GPU work" in check["message"]}
    assert set(about_gpu) == {
        "range_times", "operation_times", "blobs_present", "words_whole", "steps_closed",
        "cuda_tracing", "graph_tracing", "launches_have_work",
        "layers_have_work", "graph_nodes", "ranges_nest", "operations_placed", "collectives_seen", "clocks_agree",
        "profiler_warnings", "operations_once", "kernels_named", "gpu_clock", "records_in_order", "ranges_whole",
        "checksums_agree",
    }  # fmt: skip
    assert {check["status"] for check in about_gpu.values()} == {"not_applicable"}


def test_the_report_is_written_if_asked_for_and_renewed_if_there(tmp_path: Path) -> None:
    session, page = tmp_path / "session", tmp_path / "session" / "report.html"
    journal(session, run_of())
    assert run("merge", session).code == 0 and not page.exists()
    ran = run("merge", session, "--report", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["files"][-1] == str(page) and "<!doctype html>" in page.read_text(encoding="utf-8")
    page.write_text("of an earlier merge")
    assert run("merge", session).code == 0
    assert "<!doctype html>" in page.read_text(encoding="utf-8")
