"""What a capture must hold, from router logits alone: each model's published routing formula, in numpy.

Nothing here knows nvtxmoe's hooks or recorder. Logits and query lengths come from programs/run_vllm.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Config = dict[str, Any]


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return _normed(raised)


def best(scores: Floats, number: int) -> Ints:
    """Indices of the highest scores of each row, best first."""
    return np.argsort(-scores, axis=-1, kind="stable")[:, :number]


def _normed(weights: Floats) -> Floats:
    normed: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return normed


def softmax_top_k(logits: Floats, config: Config, bias: Floats | None) -> tuple[Ints, Floats]:
    """Qwen3-MoE, Mixtral, OLMoE: softmax over all experts, the best of it; normed where the model says so."""
    assert bias is None
    probabilities = softmax(logits)
    chosen = best(probabilities, config["num_experts_per_tok"])
    weights = np.take_along_axis(probabilities, chosen, axis=-1)
    return chosen, _normed(weights) if config.get("norm_topk_prob", True) else weights


def deepseek_v3(logits: Floats, config: Config, bias: Floats | None) -> tuple[Ints, Floats]:
    """Sigmoid scores; a correction bias for the choice only; groups ranked by their two best; normed.

    The paper multiplies by routed_scaling_factor here; vLLM multiplies the experts' summed output instead.
    """
    assert bias is not None
    scores = 1 / (1 + np.exp(-logits))
    grouped = (scores + bias).reshape(len(logits), config["n_group"], -1)
    group_scores = np.sort(grouped, axis=-1)[:, :, -2:].sum(axis=-1)
    allowed = np.zeros(group_scores.shape, bool)
    np.put_along_axis(allowed, best(group_scores, config["topk_group"]), True, axis=-1)
    choice = np.where(allowed[:, :, None], grouped, -np.inf).reshape(logits.shape)
    chosen = best(choice, config["num_experts_per_tok"])
    return chosen, _normed(np.take_along_axis(scores, chosen, axis=-1))


def gpt_oss(logits: Floats, config: Config, bias: Floats | None) -> tuple[Ints, Floats]:
    """The best logits, and a softmax over those alone."""
    assert bias is None
    chosen = best(logits, config["num_experts_per_tok"])
    return chosen, softmax(np.take_along_axis(logits, chosen, axis=-1))


FORMULAS: dict[str, Callable[[Floats, Config, Floats | None], tuple[Ints, Floats]]] = {
    "qwen3_moe": softmax_top_k,
    "mixtral": softmax_top_k,
    "olmoe": softmax_top_k,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
}


@dataclass(frozen=True)
class Cell:
    """One (step, layer): [tokens, top_k] experts, best first, and their weights."""

    experts: Ints
    weights: Floats
    num_experts: int

    @property
    def counts(self) -> list[int]:
        """Assignments of each expert."""
        counts: list[int] = np.bincount(self.experts.ravel(), minlength=self.num_experts).tolist()
        return counts


@dataclass(frozen=True)
class Step:
    """One step: the tokens of each of its requests, and its layers."""

    lengths: list[int]
    cells: dict[int, Cell]

    @property
    def num_tokens(self) -> int:
        """Rows that the gates saw."""
        (tokens,) = {len(cell.experts) for cell in self.cells.values()}
        return tokens


def number_of_experts(config: Config) -> int:
    """By whichever name the configuration has it."""
    return int(next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config))


def expected_steps(path: Path, config: Config) -> list[Step]:
    """All steps of one rank, from OUT.rank<R>.npz of programs/run_vllm.py.

    A step is one call of every gate, in the order of the layers.
    """
    calls: list[tuple[int, Floats, list[int]]] = []
    biases: dict[int, Floats] = {}
    with np.load(path) as arrays:
        for name in sorted(arrays):
            if name.startswith("bias_"):
                biases[int(name.removeprefix("bias_"))] = arrays[name].astype(np.float64)
            elif name.endswith("_logits"):
                lengths = arrays[name.replace("_logits", "_lengths")].tolist()
                calls.append((int(name.split("_")[1]), arrays[name].astype(np.float64), lengths))
    layers = sorted({layer for layer, _, _ in calls})
    assert [layer for layer, _, _ in calls] == layers * (len(calls) // len(layers))
    formula = FORMULAS[config["model_type"]]
    by_step: dict[int, Step] = {}
    for place, (layer, logits, lengths) in enumerate(calls):
        assert logits.shape[1] == number_of_experts(config)
        step = by_step.setdefault(place // len(layers), Step(lengths, {}))
        assert step.lengths == lengths
        step.cells[layer] = Cell(*formula(logits, config, biases.get(layer)), number_of_experts(config))
    return list(by_step.values())


def layer_totals(steps: list[Step]) -> dict[int, list[int]]:
    """Assignments of each expert over all steps, by layer."""
    totals: dict[int, Ints] = defaultdict(lambda: np.zeros(1, np.int64))
    for step in steps:
        for layer, cell in step.cells.items():
            totals[layer] = totals[layer] + np.array(cell.counts)
    return {layer: counts.tolist() for layer, counts in sorted(totals.items())}
