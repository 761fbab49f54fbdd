"""Where expert ids come from: the router, the kernel, or its logits once more."""

from __future__ import annotations

from nvtxmoe.formats import schema
from nvtxmoe_analysis.checks.check import Check, JsonValue, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number, spans
from nvtxmoe_analysis.events.recording import recomputed_tokens, recording_by_layer
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 82
EXPORTS_ONLY = False

NAME = "ids_taken"


def check(results: RunMetrics) -> Check:
    """Recomputed ids are those that the kernel chose, except perhaps in ambiguous tokens: worth knowing."""
    layers: dict[str, set[int]] = {}
    tokens = 0
    ambiguous: dict[int, int] = {}
    for report in results.reports:
        for meta in report.metas.values():
            for layer, way in recording_by_layer(meta).items():
                layers.setdefault(way, set()).add(layer)
            new_tokens, uncertain = recomputed_tokens(meta)
            tokens += new_tokens
            for layer, count in uncertain.items():
                ambiguous[layer] = ambiguous.get(layer, 0) + count
    if not layers:
        return not_applicable(NAME, "No process tells how it took the expert ids.")
    figures: dict[str, JsonValue] = {
        **{way: spans(sorted(found)) for way, found in sorted(layers.items())},
        "recomputed_tokens": tokens,
        "ambiguous_tokens": sum(ambiguous.values()),
        "ambiguous_by_layer": {str(layer): count for layer, count in sorted(ambiguous.items())},
    }
    if schema.RECOMPUTED not in layers:
        return passed(NAME, "The expert ids are those that routers or kernels chose.", **figures)
    recomputed = sorted(layers[schema.RECOMPUTED])
    return warned(NAME, sentence(recomputed, tokens, sum(ambiguous.values())), **figures)


def sentence(layers: list[int], tokens: int, ambiguous: int) -> str:
    """Which layers are recomputed, and how much of it is uncertain.

    Parameters:
        tokens: of these layers, each layer's added up.
    """
    of = f"{'layer' if len(layers) == 1 else 'layers'} {spans(layers)}"
    found = f"The expert ids of {of} are recomputed from router logits, because the kernel does not show its own"
    if not tokens:
        return f"{found}; no process tells how many of the tokens are ambiguous."
    share = f" ({100 * ambiguous / tokens:.2g} %)" if ambiguous else ""
    return (
        f"{found}; {ambiguous:,}{share} of {number(tokens, 'token')}, each layer's added up, are ambiguous: "
        "the last chosen expert's score equals the next one's or differs by rounding only."
    )
