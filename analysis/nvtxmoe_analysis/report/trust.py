"""The box that says whether the numbers can be trusted: verdict, coverage, checks, what capture cost, versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.report.chart import Table
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, duration, pct, percent, sentence
from nvtxmoe_analysis.report.results import NO_GPU, Source

#: What the classes of the validation file's coverage mean (docs/attribution.md).
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
    """What the box holds.

    Attributes:
        complete: whether the capture is complete.
        verdict: one sentence.
        reasons: why it is incomplete.
        notes: warnings of checks.
        overhead: sentences.
        coverage: operations and time by class; without rows, a note that says why.
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
    found = source.document("validation")
    checks = [one for one in found.get("checks", []) if isinstance(one, Mapping)]
    passed = sum(one.get("status") == "pass" for one in checks)
    noted = sum(one.get("status") == "warn" for one in checks)
    complete = found.get("verdict") == "complete"
    if not found:
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
        [str(reason) for reason in found.get("reasons", [])],
        [str(one.get("message")) for one in checks if one.get("status") == "warn"],
        [*(sentence("{}", line) for line in overhead(found)), *_recording(source)],
        _coverage(found),
        in_short,
        Table(
            ("check", "outcome", "what was found"),
            [
                [
                    str(one.get(key, "")).replace("_", " ") if key != "message" else str(one.get(key, ""))
                    for key in ("name", "status", "message")
                ]
                for one in checks
            ],
        ),
        _facts(found),
    )


def processes(validation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each captured process said of itself."""
    return [process for given in validation.get("inputs", []) for process in given.get("processes", [])]


def overhead(validation: Mapping[str, Any]) -> list[str]:
    """What recording was measured to cost, a sentence each distinct answer of the processes."""
    said = [process.get("overhead") for process in processes(validation)]
    distinct = [value for i, value in enumerate(said) if value not in said[:i] and value]
    lines = [
        _cost(value) if isinstance(value, Mapping) else f"{str(value)[:1].upper()}{str(value)[1:].rstrip('.')}."
        for value in distinct
    ]
    return lines or [NOT_TOLD]


def _recording(source: Source) -> list[Sentence]:
    """What nvtxmoe's own kernel took in this very capture."""
    frame = source.frame("layer_correlation", ["step_recording_ns", "step_gpu_ns"])
    if frame is None or not frame["step_recording_ns"].sum():
        return []
    ledger, once = Ledger(source), ("rank", "step")
    own, whole = (ledger.take("layer_correlation", c, "sum", once=once) for c in ("step_recording_ns", "step_gpu_ns"))
    return [
        sentence(
            "In this capture nvtxmoe's own kernel took {} of GPU time in steps, {} of it.", own, percent(own, whole)
        )
    ]


def _cost(figures: Mapping[str, Any]) -> str:
    """Figures of ``measured_overhead`` in words; what is not known by name is given as it stands."""
    rest = dict(figures)
    ci, gpu, share, cpu, how = (
        rest.pop(key, None) for key in ("gpu_us_a_step_ci95", "gpu_us_a_step", "gpu_pct", "cpu_us_a_step", "measured")
    )
    interval = f" (95 % CI {ci[0]} to {ci[1]})" if isinstance(ci, list) and len(ci) == 2 else ""
    parts = [
        f"{gpu} us of GPU time a step{interval}" if gpu is not None else "",
        f"{share} % of the step's GPU time" if share is not None else "",
        f"{cpu} us of CPU time a step" if cpu is not None else "",
        *(f"{key} {value}" for key, value in rest.items()),
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
        [CLASS_WORDS.get(name, name), f"{one['operations']:,}", duration(one["time_ns"]), _reasons(one)]
        for name, one in classes.items()
    ]
    share = coverage.get("placed_pct_of_step_time")
    note = "Of kernels, copies and memsets of the whole capture, whatever was selected."
    note += "" if share is None else f" {pct(share)} of the GPU time in steps is placed."
    return Table(("where", "operations", "GPU time", "by reason"), rows, note)


def _reasons(one: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')}: {found['operations']:,}" for name, found in one.get("reasons", {}).items()
    )


def _facts(validation: Mapping[str, Any]) -> Table:
    """What was captured with what, and how it was analysed."""
    rows: list[list[str]] = []
    for given in validation.get("inputs", []):
        rows += [["input", str(given.get("path"))]]
        rows += [
            [key, _shown(given[key])]
            for key in ("kind", "nsys", "export_schema", "gpus", "payload_encoding")
            if given.get(key)
        ]
        for process in given.get("processes", []):
            told = "; ".join(
                f"{key} {_shown(value)}"
                for key, value in process.items()
                if key not in {"overhead"} and value not in (None, {})
            )
            rows.append([f"process {process.get('pid')}", told])
    for key in ("selection", "clock", "options"):
        told = "; ".join(
            f"{name} {_shown(value)}" for name, value in (validation.get(key) or {}).items() if value is not None
        )
        rows += [[key, told]] if told else []
    return Table(("what", "value"), rows)


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
