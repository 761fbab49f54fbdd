"""moe_capture_validation: checks, coverage, versions, options and inputs as one JSON value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from nvtxmoe_analysis.outputs.spec import VALIDATION, Document

if TYPE_CHECKING:
    from nvtxmoe_analysis.checks.check import Check
    from nvtxmoe_analysis.events.journal_file import JournalFile
    from nvtxmoe_analysis.events.meta import Meta
    from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

DOCUMENT = Document(
    name="validation",
    stem=VALIDATION,
    order=20,
    meaning="verdict, checks, coverage, inputs",
)


#: Names of work in steps outside layers that are listed.
TOP_OUTSIDE = 20


def document(results: RunMetrics) -> dict[str, Any]:
    """Checks, coverage, versions, options and inputs as one JSON value."""
    return validate(results)[1]


def validate(results: RunMetrics) -> tuple[list[Check], dict[str, Any]]:
    """Run the checks; their outcomes, and the document for moe_capture_validation.json."""
    from nvtxmoe_analysis.checks.check import FAIL  # noqa: PLC0415  see registry
    from nvtxmoe_analysis.checks.registry import run_checks, verdict  # noqa: PLC0415  see registry

    checks = run_checks(results)
    return checks, {
        "verdict": verdict(checks),
        "reasons": [check.message for check in checks if check.status == FAIL],
        "checks": [
            {"name": c.name, "status": c.status, "message": c.message, "figures": dict(c.evidence)} for c in checks
        ],
        "coverage": None if results.direct else coverage(results.reports),
        "selection": {
            **results.selection.describe(),
            "steps_kept": len(results.steps),
            "steps_captured": sum(len(report.steps) for report in results.reports),
            "steps_lost": results.lost_steps.steps,
        },
        "clock": {
            "unit": "ns",
            **({} if results.direct else {"gpu_start_ns": "each report's own time"}),
            "reports_aligned": results.aligned,
            "origin_ns": results.origin_ns,
        },
        "options": results.options,
        "inputs": [_session(report) if report.direct else _input(report) for report in results.reports],
        "failed_inputs": [
            {"path": str(failure.source), "error": failure.error, "attempts": failure.attempts}
            for failure in results.failed
        ],
    }


def coverage(reports: Sequence[CaptureFacts]) -> dict[str, Any]:
    """Operations and GPU time by class, with reasons and kinds; shares are of the GPU time inside steps."""
    from nvtxmoe_analysis.attribution.gpu_operations import KINDS  # noqa: PLC0415  see registry
    from nvtxmoe_analysis.attribution.placed import CLASSES, IMPLAUSIBLE, REASONS  # noqa: PLC0415  see registry

    total = (
        pl.concat([report.coverage for report in reports])
        .group_by("class", "reason", "kind")
        .agg(pl.col("operations").sum(), pl.col("time_ns").sum())
        .sort("class", "reason", "kind")
    )
    classes: dict[str, Any] = {}
    for code, name in enumerate(CLASSES):
        of_class = total.filter(pl.col("class") == code)
        if code == IMPLAUSIBLE and of_class.is_empty():
            continue
        classes[name] = {
            **_sums(of_class),
            "kinds": {KINDS[k]: _sums(of_class.filter(pl.col("kind") == k)) for k in of_class["kind"].unique().sort()},
        }
        reasons = [r for r in of_class["reason"].unique().sort() if REASONS[r]]
        if reasons or name == "unplaced":
            classes[name]["reasons"] = {REASONS[r]: _sums(of_class.filter(pl.col("reason") == r)) for r in reasons}
    in_steps = sum(classes[name]["time_ns"] for name in ("in_layer", "in_step", "unplaced"))
    placed = classes["in_layer"]["time_ns"] + classes["in_step"]["time_ns"]
    outside = (
        pl.concat([report.outside_layers for report in reports])
        .group_by("name")
        .agg(pl.col("operations").sum(), pl.col("time_ns").sum())
        .sort(["time_ns", "name"], descending=[True, False])
    )
    return {
        "classes": classes,
        "in_layer_pct_of_step_time": 100.0 * classes["in_layer"]["time_ns"] / in_steps if in_steps else None,
        "placed_pct_of_step_time": 100.0 * placed / in_steps if in_steps else None,
        "in_step_outside_layers_names": outside.head(TOP_OUTSIDE).to_dicts(),
    }


def _sums(frame: pl.DataFrame) -> dict[str, int]:
    return {"operations": int(frame["operations"].sum()), "time_ns": int(frame["time_ns"].sum())}


#: Keys of moe.meta that are repeated.
_SAID = (
    *("rank", "world_size", "tp_rank", "tp_size", "ep_rank", "ep_size", "dp_rank", "dp_size"),
    *("schema", "nvtxmoe", "vllm", "torch", "device", "recording", "eplb", "overhead", "sample_every", "capture"),
)


def _input(report: CaptureFacts) -> dict[str, Any]:
    from nvtxmoe_analysis.readers import nsys_tables  # noqa: PLC0415  see registry

    return {
        "path": str(report.source),
        "kind": report.kind,
        "size_bytes": report.size_bytes,
        "nsys": report.export_info.get("EXPORT_PRODUCT_VERSION"),
        "export_schema": report.export_info.get("EXPORT_SCHEMA_VERSION"),
        "gpus": list(report.gpus),
        "payload_encoding": report.events.encoding,
        "runtime_calls": report.runtime_calls,
        "gpu_operations": report.operations,
        "steps": len(report.steps),
        "processes": [
            {"pid": pid & nsys_tables.PID_MASK, **_identity_fields(meta)}
            for pid, meta in sorted(report.metas.items(), key=lambda item: item[1].rank)
        ],
    }


def _identity_fields(meta: Meta) -> dict[str, Any]:
    return {**{k: meta.raw[k] for k in _SAID if k in meta.raw}, "layers": len(meta.layers)}


def _session(report: CaptureFacts) -> dict[str, Any]:
    """A session of direct mode; a process a journal, in the order of ranks."""
    return {
        "path": str(report.source),
        "kind": report.kind,
        "size_bytes": report.size_bytes,
        "payload_encoding": report.events.encoding,
        "steps": len(report.steps),
        "processes": [
            {
                "pid": _pid(file, report.metas.get(number)),
                "journal": file.path.name,
                "bytes": file.size_bytes,
                "ended": file.ended,
                "truncated_tail": file.truncated,
                "lost": dict(file.last_words.lost),
                "failures": dict(file.last_words.failures),
                **(_identity_fields(report.metas[number]) if number in report.metas else {}),
            }
            for number, file in report.events.journals.items()
        ],
    }


def _pid(file: JournalFile, meta: Meta | None) -> int | None:
    """The process's id: a journal that was given another name tells it in moe.meta."""
    pid = meta.raw.get("pid") if meta is not None and file.pid is None else file.pid
    return pid if isinstance(pid, int) else None
