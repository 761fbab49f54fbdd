"""Finding: the capture lacks something, so that every number may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvtxmoe_analysis.report.finding import INCOMPLETE, Finding, NextStep
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "incomplete-capture"
ORDER = 0
MEANING = "A check of the capture failed. All numbers are of what was recorded, and may lack steps, ranks or kernels."

#: Most reasons in the details.
MOST_REASONS = 4
AGAIN = "Run it again under `nvtxmoe profile`, which ends the server so that no step is lost."
PROFILE = "nvtxmoe profile -- vllm serve MODEL --shutdown-timeout 60"
ONE_SIZE = "Run it again under `nvtxmoe profile`, and start it with the number of ranks to record."
INPUTS = "Give the reports of all ranks of this run to one analysis."
ANALYZE = "nvtxmoe analyze RANK0.nsys-rep RANK1.nsys-rep -o DIR --report"
NODES = "Record again with CUDA graphs traced node by node, as `nvtxmoe profile` does."
#: What to do by the check that failed; of others AGAIN.
ACTIONS: Mapping[str, tuple[str, str]] = {
    "ranks_present": (INPUTS, ANALYZE),
    "ranks_in_step": (INPUTS, ANALYZE),
    "reports_read": ("Replace the inputs that cannot be read, see the reasons.", ANALYZE),
    "one_model": ("Analyse the reports of one model and run together, and no other.", ANALYZE),
    "graph_nodes": (NODES, "nsys profile --cuda-graph-trace=node"),
    "graph_tracing": (NODES, "nsys profile --cuda-graph-trace=node"),
    "cuda_tracing": ("Record again with CUDA traced.", "nsys profile -t cuda,nvtx"),
}


def find(ledger: Ledger) -> list[Finding]:
    """Return why the capture is incomplete, and what to run."""
    validation = ledger.source.document("validation")
    if not validation or validation.get("verdict") == "complete":
        return []
    failures = [check for check in validation.get("checks", []) if check.get("status") == "fail"]
    failed = [str(check["name"]) for check in failures]
    reasons = [str(reason) for reason in validation.get("reasons", [])] or ["no check gives a reason"]
    action, command = _action(failures)
    expected = sentence("the verdict is complete, and the same findings count.")
    headline = sentence("The result is incomplete: {}", reasons[0])
    return [
        Finding(
            "Incomplete capture",
            headline,
            _others(reasons),
            sentence("checks of the capture against itself failed: {}.", ", ".join(failed) or "see the reasons"),
            INCOMPLETE,
            next_step=NextStep("complete the capture", action, expected, command),
        )
    ]


def _action(failures: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return what to do about the checks that failed, and a command."""
    if any((check.get("figures") or {}).get("ranks_changed") for check in failures):
        return ONE_SIZE, PROFILE  # no input can make a run of several sizes complete
    return next((ACTIONS[name] for check in failures if (name := check["name"]) in ACTIONS), (AGAIN, PROFILE))


def _others(reasons: list[str]) -> list[Sentence]:
    shown = [sentence("{}", reason) for reason in reasons[1:MOST_REASONS]]
    hidden_reasons = len(reasons) - 1 - len(shown)
    return [*shown, *([sentence("{} more reasons: see the checks.", hidden_reasons)] if hidden_reasons > 0 else [])]
