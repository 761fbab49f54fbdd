"""Where expert ids come from: the router, the kernel, or its logits once more."""

from __future__ import annotations

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number, spans
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.recording import contradictions, recomputed_tokens, recording_by_layer
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 82
EXPORTS_ONLY = False

NAME = "ids_taken"
KNOWN = {schema.REFERENCES, schema.SINK, schema.RECOMPUTED}
#: What is special about the time of such layers.
ROUTER_OUTSIDE = (
    "Such a layer gets its router logits from the model: where the model computes them before it calls the layer "
    "(gpt-oss), that matrix multiplication is outside the layer, and the layer's time is not comparable with that of a "
    "layer with its router inside."
)
#: Contradictions that a message contains.
MOST_WRONG = 4


def check(results: RunMetrics) -> Check:
    """The source of the expert ids is consistent. It warns if ids are recomputed; ambiguous tokens may differ.

    What moe.meta says of it must not contradict itself.
    """
    layers: dict[str, set[int]] = {}
    tokens = counted = 0
    ambiguous: dict[int, int] = {}
    wrong: list[str] = []
    for report in results.reports:
        for pid, meta in report.metas.items():
            try:
                wrong += [f"{text} (rank {meta.rank})" for text in contradictions(meta)]
            except NvtxmoeError as error:
                wrong.append(f"{error.what} (rank {meta.rank})")
                continue
            counted += _counted(report, pid, meta)
            for layer, way in recording_by_layer(meta).items():
                layers.setdefault(way, set()).add(layer)
            new_tokens, uncertain = recomputed_tokens(meta)
            tokens += new_tokens
            for layer, count in uncertain.items():
                ambiguous[layer] = ambiguous.get(layer, 0) + count
    if wrong:
        return failed(NAME, f"moe.meta contradicts itself: {'; '.join(wrong[:MOST_WRONG])}.", contradictions=len(wrong))
    if not layers:
        return not_applicable(NAME, "No process tells how it took the expert ids.")
    evidence: dict[str, JsonValue] = {
        **{way: spans(sorted(numbers)) for way, numbers in sorted(layers.items())},
        "recomputed_tokens": tokens,
        "ambiguous_tokens": sum(ambiguous.values()),
        "ambiguous_by_layer": {str(layer): count for layer, count in sorted(ambiguous.items())},
    }
    if unknown := sorted(layers.keys() - KNOWN):
        ways = ", ".join(unknown)
        return warned(NAME, f"Expert ids were taken in a way that this nvtxmoe does not know: {ways}.", **evidence)
    if schema.RECOMPUTED not in layers:
        return passed(NAME, "The expert ids are those that routers or kernels chose.", **evidence)
    recomputed = sorted(layers[schema.RECOMPUTED])
    message = sentence(recomputed, tokens, sum(ambiguous.values()))
    if 0 < tokens < counted:
        message += f" The last moe.meta tells of {tokens:,} of the {counted:,} tokens."
    if not results.direct:
        message += f" {ROUTER_OUTSIDE}"
    return warned(NAME, message, **evidence)


def _counted(report: CaptureFacts, pid: int, meta: Meta) -> int:
    """Tokens of the recomputed layers that a process has counts of, each layer's added up."""
    recomputed = [layer for layer, way in recording_by_layer(meta).items() if way == schema.RECOMPUTED]
    cells = report.events.counts.cells.filter(pl.col("pid") == pid, pl.col("layer").is_in(recomputed))
    return int(cells["num_tokens"].sum())


def sentence(layers: list[int], tokens: int, ambiguous: int) -> str:
    """Which layers are recomputed, and how much of it is uncertain.

    Parameters:
        tokens: of these layers, each layer's added up.
    """
    of = f"{'layer' if len(layers) == 1 else 'layers'} {spans(layers)}"
    text = f"The expert ids of {of} are recomputed from router logits, because the kernel does not show its own"
    if not tokens:
        return f"{text}; no process tells how many of the tokens are ambiguous."
    share = f" ({100 * ambiguous / tokens:.2g} %)" if ambiguous else ""
    return (
        f"{text}; {ambiguous:,}{share} of {number(tokens, 'token')}, each layer's added up, are ambiguous: "
        "the last chosen expert's score equals the next one's or differs by rounding only."
    )
