"""Print what placements would save: ``place``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from nvtxmoe.printing.table import Column, show_table
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.placement.run_data import PHASE_WORDS, PHASES

WORTH = "worth it"
#: The page that says how to apply a placement.
MOVE_EXPERTS = "docs/how-to/move-experts.md"
COLOURS = {"worth it": "green", "not worth it": "yellow"}


def show_placement(console: Console, document: dict[str, Any]) -> None:
    """Print a prediction (see ``nvtxmoe_analysis.placement.document.document``)."""
    run, verdict = document["run"], document["verdict"]
    console.print(
        f"{number(len(run['ranks']), 'rank')}, {number(len(run['layers']), 'MoE layer')}, "
        f"{run['cells'] - run['cells_dropped']:,} of {run['cells']:,} (step, layer) with all that is needed"
    )
    for name in PHASES:
        valued_steps = verdict["phases"].get(name, {}).get("steps_valued", 0)
        _show_phase(console, name, document["phases"][name], valued_steps)
    valued = [name for name in PHASES if document["phases"][name]["reason"] is None]
    for name in valued:
        _show_placements(console, document["placements"], name)
    if len(valued) > 1:
        console.print("max/mean tokens: of all valued steps, whichever the table; averaged over layers.")
    for placement in document["placements"]:
        if placement["reason"]:
            console.print(f"{escape(placement['label'])}: {escape(placement['reason'])}", soft_wrap=True)
    for batch in document["batches"]:
        _show_batch(console, batch)
    colour = COLOURS.get(verdict["answer"], "bold")
    console.print(f"[{colour}]{escape(verdict['sentence'])}[/{colour}]")
    for fact in verdict["considered"]:
        console.print(f"Note: {escape(fact)}")
    if document["files"]:
        console.print("Written:")
    for file in document["files"]:
        console.print(f"  {escape(file)}", soft_wrap=True)
    named = f"{verdict['placement']}."
    if verdict["answer"] == WORTH and any(Path(file).name.startswith(named) for file in document["files"]):
        console.print(f"The verdict's placement is {named}*; the page below says what to do with it.")
        console.print(f"  {MOVE_EXPERTS}")
    for name, reason in document["files_lacking"].items():
        console.print(f"  not {escape(name)}: {escape(reason)}", soft_wrap=True)


def _show_phase(console: Console, name: str, phase: dict[str, Any], valued: int) -> None:
    """Print the model of a phase; times per step are of the steps that were valued."""
    if phase["reason"] is not None:
        console.print(f"{PHASE_WORDS[name]}: no prediction: {escape(phase['reason'])}", soft_wrap=True)
        return
    pairs = zip(phase["features"], phase["mean_slopes_ns"], strict=True)
    costs = ", ".join(f"{_us(slope, 3)} per {feature.removesuffix('s')}" for feature, slope in pairs)
    today = phase["today"]
    share = today["explained_pct"]
    explained = "" if share is None else f", of which the fit explains {share:.0f} %"
    console.print(
        f"{number(phase['steps'], f'{PHASE_WORDS[name]} step')}, fitted on one half, valued on the other ({valued:,}): "
        f"{costs}. Today's slowest ranks take {_us(today['excess_measured_ns'])} per valued step more than the "
        f"mean{explained}."
    )


def _show_batch(console: Console, batch: dict[str, Any]) -> None:
    check = batch["check_error_pct"]
    checked = "" if check is None else f"; batches seen are predicted from the others with an error of {check:.1f} %"
    low, high = batch["predicted_low_ns"], batch["predicted_high_ns"]
    interval = "" if low is None else f" (95 % interval {_number(low)} to {_number(high)})"
    console.print(
        f"decode with {number(batch['tokens'], 'token')}: all MoE layers take {_number(batch['predicted_ns'])} us "
        f"per step{interval}{checked}"
    )


def _show_placements(console: Console, placements: list[dict[str, Any]], phase: str) -> None:
    columns = (
        Column(f"{PHASE_WORDS[phase]} steps", right=False),
        Column("us per step", drop=1),
        Column("saves us"),
        Column("95 % interval"),
        Column("max/mean tokens", drop=2),
    )
    rows = []
    for placement in placements:
        if placement["reason"]:
            continue
        part = placement[phase]
        saved = ["", ""] if placement["name"] == "today" else [_number(part["saved_ns"]), _interval(part)]
        ratio = placement["tokens_max_mean"]
        rows.append(
            (placement["label"], _number(part["predicted_ns"]), *saved, "" if ratio is None else f"{ratio:.3f}")
        )
    show_table(console, columns, rows, elsewhere="see --json")


def _interval(part: dict[str, Any]) -> str:
    if part["saved_low_ns"] is None:
        return "unknown"
    return f"{_number(part['saved_low_ns'])} to {_number(part['saved_high_ns'])}"


def _number(value: float) -> str:
    return f"{value / 1000:,.{1 if abs(value) >= 100_000 else 2}f}"


def _us(value: float, decimals: int = 1) -> str:
    return f"{value / 1000:,.{decimals}f} us"
