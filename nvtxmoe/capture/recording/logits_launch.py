"""A launch that recomputes the routing of layers of one rule, prepared once; and the same by PyTorch's operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.recording.router_logits import SameRuleLogits
from nvtxmoe.capture.recording.routing_rule import RoutingRule

if TYPE_CHECKING:
    import torch

#: Rows for which a program of the kernel is worth its start, and programs a layer at most.
ROWS_A_PART, MOST_PARTS = 256, 8
#: More experts do not fit into the kernel's registers.
MOST_EXPERTS = 1024
#: Dtypes of logits that the kernel reads, as its ``kind``.
KINDS = ("torch.float32", "torch.bfloat16", "torch.float16")


@dataclass
class LogitsLaunch:
    """What the kernel has to know of the layers; addresses are in the table.

    Attributes:
        kind: index into ``KINDS``; -1 for logits that only PyTorch's operations read.
        parts: programs a layer, each with counts of its own.
        prepared: what the launcher keeps for the next launch.
    """

    layers: tuple[int, ...]
    experts: int
    top_k: int
    rule: RoutingRule
    biased: bool
    kind: int
    row_stride: int
    parts: int
    device: torch.device
    prepared: dict[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> tuple[tuple[int, ...], int, int, int]:
        """What its counts are of: layers, parts, experts, top_k."""
        return self.layers, self.parts, self.experts, self.top_k

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the counts; the last of a row is how many tokens are ambiguous."""
        return len(self.layers), self.parts, self.experts + 1


def launch_of(group: SameRuleLogits) -> LogitsLaunch:
    """The launch for layers that are alike."""
    logits = group.members[0]
    rows = min(member.own_rows for member in group.members)
    kind = str(logits.logits.dtype)
    return LogitsLaunch(
        layers=group.layers,
        experts=logits.num_experts,
        top_k=logits.top_k,
        rule=logits.rule,
        biased=logits.bias is not None,
        kind=KINDS.index(kind) if kind in KINDS else -1,
        row_stride=logits.logits.stride(0),
        parts=max(1, min(rows // ROWS_A_PART, MOST_PARTS)),
        device=logits.logits.device,
    )


def fits_kernel(group: SameRuleLogits) -> bool:
    """Whether the kernel can read the tensors of a group."""
    logits, launch = group.members[0], launch_of(group)
    plain = logits.logits.shape[1] == logits.num_experts <= MOST_EXPERTS and logits.logits.stride(1) == 1
    bias = logits.bias is None or (str(logits.bias.dtype) == KINDS[0] and logits.bias.is_contiguous())
    return plain and bias and launch.kind >= 0 and logits.table is None


def addresses(group: SameRuleLogits) -> Any:
    """Addresses of each layer's first own row and of its bias: int64 [layers, 2] in pinned memory."""
    import torch  # noqa: PLC0415

    table = torch.empty(len(group.members), 2, dtype=torch.int64, pin_memory=True)
    numbers = table.numpy()
    for at, logits in enumerate(group.members):
        first = logits.start * logits.logits.stride(0) * logits.logits.element_size()
        numbers[at] = logits.logits.data_ptr() + first, 0 if logits.bias is None else logits.bias.data_ptr()
    return table


def torch_recompute(group: SameRuleLogits, out: torch.Tensor, num_tokens: int) -> None:
    """Count a group with PyTorch's operations: some a layer, and one copy of the counts."""
    import torch  # noqa: PLC0415

    logits = group.members[0]
    with torch.inference_mode():
        counts = torch.zeros(len(group.members), logits.num_experts + 1, dtype=torch.int32, device=logits.logits.device)
        for row, logits in zip(counts, group.members, strict=True):
            choice = logits.chosen(num_tokens)
            flat = choice.ids.reshape(-1)
            row[:-1].scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
            row[-1] = choice.ambiguous.sum()
        out.copy_(counts.view(-1), non_blocking=True)
