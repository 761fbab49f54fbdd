"""How a layer chooses experts from its router's logits, as data, and the choice made again with PyTorch's operations.

``triton_recompute`` makes the same choice in the counting kernel. Both compare in float32. A token is ambiguous if
its k-th and (k+1)-th score are equal or differ by no more than the rounding of float32: there the kernel that served
the token may have chosen the other expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SOFTMAX, SIGMOID, SQRTSOFTPLUS = SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")
#: Scores that differ by a smaller share of the larger one may be equal where another program computed them.
ROUNDING = 2.0**-19
#: As ROUNDING, for scores to which a bias is added: a share of 1 + the larger one.
BIASED_ROUNDING = 2.0**-20
#: The least logit: what is smaller, or no number, counts as this. Experts that can't be chosen are at minus infinity.
LEAST = -3.0e38
#: Above it softplus is the identity.
SOFTPLUS_LINEAR = 20.0


@dataclass(frozen=True)
class RoutingRule:
    """A layer's rule. A correction bias and a hash table are tensors of the layer, see ``RouterLogits``.

    Attributes:
        scoring: one of ``SCORINGS``.
        renormalize: whether the weights of the chosen experts are divided by their sum.
        scale: factor of the weights.
        groups: groups of experts, of which ``top_groups`` may be chosen from; 0 without groups.
        exact: whether the layer's kernel compares the logits themselves: rounding then changes no choice.
    """

    scoring: str = SOFTMAX
    renormalize: bool = True
    scale: float = 1.0
    groups: int = 0
    top_groups: int = 0
    exact: bool = False


@dataclass(frozen=True)
class Chosen:
    """What a rule chooses.

    Attributes:
        ids: int64 [tokens, top_k], the best first; of equal scores the lower expert first.
        weights: float32 [tokens, top_k].
        ambiguous: bool [tokens].
    """

    ids: torch.Tensor
    weights: torch.Tensor
    ambiguous: torch.Tensor


def choose(
    logits: torch.Tensor,
    top_k: int,
    rule: RoutingRule,
    bias: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
) -> Chosen:
    """Choose experts on the logits' device. Nothing waits for the device.

    Parameters:
        logits: [tokens, experts], floating.
        bias: [experts], added to the scores for the choice, not to the weights.
        table: [vocabulary, top_k], the experts of each token id: they are taken instead of the best.
        input_ids: [tokens], with a table.
    """
    import torch  # noqa: PLC0415  only where there are tensors

    with torch.inference_mode():
        values = torch.nan_to_num(logits.float(), nan=LEAST, neginf=LEAST).clamp_min(LEAST)
        scores = values.softmax(dim=-1) if rule.scoring == SOFTMAX else _score(values, rule.scoring)
        if table is not None and input_ids is not None:
            tokens = input_ids.to(torch.int64).clamp(
                0, len(table) - 1
            )  # an index out of range would end CUDA's context
            ids = table[tokens].to(torch.int64).clamp(0, logits.shape[1] - 1)
            ambiguous = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        else:
            ids, ambiguous = _best(values if bias is None else scores + bias.float(), top_k, rule, bias is not None)
        weights = scores.gather(1, ids)
        if rule.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Chosen(ids, weights * rule.scale, ambiguous)


def _best(values: torch.Tensor, top_k: int, rule: RoutingRule, biased: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The best experts, and which tokens are ambiguous. Without a bias logits are compared: scores rise with them."""
    top = values.amax(dim=-1)
    outside = None
    if rule.groups:
        by_group = values.view(len(values), rule.groups, -1)
        of_group = by_group.topk(2, dim=-1).values.sum(dim=-1) if biased else by_group.amax(dim=-1)
        groups, outside = _order(of_group, rule.top_groups, top, rule, biased)
        inside = values.new_zeros(of_group.shape).scatter_(1, groups, 1.0).bool()
        allowed = inside.unsqueeze(-1).expand(by_group.shape).reshape(values.shape)
        values = values.masked_fill(~allowed, float("-inf"))
    ids, ambiguous = _order(values, top_k, top, rule, biased)
    return ids, ambiguous if outside is None else ambiguous | outside


def _order(
    values: torch.Tensor, best: int, top: torch.Tensor, rule: RoutingRule, biased: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    ordered = values.sort(dim=-1, descending=True, stable=True)
    ids = ordered.indices[:, :best]
    if values.shape[1] == best:
        return ids, top.isnan()  # never: nobody is left out
    return ids, _close(ordered.values[:, best - 1], ordered.values[:, best], top, rule, biased)


def _close(
    last: torch.Tensor, following: torch.Tensor, top: torch.Tensor, rule: RoutingRule, biased: bool
) -> torch.Tensor:
    """Tokens of which rounding decides between the last that is chosen and the first that is not."""
    if rule.exact:
        return last == following
    if biased:
        return (last == following) | (last - following <= BIASED_ROUNDING * (1 + last.abs()))
    if rule.scoring == SOFTMAX:
        some, more = (last - top).exp(), (following - top).exp()
    else:
        some, more = _score(last, rule.scoring), _score(following, rule.scoring)
    return some - more <= ROUNDING * some


def _score(values: torch.Tensor, scoring: str) -> torch.Tensor:
    if scoring == SIGMOID:
        return values.sigmoid()
    import torch  # noqa: PLC0415

    softplus = torch.where(values > SOFTPLUS_LINEAR, values, values.clamp_max(SOFTPLUS_LINEAR).exp().log1p())
    return softplus.sqrt()
