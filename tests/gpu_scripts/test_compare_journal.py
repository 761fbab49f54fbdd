"""scripts/gpu/compare_journal.py on journals made by hand: what is exact, what differs, what a tie excuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import JournalWriter, record
from scripts.gpu.compare_journal import COUNTS, compare, is_exact, recording_of
from scripts.gpu.oracle import Steps

#: Two layers, numbered 1 and 3; four experts, top-2; a step of two tokens and one of one token.
IDS = [np.array([[[0, 1], [2, 3]], [[1, 2], [3, 0]]]), np.array([[[3, 1], [0, 2]]])]
WEIGHTS = [np.full((2, 2, 2), 0.5, dtype=np.float32), np.full((1, 2, 2), 0.25, dtype=np.float32)]
LAYERS = [1, 3]
IDS_OF_LAYER_3 = [step[:, 1:] for step in IDS]
EXPERTS, TOP_K = 4, 2


def oracle(**more: Any) -> Steps:
    return Steps(layers=LAYERS, ids=IDS, weights=WEIGHTS, replays=[0, 3], kernels=[{"experts": "Triton"}], **more)


def written(
    folder: Path,
    ids: Sequence[np.ndarray[Any, Any]] = IDS,
    weights: float | None = None,
    recording: Sequence[str] = (),
    extra: int = 7,
    ambiguous: int = 0,
) -> Path:
    """A journal that recorded ``ids``.

    Parameters:
        weights: of every assignment; None for the oracle's.
        recording: of each layer; none for a meta without it.
        extra: number of a third layer, recorded as the second.
        ambiguous: tokens of it that moe.meta calls so.
    """
    file = folder / "rank0-1.journal"
    ways: Sequence[str | None] = recording or [None, None]
    layers: list[dict[str, Any]] = [
        {"layer": layer, "num_experts": EXPERTS, "top_k": TOP_K} | ({"recording": way} if way else {})
        for layer, way in zip(LAYERS, ways, strict=True)
    ]
    layers.append({"layer": extra, "num_experts": EXPERTS, "top_k": TOP_K})
    meta = {"recording": "references", "layers": layers, "vllm": "0.33.0", "ambiguous_tokens": {str(extra): ambiguous}}
    out = [("meta", json.dumps(meta).encode())]
    for step, chosen in enumerate(ids):
        row = np.zeros(1, schema.STEP_DTYPE)
        row["step"], row["num_tokens"] = step, len(chosen)
        out.append(("step", row.tobytes()))
        for at, layer in enumerate([*LAYERS, extra]):
            here = chosen[:, min(at, 1)]
            counts = np.zeros(1, schema.counts_dtype(EXPERTS))
            counts["step"], counts["layer"] = step, layer
            counts["counts"] = np.bincount(here.ravel(), minlength=EXPERTS)
            topk = np.zeros(len(here), schema.topk_dtype(TOP_K))
            topk["step"], topk["layer"], topk["experts"] = step, layer, here
            topk["weights"] = WEIGHTS[step][:, 0] if weights is None else weights
            out += [("counts", counts.tobytes()), ("topk", topk.tobytes())]
    writer = JournalWriter(file)
    for event, payload in [*out, ("end", b"{}")]:
        writer.append(record(event, 0, payload))
    writer.close()
    return file


def swapped(*rows: tuple[int, int, int]) -> list[np.ndarray[Any, Any]]:
    """The ids with the two experts of (step, token, layer) in the other order."""
    out = [step.copy() for step in IDS]
    for step, token, at in rows:
        out[step][token, at] = out[step][token, at][::-1]
    return out


def replaced(step: int, token: int, at: int, experts: list[int]) -> list[np.ndarray[Any, Any]]:
    """The ids with other experts of one token in one layer."""
    out = [chosen.copy() for chosen in IDS]
    out[step][token, at] = experts
    return out


def test_all_equal(tmp_path: Path) -> None:
    found = compare(written(tmp_path), oracle())
    assert found["exact"] is True
    assert (found["cells"], found["cells_equal"], found["oracle_cells"]) == (4, 4, 4)
    assert (found["tokens"], found["tokens_equal"], found["oracle_tokens"]) == (6, 6, 6)
    assert (found["weights"], found["weights_equal"]) == (6, 6)
    assert (found["steps"], found["replayed_steps"], found["replays"]) == (2, 1, 3)
    assert found["recording"] == {"references": [1, 3]}
    assert found["other_layers_cells"] == 2
    assert found["experts_used"] == 3
    assert found["vllm"] == "0.33.0"


def test_the_order_counts_where_ids_are_the_routers(tmp_path: Path) -> None:
    found = compare(written(tmp_path, swapped((0, 1, 0))), oracle())
    assert (found["exact"], found["cells_equal"], found["tokens_equal"]) == (False, 4, 5)


def test_the_order_does_not_count_elsewhere(tmp_path: Path) -> None:
    ways = ["sink", "recomputed"]
    found = compare(written(tmp_path, swapped((0, 1, 0), (1, 0, 1)), recording=ways), oracle())
    assert (found["exact"], found["tokens_equal"], found["tokens_in_order"]) == (True, 6, 4)
    assert found["recording"] == {"sink": [1], "recomputed": [3]}


@pytest.mark.parametrize(
    ("told", "ways"),
    [
        (None, [None, None, None]),
        ("sink", ["sink", "sink", "sink"]),
        ({"recomputed": "1001-1003", "references": "0-3,7"}, ["references", None, "recomputed"]),
    ],
)
def test_forms_of_recording(told: Any, ways: list[str | None]) -> None:
    assert [recording_of(told, layer) for layer in (3, 5, 1002)] == ways


def test_a_wrong_expert(tmp_path: Path) -> None:
    found = compare(written(tmp_path, replaced(1, 0, 1, [0, 3]), recording=["recomputed"] * 2), oracle())
    assert (found["exact"], found["cells_equal"], found["cells_excused"]) == (False, 3, 0)
    assert (found["tokens_equal"], found["tokens_excused"]) == (5, 0)


def test_a_tie_excuses_its_own_token_only(tmp_path: Path) -> None:
    journal = written(tmp_path, replaced(1, 0, 1, [0, 3]), recording=["recomputed"] * 2)
    ties = [np.zeros((2, 2), dtype=bool), np.array([[False, True]])]
    found = compare(journal, oracle(ties=ties))
    assert (found["exact"], found["cells_equal"], found["cells_excused"]) == (True, 3, 1)
    assert (found["tokens_equal"], found["tokens_tied"], found["tokens_excused"]) == (5, 1, 1)
    elsewhere = compare(journal, oracle(ties=[np.ones((2, 2), dtype=bool), np.array([[True, False]])]))
    assert elsewhere["exact"] is False


@pytest.mark.parametrize(
    ("weights", "ways", "exact"),
    [
        (float("nan"), ["sink", "sink"], True),  # unknown
        (0.25, ["sink", "sink"], False),
        (0.5, ["recomputed", "recomputed"], False),
    ],
)
def test_weights(weights: float, ways: list[str], exact: bool, tmp_path: Path) -> None:
    found = compare(written(tmp_path, weights=weights, recording=ways), oracle())
    assert found["exact"] is exact
    assert found["weights_unknown"] == (6 if np.isnan(weights) else 0)


def test_recomputed_weights_may_be_rounded(tmp_path: Path) -> None:
    near = oracle()
    near.weights = [weights + np.float32(0.004) for weights in WEIGHTS]
    found = compare(written(tmp_path, recording=["recomputed"] * 2), near)
    assert (found["exact"], found["weights_equal"], found["weights_close"]) == (True, 0, 6)
    assert compare(written(tmp_path / "sink", recording=["sink"] * 2), near)["exact"] is False


def test_a_second_recording_of_a_layer_is_compared_apart(tmp_path: Path) -> None:
    same = Steps(layers=[1], ids=[step[:, 1:] for step in IDS])
    one_off = Steps(layers=[1], ids=[same.ids[0], np.array([[[1, 2]]])])

    def exact(name: str, steps: Steps, ambiguous: int) -> tuple[bool, int, int]:
        ids = [np.repeat(step, 2, axis=1) for step in IDS_OF_LAYER_3]
        found = compare(written(tmp_path / name, ids=ids, extra=1001, ambiguous=ambiguous), steps)
        return found["again_cells_equal"] == 2, found["again_tokens"], found["again_tokens_equal"]

    assert exact("same", same, 0) == (True, 3, 3)
    assert exact("off", one_off, 0) == (False, 3, 2)


@pytest.mark.parametrize(("differing", "ambiguous", "exact"), [(0, 0, True), (1, 0, False), (1, 1, True)])
def test_ambiguous_tokens_excuse_a_second_recording(differing: int, ambiguous: int, exact: bool) -> None:
    found = dict.fromkeys(COUNTS, 0) | {
        "recording": {"references": [1]}, "oracle_cells": 2, "oracle_steps": 2, "oracle_tokens": 3, "steps": 2,
        "cells": 2, "cells_equal": 2, "tokens": 3, "tokens_equal": 3,
        "again_cells": 2, "again_cells_equal": 2 - differing,
        "again_tokens": 3, "again_tokens_equal": 3 - differing, "ambiguous": ambiguous,
    }  # fmt: skip
    assert is_exact(found, eplb=False) is exact


def test_a_layer_without_counts(tmp_path: Path) -> None:
    steps = Steps(layers=[1, 3, 5], ids=[np.concatenate([chosen, chosen[:, :1]], axis=1) for chosen in IDS])
    found = compare(written(tmp_path), steps)
    assert (found["exact"], found["cells"], found["oracle_cells"]) == (False, 4, 6)
    assert found["recording"] == {"references": [1, 3], "hidden": [5]}


@pytest.mark.parametrize(
    ("starts", "divided", "tokens", "replays"),
    [
        ([[0, 1], []], 1, 2, 0),
        ([[0, 1], [0, 1]], 1, 2, 0),  # the second step's only token is in its first micro-batch
        ([[], []], 0, 0, 0),
        ([[], [0]], 0, 0, 0),
    ],
)
def test_micro_batches_have_to_be_there_where_they_are_asked_for(
    starts: list[list[int]], divided: int, tokens: int, replays: int, tmp_path: Path
) -> None:
    found = compare(written(tmp_path), oracle(micro_batches=starts), dbo=True)
    assert found["exact"] is bool(divided)
    assert found["micro_batched_steps"] == divided
    assert (found["micro_batched_tokens"], found["micro_batched_replays"]) == (tokens, replays)
    assert compare(written(tmp_path / "plain"), oracle(micro_batches=starts))["exact"] is True


def test_nothing_at_all_is_not_exact(tmp_path: Path) -> None:
    assert compare(written(tmp_path, ids=[]), Steps(layers=LAYERS))["exact"] is False
