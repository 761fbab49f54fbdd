"""An extension of vLLM's worker: gates of a made-up skew, and experts moved between expert-parallel ranks in place.

``worker_extension_cls="scripts.gpu.placed_experts.PlacedExperts"``, then ``llm.collective_rpc("place_experts", ...)``.
The weights keep their storage, so captured CUDA graphs keep their kernels: only the experts move.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Parameters of a layer's experts; the first dimension is the expert.
EXPERT_WEIGHTS = ("w13_weight", "w2_weight")
#: Standard deviation of the routing logits of a rank's experts, by case. An expert with more is chosen more often.
CASES: Mapping[str, tuple[float, float]] = {
    # the first half of the experts falls from the first to the second figure, the second half goes on from there
    "skewed": (2.2, 0.7),
    "even": (1.0, 1.0),
    "tokens": (1.15, 1.0),
}


def logit_deviations(case: str, experts: int) -> torch.Tensor:
    """Standard deviation of every expert's routing logit.

    Parameters:
        case: one of ``CASES``: ``skewed`` falls from the first expert to the last, ``even`` is flat, ``tokens`` has
            two levels, so that the first half of the experts gets more tokens and all experts get some.
        experts: how many.

    Returns:
        float32 of shape (experts,).
    """
    first, last = CASES[case]
    if case == "tokens":
        half = experts // 2
        return torch.cat([torch.full((half,), first), torch.full((experts - half,), last)])
    return torch.linspace(first, last, experts)


class PlacedExperts:
    """Methods that vLLM adds to its worker. All ranks of the expert-parallel group must be asked together."""

    model_runner: Any

    def _moe_layers(self) -> Iterator[tuple[Any, Any]]:
        """The gate and the experts of every MoE layer, in the model's order."""
        gate, seen = None, set[int]()
        for name, module in self.model_runner.get_model().named_modules():
            if name.endswith(".gate"):
                gate = module
            weights = [getattr(module, weight, None) for weight in EXPERT_WEIGHTS]
            addresses = {weight.data_ptr() for weight in weights if weight is not None}
            if len(addresses) == len(EXPERT_WEIGHTS) and not addresses & seen:
                seen |= addresses
                yield gate, module

    def make_gates(self, case: str, seed: int) -> int:
        """Give every layer a gate of the case's skew, and norms of 1. The experts keep their places.

        Returns:
            The number of MoE layers.
        """
        for name, parameter in self.model_runner.get_model().named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.data.fill_(1.0)
        layers = 0
        for layer, (gate, _) in enumerate(self._moe_layers()):
            weight = gate.weight.data
            experts, hidden = weight.shape
            chance = torch.Generator().manual_seed(1_000 * seed + layer)
            rows = torch.randn(experts, hidden, generator=chance) / hidden**0.5
            rows *= logit_deviations(case, experts)[:, None]
            order = self._orders().get(layer, list(range(experts)))
            weight.copy_(rows[order].to(weight))
            layers += 1
        return layers

    def _orders(self) -> dict[int, list[int]]:
        """The logical expert in every slot, by layer, as they stand now."""
        if not hasattr(self, "_slots"):
            self._slots: dict[int, list[int]] = {}
        return self._slots

    def place_experts(self, orders: Sequence[Sequence[int]]) -> None:
        """Put the experts of every layer into these slots: gates and weights move, tokens get the same experts.

        Parameters:
            orders: for every MoE layer the logical expert in every slot. The slots of a rank follow one another.

        Raises:
            ValueError: an order does not hold every expert once.
        """
        from vllm.distributed.parallel_state import get_ep_group  # noqa: PLC0415  initialised by then

        group = get_ep_group()
        for layer, (gate, experts) in enumerate(self._moe_layers()):
            new = [int(expert) for expert in orders[layer]]
            if sorted(new) != list(range(gate.weight.shape[0])):
                raise ValueError(f"layer {layer}: the order does not hold each of {gate.weight.shape[0]} experts once")
            now = self._orders().get(layer, list(range(len(new))))
            slot_of = {expert: slot for slot, expert in enumerate(now)}
            moved = torch.tensor([slot_of[expert] for expert in new], device=gate.weight.device)
            gate.weight.data.copy_(gate.weight.data[moved])
            for name in EXPERT_WEIGHTS:
                weight = getattr(experts, name).data
                rank_slots = moved[group.rank_in_group * len(weight) :][: len(weight)]
                weight.copy_(_gathered(weight, group)[rank_slots])
            self._orders()[layer] = new
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def recorded_steps(self) -> int:
        """Steps that nvtxmoe's recorder has counted in this process.

        Raises:
            RuntimeError: there is no recorder.
        """
        from nvtxmoe.capture.recording.recorder import Recorder  # noqa: PLC0415

        if not hasattr(self, "_recorders"):
            gc.unfreeze()  # vLLM freezes what a worker holds at its start, and frozen objects are not listed
            self._recorders = [item for item in gc.get_objects() if type(item) is Recorder]
            gc.freeze()
        if not self._recorders:
            raise RuntimeError("nothing records in this process: run it under `nvtxmoe profile`")
        return max(recorder.steps for recorder in self._recorders)


def _gathered(weight: torch.Tensor, group: Any) -> torch.Tensor:
    """The weights of all experts, gathered from the ranks."""
    if group.world_size == 1:
        return weight.clone()
    gathered = weight.new_empty((group.world_size * weight.shape[0], *weight.shape[1:]))
    torch.distributed.all_gather_into_tensor(gathered, weight.contiguous(), group=group.device_group)
    return gathered
