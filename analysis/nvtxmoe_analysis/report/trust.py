"""The page's box on trust: verdict, coverage, checks, cost of recording, versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.report.chart import Table
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import duration, pct
from nvtxmoe_analysis.report.numbers import percent
from nvtxmoe_analysis.report.results import NO_GPU, Source
from nvtxmoe_analysis.report.sentences import Sentence, sentence

#: Classes of the validation file's coverage, in words (docs/explanation/attribution.md).
CLASS_WORDS = {
    "in_layer": "in a step and in a MoE layer",
    "in_step": "in a step, outside layers: attention, sampling, ...",
    "outside_steps": "between steps: warm-up, graph capture, idle",
    "unplaced": "it can't be told where it belongs",
    "implausible": "impossible times: in no sum",
}
NOT_TOLD = "Not measured for this set-up: the capture does not say what recording costs."


@dataclass(frozen=True)
class Trust:
    """Content of the box.

    Attributes:
        complete: True if the capture is complete.
        verdict: one sentence.
        reasons: why it is incomplete.
        notes: warnings of checks.
        overhead: sentences.
        coverage: operations and time by class; if there are none, a note with the reason.
        in_short: a few words on the checks.
        checks: name, outcome, message.
        facts: versions, inputs, options.
    """

    complete: bool
    verdict: str
    reasons: list[str]
    notes: list[str]
    overhead: list[Sentence]
    coverage: Table
    in_short: str
    checks: Table
    facts: Table


def trust(source: Source) -> Trust:
    """Read the validation file."""
    validation = source.document("validation")
    checks = [check for check in validation.get("checks", []) if isinstance(check, Mapping)]
    passed = sum(check.get("status") == "pass" for check in checks)
    noted = sum(check.get("status") == "warn" for check in checks)
    complete = validation.get("verdict") == "complete"
    if not validation:
        verdict = f"Not known whether the capture is complete: {source.why('validation')}."
    elif complete:
        verdict = f"The capture is complete: {number(passed, 'check')} passed."
    else:
        verdict = "The capture is incomplete: the numbers lack what is missing."
    notes = f", {number(noted, 'note')}" if noted else ""
    in_short = f"{number(passed, 'check')} passed{notes}" if complete else "some numbers are missing: see below"
    return Trust(
        complete,
        verdict,
        [str(reason) for reason in validation.get("reasons", [])],
        [str(check.get("message")) for check in checks if check.get("status") == "warn"],
        [*(sentence("{}", line) for line in overhead(validation)), *_recording(source)],
        _coverage(validation),
        in_short,
        Table(
            ("check", "outcome", "what was found"),
            [
                [
                    str(check.get(key, "")).replace("_", " ") if key != "message" else str(check.get(key, ""))
                    for key in ("name", "status", "message")
                ]
                for check in checks
            ],
        ),
        _facts(validation),
    )


def processes(validation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what each captured process recorded in ``moe.meta``."""
    return [process for input_ in validation.get("inputs", []) for process in input_.get("processes", [])]


def overhead(validation: Mapping[str, Any]) -> list[str]:
    """Return the measured cost of recording: one sentence per distinct value of the processes."""
    overheads = [process.get("overhead") for process in processes(validation)]
    distinct = [value for i, value in enumerate(overheads) if value not in overheads[:i] and value]
    lines = [
        _cost(value) if isinstance(value, Mapping) else f"{str(value)[:1].upper()}{str(value)[1:].rstrip('.')}."
        for value in distinct
    ]
    return lines or [NOT_TOLD]


def _recording(source: Source) -> list[Sentence]:
    """Return the GPU time of nvtxmoe's own kernel in this capture."""
    frame = source.frame("layer_correlation", ["step_recording_ns", "step_gpu_ns"])
    if frame is None or not frame["step_recording_ns"].sum():
        return []
    ledger, once = Ledger(source), ("rank", "step")
    recording_kernel, step_time = (
        ledger.take("layer_correlation", c, "sum", once=once) for c in ("step_recording_ns", "step_gpu_ns")
    )
    return [
        sentence(
            "In this capture nvtxmoe's own kernel took {} of GPU time in steps, {} of it.",
            recording_kernel,
            percent(recording_kernel, step_time),
        )
    ]


def _cost(overhead_numbers: Mapping[str, Any]) -> str:
    """Return the numbers of ``measured_overhead`` in words; unknown keys unchanged."""
    unknown_numbers = dict(overhead_numbers)
    ci, gpu, share, cpu, how = (
        unknown_numbers.pop(key, None)
        for key in ("gpu_us_a_step_ci95", "gpu_us_a_step", "gpu_pct", "cpu_us_a_step", "measured")
    )
    interval = f" (95 % CI {ci[0]} to {ci[1]})" if isinstance(ci, list) and len(ci) == 2 else ""
    parts = [
        f"{gpu} us of GPU time a step{interval}" if gpu is not None else "",
        f"{share} % of the step's GPU time" if share is not None else "",
        f"{cpu} us of CPU time a step" if cpu is not None else "",
        *(f"{key} {value}" for key, value in unknown_numbers.items()),
    ]
    where = f", measured elsewhere on the same set-up: {how}" if how else ""
    return f"Recording cost {', '.join(part for part in parts if part)}{where}."


def _coverage(validation: Mapping[str, Any]) -> Table:
    coverage = validation.get("coverage")
    if not isinstance(coverage, Mapping):
        why = f"There is none: {NO_GPU}." if "coverage" in validation else "Not known: there is no validation file."
        return Table((), (), why)
    classes = coverage.get("classes", {})
    rows = [
        [
            CLASS_WORDS.get(name, name),
            f"{class_sums['operations']:,}",
            duration(class_sums["time_ns"]),
            _reasons(class_sums),
        ]
        for name, class_sums in classes.items()
    ]
    share = coverage.get("placed_pct_of_step_time")
    note = "Of kernels, copies and memsets of the whole capture, whatever was selected."
    note += "" if share is None else f" {pct(share)} of the GPU time in steps is placed."
    return Table(("where", "operations", "GPU time", "by reason"), rows, note)


def _reasons(class_sums: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')}: {sums['operations']:,}" for name, sums in class_sums.get("reasons", {}).items()
    )


def _facts(validation: Mapping[str, Any]) -> Table:
    """Return inputs, processes and options as a table."""
    rows: list[list[str]] = []
    for input_ in validation.get("inputs", []):
        rows += [["input", str(input_.get("path"))]]
        rows += [
            [key, _shown(input_[key])]
            for key in ("kind", "nsys", "export_schema", "gpus", "payload_encoding")
            if input_.get(key)
        ]
        for process in input_.get("processes", []):
            text = "; ".join(
                f"{key} {_shown(value)}"
                for key, value in process.items()
                if key not in {"overhead"} and value not in (None, {})
            )
            rows.append([f"process {process.get('pid')}", text])
    for key in ("selection", "clock", "options"):
        text = "; ".join(
            f"{name} {_shown(value)}" for name, value in (validation.get(key) or {}).items() if value is not None
        )
        rows += [[key, text]] if text else []
    return Table(("what", "value"), rows)


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
