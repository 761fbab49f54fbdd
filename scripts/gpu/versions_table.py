#!/usr/bin/env python3
"""Renders the table of docs/reference/tested-setups.md on a GPU from what scripts/gpu/check_all.py measured.

    python scripts/gpu/versions_table.py results.json [more.json ...]           # print it
    python scripts/gpu/versions_table.py results.json --into docs/reference/tested-setups.md

A row is a case that ran, or one that did not with the reason. Of several files the last one that ran a case counts, so
a case that was repeated in a later file replaces its earlier result. Rows are in the order of scripts/gpu/cases.py.
With --into, the text between the two marks ``<!-- gpu 0.33.0 -->`` and ``<!-- /gpu 0.33.0 -->`` is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu.cases import CASES  # noqa: E402

HEAD = (
    "model", "quantisation, parallelism", "model runner", "CUDA graphs", "oracle", "kernel", "recorded by",
    "steps (replays in)", "cells", "tokens x layers", "weights", "result",
)  # fmt: skip
GRAPHS = {
    "default": "vLLM's choice", "full": "full", "full_uncompiled": "full, not compiled",
    "full_decode": "full for decode, not compiled", "full_and_piecewise": "full and piecewise",
    "piecewise": "piecewise", "eager": "none",
}  # fmt: skip
ORACLES = {"copies": "copies in the graph", "vllm": "vLLM's capturer"}


def merged(files: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One machine and one result per case: the last that ran, else the last.

    Parameters:
        files: parsed results.json, the oldest first.

    Returns:
        The last file's machine, with ``ran_on``: the names of the cases by the GPUs that they ran on; and the results
        in the order of the matrix.
    """
    machine: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {}
    gpus_of: dict[str, str] = {}
    for file in files:
        machine |= {key: value for key, value in file["machine"].items() if value}
        gpus = gpus_in_words(file["machine"].get("gpus") or machine.get("gpus"))
        for case in file["cases"]:
            before = cases.get(case["name"])
            if before is None or case["status"] != "not run" or before["status"] == "not run":
                cases[case["name"]] = case
                gpus_of[case["name"]] = gpus
    order = {case.name: number for number, case in enumerate(CASES)}
    names = sorted(cases, key=lambda name: order.get(name, len(order)))
    machine["ran_on"] = {}
    for name in names:
        machine["ran_on"].setdefault(gpus_of[name], []).append(name)
    return machine, [cases[name] for name in names]


def gpus_in_words(gpus: Sequence[str] | None) -> str:
    """The GPUs of a machine: ``2 x NVIDIA H200``."""
    if not gpus:
        return "a GPU that nvidia-smi does not name"
    return f"{len(gpus)} x {gpus[0]}" if len(gpus) > 1 else str(gpus[0])


def section(machine: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> str:
    """The versions, the machines if there are several, and the table."""
    packages = (("vLLM", "vllm"), ("PyTorch", "torch"), ("Triton", "triton"), ("driver", "driver"))
    versions = ", ".join(f"{name} {machine[key]}" for name, key in packages if machine.get(key))
    ran = sum(case["status"] == "exact" for case in cases)
    ran_on = machine.get("ran_on") or {}
    *others, where = sorted(ran_on, key=lambda gpus: len(ran_on[gpus])) or [gpus_in_words(machine.get("gpus"))]
    which = "".join(
        f" Cases on another machine ({gpus}): {', '.join(f'`{name}`' for name in ran_on[gpus])}." for gpus in others
    )
    return "\n".join(
        [
            f"{where}, {machine.get('date', 'day unknown')}: {versions}. {ran} of {len(cases)} cases are exact.{which}",
            "",
            table(cases),
        ]
    )


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """A row per compared process, and one per case without a comparison."""
    rows = [row for case in cases for row in _rows(case)]
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
    return "\n".join(lines)


def _rows(case: Mapping[str, Any]) -> list[list[str]]:
    compared = [process for process in case.get("processes", ()) if "oracle_cells" in process]
    if not compared or case["status"] in ("not run", "failed", "timed out"):
        how = {"not run": "not run"}.get(case["status"], case["status"])
        why = _cell(str(case.get("why") or "no reason is known"))
        return [[case["model"], case["setting"], *[""] * (len(HEAD) - 3), f"{how}: {why}"]]
    many = len(compared) > 1
    return [
        _row(case, process, f", rank {rank} of {len(compared)}" if many else "")
        for rank, process in enumerate(compared)
    ]


def _row(case: Mapping[str, Any], process: Mapping[str, Any], rank: str) -> list[str]:
    runner = "V2" if ".gpu." in process["runner"] else "V1"
    kernels = sorted({kernel["experts"] or kernel["method"] for kernel in process["kernels"]})
    recorded = ", ".join(
        f"{how} ({len(layers)} layers)" if len(process["recording"]) > 1 else how
        for how, layers in process["recording"].items()
    )
    if again_tokens := process.get("again_tokens"):
        recorded += f"; again, recomputed: {_of(process['again_tokens_equal'], again_tokens)} tokens"
        recorded += f", {process['ambiguous']:,} ambiguous" if process["ambiguous"] else ""
    cells = _of(process["cells_equal"], process["oracle_cells"])
    tokens = _of(process["tokens_equal"], process["oracle_tokens"])
    if process["tokens_tied"]:
        tokens += f", {process['tokens_tied']:,} tied"
    return [
        case["model"],
        case["setting"] + rank,
        runner,
        GRAPHS[process["mode"]],
        ORACLES[process["oracle"]],
        ", ".join(kernels),
        recorded,
        _steps(process),
        cells,
        tokens,
        _weights(process),
        _result(process),
    ]


def _steps(process: Mapping[str, Any]) -> str:
    """Steps and replays; where steps were divided into micro-batches, these too."""
    text = f"{process['oracle_steps']} ({process['replayed_steps']})"
    if divided := process.get("micro_batched_steps"):
        text += f"; {divided} ({process['micro_batched_replays']}) in two micro-batches"
    return text


def _result(process: Mapping[str, Any]) -> str:
    """Equal or not; also when some layer never chose some experts, since that makes the comparison weaker."""
    if not process["exact"]:
        return f"**differs**{_hidden(process)}"
    used, every = process["experts_used"], process["experts"]
    return "exact" if used == every else f"exact; a layer used {used} of {every} experts"


def _of(equal: int, every: int) -> str:
    return f"{every:,}" if equal == every else f"{equal:,} of {every:,}"


def _weights(process: Mapping[str, Any]) -> str:
    every = process["weights"]
    if not every:
        return ""
    if process["weights_unknown"] == every:
        return "unknown"
    if process["weights_equal"] == every:
        return "equal"
    if process["weights_close"] == every:
        return "equal to 1/128"
    return f"{process['weights_equal']:,} of {every:,} equal"


def _hidden(process: Mapping[str, Any]) -> str:
    reasons = sorted(set(process["hidden"].values()))
    return f": {len(process['hidden'])} layers hidden ({_cell('; '.join(reasons))})" if reasons else ""


def _cell(text: str) -> str:
    """Text that a table's cell can hold, without PyTorch's link to the list of CUDA errors."""
    text = re.sub(r"\s*Search for `cuda\w+' in \S+ for more information\.?", "", text)
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")[:200]


def replaced(document: str, version: str, text: str) -> str:
    """The document with the text between the marks of a version.

    Raises:
        ValueError: the marks are not there.
    """
    first, last = f"<!-- gpu {version} -->", f"<!-- /gpu {version} -->"
    before, marker, remainder = document.partition(first)
    _, end, after = remainder.partition(last)
    if not marker or not end:
        raise ValueError(f"there are no marks {first} and {last}")
    return f"{before}{first}\n{text}\n{last}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, metavar="FILE", help="Replace the section there.")
    options = parser.parse_args(argv)
    machine, cases = merged(json.loads(file.read_text(encoding="utf-8")) for file in options.results)
    text = section(machine, cases)
    if options.into is None:
        print(text)
        return 0
    try:
        document = replaced(options.into.read_text(encoding="utf-8"), str(machine.get("vllm")), text)
    except ValueError as error:
        print(f"{options.into}: {error}", file=sys.stderr)
        return 2
    options.into.write_text(document, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
