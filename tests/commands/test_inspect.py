"""`nvtxmoe inspect`: figures of the golden captures, and verdicts on captures that lack something."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from nvtxmoe import cli
from nvtxmoe_analysis.inspection.inspect import INCOMPLETE, NO_EVENTS, NOTHING_MISSING, Inspection, inspect
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export as OpenExport
from nvtxmoe_analysis.readers.open import open_export
from tests.support.cli import refused, run
from tests.support.constructed_runs import simple
from tests.support.export_builder import Export, Process, simple_run


def looked_at(*exports: Export, folder: Path) -> Inspection:
    paths = [export.save(folder / f"built{i}.sqlite") for i, export in enumerate(exports)]
    return inspect([open_export(path) for path in paths])


def test_two_gpus(golden_2gpu: Path) -> None:
    found = inspect([open_export(golden_2gpu)])
    (one,) = found.inputs
    assert (one.kind, one.size_bytes) == ("sqlite", golden_2gpu.stat().st_size)
    assert (one.nsys_product, one.nsys_version, one.export_schema) == ("NVIDIA Nsight Systems", "2025.3.2.0", "3.20.3")
    assert one.gpu_operations == {"kernel": 40601, "memcpy": 4153, "memset": 398, "graph_trace": 0}
    assert one.graph_tracing == "node"
    contents = one.contents
    assert contents is not None
    assert contents.versions == {
        "vllm": ["0.26.0"],
        "torch": ["2.11.0+cu130"],
        "nvtxmoe": ["0-fixture"],
        "device": ["NVIDIA H100 80GB HBM3"],
    }
    ranks = [(p.rank, p.pid, p.tp_rank, p.tp_size, p.ep_rank, p.ep_size, p.dp_size) for p in contents.processes]
    assert ranks == [(0, 2084, 0, 2, 0, 2, None), (1, 2085, 1, 2, 1, 2, None)]
    steps = [(p.steps, p.first_step, p.last_step, p.prefill_tokens, p.decode_tokens) for p in contents.processes]
    assert steps == [(47, 0, 46, 3623, 569)] * 2
    assert [(n.layer, n.num_experts, n.top_k) for n in contents.layers] == [(n, 32, 4) for n in range(4)]
    assert (contents.steps, contents.counts, contents.samples, contents.sampled_tokens) == (94, 376, 48, 2888)
    assert (contents.encoding, contents.blobs) == ("binary", "present")
    assert contents.span_ns == 36_524_831_026
    assert (found.verdict, found.missing) == (NOTHING_MISSING, [])
    # This capture is whole all the same.
    assert found.warnings == ["nsys says: Not all NVTX events might have been collected."]


@pytest.mark.parametrize("command", [["inspect"], ["analyze", "-o", "out"], ["export", "--perfetto", "out"]])
def test_results_are_shown_by_the_report(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "my results"
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / "moe_capture_validation.json").write_text("{}")
    for path in (folder, folder / FOLDER):
        refused(run(*command, path), path, "results, not a capture", f"Show them with `nvtxmoe report '{path}'`")


def test_sqlite_and_parquet_say_the_same(golden_1gpu: Path, golden_1gpu_parquet: Path) -> None:
    (one,), (other,) = (inspect([open_export(p)]).inputs for p in (golden_1gpu, golden_1gpu_parquet))
    assert one.contents == other.contents
    assert one.contents is not None
    assert (one.contents.counts, one.contents.samples, one.contents.steps) == (184, 24, 46)
    assert (
        one.gpu_operations == other.gpu_operations == {"kernel": 24968, "memcpy": 1560, "memset": 0, "graph_trace": 0}
    )
    assert (other.kind, other.size_bytes) == ("parquet", sum(f.stat().st_size for f in golden_1gpu_parquet.iterdir()))
    assert one.graph_tracing == other.graph_tracing == "node"


def test_cuda_tables_are_not_read(golden_2gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = OpenExport.read

    def guarded(self: OpenExport, table: nsys_tables.Table, *args: object, **more: object) -> object:
        assert not table.name.startswith(("CUPTI", "CUDA")), table.name
        return read(self, table, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(OpenExport, "read", guarded)
    assert inspect([open_export(golden_2gpu)]).verdict == NOTHING_MISSING


def test_words(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, encoding="words")
    found = looked_at(export, folder=tmp_path)
    contents = found.inputs[0].contents
    assert contents is not None
    assert (found.verdict, contents.encoding, contents.counts, contents.samples) == (NOTHING_MISSING, "words", 6, 6)


def test_ranks_that_the_world_size_promises(tmp_path: Path) -> None:
    first, second = Export(), Export()
    simple_run(first, rank=0, world_size=4, pid=1)
    simple_run(second, rank=2, world_size=4, pid=1)
    found = looked_at(first, second, folder=tmp_path)
    assert found.verdict == INCOMPLETE
    assert found.missing == ["world_size says 4 ranks, 2 found (without 1, 3)"]


def test_runs_that_do_not_belong_together(tmp_path: Path) -> None:
    first, second = Export(), Export()
    simple_run(first, rank=0, world_size=1)
    simple_run(second, rank=0, world_size=2)
    assert looked_at(first, second, folder=tmp_path).missing == [
        "processes disagree on the world size: 1, 2",
        "world_size says 2 ranks, 1 found (without 1)",
        "more than one process says to be rank 0: these are several runs",
    ]
    first, second = Export(), Export()
    simple_run(first, rank=0, world_size=1, meta={"run_id": "a"})
    simple_run(second, rank=0, world_size=2, meta={"run_id": "b"})
    assert looked_at(first, second, folder=tmp_path / "..").missing == [
        "run b: world_size says 2 ranks, 1 found (without 1)"
    ]


def test_blobs_that_were_not_exported(golden_1gpu: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.sqlite"
    shutil.copy(golden_1gpu, path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE NVTX_EVENTS SET binaryData = NULL")
    found = inspect([open_export(path)])
    assert found.verdict == INCOMPLETE
    assert found.missing == [
        "255 events lost the payload: export again with --include-blobs=true",
        "process 3579 has steps but no moe.meta",
    ]
    contents = found.inputs[0].contents
    assert contents is not None
    assert (contents.encoding, contents.blobs, contents.layers) == ("none", "missing", [])
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE NVTX_EVENTS DROP COLUMN binaryData")
    found = inspect([open_export(path)])
    assert found.missing[0] == "255 events lost the payload: this version of nsys has no column for them"


def test_graph_tracing(tmp_path: Path) -> None:
    mode = "PROCESS_0:CUDA_GRAPH_TRACE_OPTIONS:MODE"

    def tracing(export: Export, name: str) -> Inspection:
        return inspect([open_export(export.save(tmp_path / name))])

    eager = Export()
    simple_run(eager)
    assert tracing(eager, "unknown.sqlite").inputs[0].graph_tracing == "unknown"
    eager.add("META_DATA_CAPTURE", name=mode, value="Node")
    assert tracing(eager, "none.sqlite").inputs[0].graph_tracing == "none used"
    whole = Export()
    worker = simple_run(whole)
    call = worker.call("cudaGraphLaunch_v10000")
    whole.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", **worker._activity(whole.now, 50, call, None))
    for row in whole.rows["CUPTI_ACTIVITY_KIND_GRAPH_TRACE"]:
        del row["graphNodeId"]
    found = tracing(whole, "graph.sqlite")
    assert found.inputs[0].graph_tracing == "graph"
    assert found.missing == [
        "CUDA graphs were traced as a whole, without their kernels; capture with --cuda-graph-trace=node"
    ]


def test_cuda_activity_that_is_not_there(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.step(0):
        pass
    worker.counts(0, 0, [2, 2, 1, 1])
    found = looked_at(export, folder=tmp_path)
    assert found.missing == [
        "1 of 2 (rank, step, layer) have no counts",
        "no CUDA activity was recorded. Capture with `nsys profile -t cuda,nvtx --cuda-graph-trace=node`",
    ]
    worker.call()
    (tmp_path / "built0.sqlite").unlink()
    assert looked_at(export, folder=tmp_path).missing[-1] == "1 CUDA calls but no GPU operation"
    worker.kernel()
    export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"] = []
    (tmp_path / "built0.sqlite").unlink()
    assert looked_at(export, folder=tmp_path).missing[-1].startswith("1 GPU operations but no CUDA call")


def test_a_capture_that_was_cut_off(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, encoding="words", steps=2)
    with worker.step(2) as step:
        pass
    step["end"] = None
    worker.nvtx(34, "moe.w.counts", int64Value=99)
    found = looked_at(export, folder=tmp_path)
    assert found.missing == [
        "1 payload spelled as words broke off",
        "1 step still open when the capture ended",
        "2 of 6 (rank, step, layer) have no counts",
    ]


def test_no_step_at_all(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    worker.kernel()
    found = looked_at(export, folder=tmp_path)
    assert found.missing == ["no moe.step range: no step was recorded"]
    contents = found.inputs[0].contents
    assert contents is not None
    assert (contents.processes[0].steps, contents.processes[0].first_step, contents.span_ns) == (0, None, 0)


def test_without_events_of_ours(payload_encodings: Path) -> None:
    found = inspect([open_export(payload_encodings)])
    assert found.verdict == NO_EVENTS
    assert found.inputs[0].contents is None
    assert found.missing[0].startswith("no events of the NVTX domain nvtxmoe (domains found: pt). Capture a program")


# The command ---------------------------------------------------------------------------------------------------------


def test_command_for_people(golden_2gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(golden_2gpu)]) == 0
    printed = capsys.readouterr().out
    for text in (
        str(golden_2gpu),
        "SQLite export, 3.9 MB",
        "NVIDIA Nsight Systems 2025.3.2.0, export schema 3.20.3",
        "vllm 0.26.0, torch 2.11.0+cu130, nvtxmoe 0-fixture, device NVIDIA H100 80GB HBM3",
        "0-3: 32 experts, top-4",
        "376 counts, 48 samples of 2,888 tokens; encoding binary, blobs present",
        "40,601 kernel, 4,153 memcpy, 398 memset; 37,068 CUDA calls",
        "So far nothing is missing; `nvtxmoe analyze` checks every launch.",
        "Note: nsys says: Not all NVTX events might have been collected.",
    ):
        assert text in printed


def test_command_for_scripts(golden_1gpu: Path, golden_2gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "--json", str(golden_2gpu)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "nothing missing so far"
    assert found["inputs"][0]["contents"]["processes"][1]["pid"] == 2085
    assert cli.run(["inspect", "--json", str(golden_1gpu), str(golden_2gpu)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], len(found["inputs"])) == ("incomplete", 2)
    assert found["warnings"][0].startswith("h100-2gpu-ep2-graphs.sqlite: nsys says")


def test_command_on_what_it_cannot_use(
    payload_encodings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", str(payload_encodings)]) == 2
    assert "Something is missing:\n  - no events of the NVTX domain nvtxmoe" in capsys.readouterr().out
    (tmp_path / "text.sqlite").write_text("hello")
    assert cli.run(["inspect", str(tmp_path / "text.sqlite")]) == 2
    assert "not a SQLite database" in capsys.readouterr().err
    assert cli.run(["inspect", str(tmp_path / "nothing.sqlite")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_capture_beside_its_results_is_read_again(golden_1gpu_parquet: Path, tmp_path: Path) -> None:
    """Results may be written into the folder of the export, or of the reports."""
    export, reports = tmp_path / "export", tmp_path / "reports"
    shutil.copytree(golden_1gpu_parquet, export)
    reports.mkdir()
    simple().save(reports / "x.sqlite")
    for capture in (export, reports):
        for output in (capture, tmp_path / "out"):
            ran = run("analyze", capture, "-o", output)
            assert ran.code == 0, ran.err
    assert run("inspect", export).code == 0
