"""The counting kernel of layers that route inside their own kernel: it chooses the experts again and counts them.

The choice is that of ``routing_rule``, in float32. Its name is what nsys shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from nvtxmoe.capture.recording import routing_rule
from nvtxmoe.capture.recording.direct_launch import Prepared

if TYPE_CHECKING:
    import torch

    from nvtxmoe.capture.recording.logits_launch import LogitsLaunch

#: Scores that a program takes at a time.
BLOCK = 2048
SOFTMAX, SIGMOID = (tl.constexpr(routing_rule.SCORINGS.index(name)) for name in ("softmax", "sigmoid"))
ROUNDING = tl.constexpr(routing_rule.ROUNDING)
BIASED_ROUNDING = tl.constexpr(routing_rule.BIASED_ROUNDING)
LEAST = tl.constexpr(routing_rule.LEAST)
SOFTPLUS_LINEAR = tl.constexpr(routing_rule.SOFTPLUS_LINEAR)
NEVER = tl.constexpr(float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _score(values, scoring: tl.constexpr):  # type: ignore[no-untyped-def]
    """Score of each logit; for softmax ``values`` are less the row's largest, and the sum is left out."""
    if scoring == SOFTMAX:
        return tl.exp(values)
    if scoring == SIGMOID:
        return 1.0 / (1.0 + tl.exp(-values))
    low = tl.minimum(values, SOFTPLUS_LINEAR)
    return tl.sqrt(tl.where(values > SOFTPLUS_LINEAR, values, tl.log(1.0 + tl.exp(low))))


@triton.jit  # type: ignore[untyped-decorator]
def _close(last, following, top, scoring: tl.constexpr, exact: tl.constexpr, biased: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether rounding decides between the last that is chosen and the first that is not."""
    if exact:
        return last == following
    if biased:
        return (last == following) | (last - following <= (1.0 + tl.abs(last)) * BIASED_ROUNDING)
    if scoring == SOFTMAX:
        upper = _score(last - top, scoring)
        return upper - _score(following - top, scoring) <= upper * ROUNDING
    upper = _score(last, scoring)
    return upper - _score(following, scoring) <= upper * ROUNDING


@triton.jit  # type: ignore[untyped-decorator]
def _first_at(values, best, place, end: tl.constexpr):  # type: ignore[no-untyped-def]
    """The lowest place of the best value of each row."""
    return tl.min(tl.where(values == best[:, None], place[None, :], end), axis=1)


@triton.jit(do_not_specialize=["num_rows", "row_stride"])  # type: ignore[untyped-decorator]
def nvtxmoe_recompute(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915  a kernel is one function
    table,
    out,
    num_rows,
    row_stride,
    top_k: tl.constexpr,
    experts: tl.constexpr,
    bins: tl.constexpr,
    kind: tl.constexpr,
    scoring: tl.constexpr,
    exact: tl.constexpr,
    biased: tl.constexpr,
    groups: tl.constexpr,
    group_bins: tl.constexpr,
    top_groups: tl.constexpr,
    block: tl.constexpr,
):
    """Some programs a layer, each with counts of its own: [experts], then how many tokens are ambiguous."""
    layer, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    address = tl.load(table + layer * 2)
    if kind == 0:
        logits = address.to(tl.pointer_type(tl.float32))
    elif kind == 1:
        logits = address.to(tl.pointer_type(tl.bfloat16))
    else:
        logits = address.to(tl.pointer_type(tl.float16))
    expert = tl.arange(0, bins)
    if biased:
        bias = tl.load(
            tl.load(table + layer * 2 + 1).to(tl.pointer_type(tl.float32)) + expert, mask=expert < experts, other=0.0
        )
    counts = tl.zeros([bins], dtype=tl.int32)
    unsure = tl.zeros([block], dtype=tl.int32)
    for first in range(part * block, num_rows, parts * block):
        row = first + tl.arange(0, block)
        is_token = row < num_rows
        inside = is_token[:, None] & (expert < experts)[None, :]
        values = tl.load(logits + row[:, None] * row_stride + expert[None, :], mask=inside, other=0.0).to(tl.float32)
        values = tl.where(values == values, tl.maximum(values, LEAST), LEAST)  # noqa: PLR0124  no number
        values = tl.where((expert < experts)[None, :], values, NEVER)
        top = tl.max(values, axis=1)
        if biased:
            if scoring == SOFTMAX:
                scores = _score(values - top[:, None], scoring)
                scores = scores / tl.sum(scores, axis=1)[:, None]
            else:
                scores = _score(values, scoring)
            values = tl.where((expert < experts)[None, :], scores + bias[None, :], NEVER)
        close = top < NEVER
        if groups > 0:
            group = tl.arange(0, group_bins)
            of_group = tl.full([block, group_bins], NEVER, tl.float32)
            for number in range(groups):
                member = (expert // (experts // groups) == number)[None, :]
                candidates = tl.where(member, values, NEVER)
                best = tl.max(candidates, axis=1)
                if biased:
                    at = _first_at(candidates, best, expert, bins)
                    best += tl.max(tl.where(expert[None, :] == at[:, None], NEVER, candidates), axis=1)
                of_group = tl.where((group == number)[None, :], best[:, None], of_group)
            allowed = tl.zeros([block, bins], dtype=tl.int1)
            last = top
            for _number in range(top_groups):
                last = tl.max(of_group, axis=1)
                at = _first_at(of_group, last, group, group_bins)
                allowed = allowed | (expert[None, :] // (experts // groups) == at[:, None])
                of_group = tl.where(group[None, :] == at[:, None], NEVER, of_group)
            if top_groups < groups:
                close = close | _close(last, tl.max(of_group, axis=1), top, scoring, exact, biased)
            values = tl.where(allowed, values, NEVER)
        picked = tl.zeros([block, bins], dtype=tl.int1)
        last = top
        for _number in range(top_k):
            last = tl.max(values, axis=1)
            hit = expert[None, :] == _first_at(values, last, expert, bins)[:, None]
            picked = picked | hit
            values = tl.where(hit, NEVER, values)
        if top_k < experts:
            close = close | _close(last, tl.max(values, axis=1), top, scoring, exact, biased)
        counts += tl.sum((picked & inside).to(tl.int32), axis=0)
        unsure += (close & is_token).to(tl.int32)
    out_row = out + (layer * parts + part) * (experts + 1)
    tl.store(out_row + expert, counts, mask=expert < experts)
    tl.store(out_row + experts, tl.sum(unsure, axis=0))


def recompute(launch: LogitsLaunch, table: torch.Tensor, out: torch.Tensor, num_tokens: int) -> None:
    """Enqueue the choice and its counting for layers of one rule.

    Parameters:
        table: int64 [layers, 2] in pinned memory: addresses of the first own row of the logits, and of the bias.
        out: int32 [layers x parts x (experts + 1)], pinned memory, aligned to 16 bytes.
    """
    grid = (len(launch.layers), launch.parts, 1)
    prepared = launch.prepared.get("count")
    if prepared is None:
        rule, bins = launch.rule, triton.next_power_of_2(launch.experts)
        trailing_arguments = (
            launch.row_stride,
            launch.top_k,
            launch.experts,
            bins,
            launch.kind,
            routing_rule.SCORINGS.index(rule.scoring),
            rule.exact,
            launch.biased,
            rule.groups,
            triton.next_power_of_2(max(1, rule.groups)),
            rule.top_groups,
            max(1, BLOCK // bins),
        )
        compiled = nvtxmoe_recompute[grid](table, out, num_tokens, *trailing_arguments, num_warps=4)
        if compiled is not None:  # Triton's interpreter gives nothing
            launch.prepared["count"] = Prepared(compiled, grid, trailing_arguments)
        return
    prepared(launch.device, table, out, num_tokens)
