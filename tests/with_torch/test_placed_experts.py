"""scripts/gpu/placed_experts.py: gates and weights move together, on one rank and between two."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.gpu import placed_experts
from scripts.gpu.placed_experts import CASES, PlacedExperts, logit_deviations

EXPERTS, HIDDEN, LAYERS = 8, 16, 2


def model(first: int, last: int) -> torch.nn.Module:
    """Layers with a gate of all experts and the weights of experts ``first`` to ``last - 1``."""
    whole = torch.nn.Module()
    layers = torch.nn.ModuleList()
    for layer in range(LAYERS):
        mlp = torch.nn.Module()
        mlp.gate = torch.nn.Linear(HIDDEN, EXPERTS, bias=False)
        mlp.experts = torch.nn.Module()
        for name in placed_experts.EXPERT_WEIGHTS:
            value = torch.arange(first, last).float()[:, None, None].repeat(1, 2, 3) + 100 * layer
            mlp.experts.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        mlp.input_norm = torch.nn.LayerNorm(HIDDEN)
        layers.append(mlp)
    whole.layers = layers
    return whole.requires_grad_(False)


def ranks(monkeypatch: pytest.MonkeyPatch, number: int) -> list[PlacedExperts]:
    """Workers that share the experts; what they gather is put together here."""
    each = EXPERTS // number
    workers = []
    for rank in range(number):
        worker = PlacedExperts()
        held = model(rank * each, (rank + 1) * each)
        worker.model_runner = SimpleNamespace(get_model=lambda held=held: held)
        workers.append(worker)
    before: dict[tuple[int, str], torch.Tensor] = {}

    def gathered(weight: torch.Tensor, group: Any) -> torch.Tensor:
        # all ranks gather before any of them writes
        key = next(
            (layer, name)
            for worker in workers
            for layer, (_, experts) in enumerate(worker._moe_layers())
            for name in placed_experts.EXPERT_WEIGHTS
            if getattr(experts, name).data_ptr() == weight.data_ptr()
        )
        if key not in before or group.rank_in_group == 0:
            parts = [getattr(list(worker._moe_layers())[key[0]][1], key[1]).data for worker in workers]
            before[key] = torch.cat(parts).clone()
        return before[key]

    monkeypatch.setattr(placed_experts, "_gathered", gathered)
    return workers


def place(monkeypatch: pytest.MonkeyPatch, workers: list[PlacedExperts], orders: list[list[int]]) -> None:
    state = pytest.importorskip("vllm.distributed.parallel_state")
    for rank, worker in enumerate(workers):
        monkeypatch.setattr(state, "get_ep_group", lambda rank=rank: SimpleNamespace(rank_in_group=rank, world_size=2))
        worker.place_experts(orders)


@pytest.mark.parametrize("number", [1, 2])
def test_tokens_keep_their_experts(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    workers = ranks(monkeypatch, number)
    for worker in workers:
        assert worker.make_gates("skewed", 3) == LAYERS
    gates = [gate.weight.clone() for gate, _ in workers[0]._moe_layers()]
    for orders in ([[7, 0, 3, 1, 2, 6, 5, 4]] * LAYERS, [[1, 0, 2, 3, 4, 5, 7, 6], list(range(EXPERTS))]):
        place(monkeypatch, workers, orders)
        for layer in range(LAYERS):
            held = [list(worker._moe_layers())[layer] for worker in workers]
            for name in placed_experts.EXPERT_WEIGHTS:
                slots = torch.cat([getattr(experts, name) for _, experts in held])[:, 0, 0] - 100 * layer
                assert slots.tolist() == orders[layer]
            for gate, _ in held:
                assert torch.equal(gate.weight, gates[layer][orders[layer]])


def test_an_order_without_an_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = ranks(monkeypatch, 1)
    with pytest.raises(ValueError, match="layer 0: the order does not hold each of 8 experts once"):
        place(monkeypatch, workers, [[0, 0, 2, 3, 4, 5, 6, 7]] * LAYERS)


@pytest.mark.parametrize("case", CASES)
def test_skews(case: str) -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 32, generator=chance) * logit_deviations(case, 32)
    chosen = torch.bincount(logits.topk(4).indices.flatten(), minlength=32)
    first, last = chosen[:16].sum().item(), chosen[16:].sum().item()
    assert {"skewed": first > 2 * last, "even": 0.97 < first / last < 1.03, "tokens": 1.1 < first / last < 2}[case]


def test_norms_are_set() -> None:
    worker = PlacedExperts()
    held = model(0, EXPERTS)
    held.layers[0].input_norm.weight.fill_(0.001)
    worker.model_runner = SimpleNamespace(get_model=lambda: held)
    worker.make_gates("even", 1)
    assert held.layers[0].input_norm.weight.tolist() == [1.0] * HIDDEN


def test_no_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "get_objects", list)
    with pytest.raises(RuntimeError, match="nothing records in this process"):
        PlacedExperts().recorded_steps()
