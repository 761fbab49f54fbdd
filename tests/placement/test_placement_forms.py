"""The files of placements have what each project's loader reads: keys, shapes and what it asserts."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.placement.formats import Placement, forms
from nvtxmoe_analysis.placement.formats.ours import read
from nvtxmoe_analysis.placement.layout import Layout, contiguous
from tests.support.paths import ROOT

PERMUTED = Layout.of_ranks([[3, 0], [2, 1]])
REPLICAS = Layout.of_ranks([[3, 0, 1], [2, 1, 3]])


def placement(*layouts: Layout, first: int = 2) -> Placement:
    layers = {first + 2 * at: layout for at, layout in enumerate(layouts)}
    return Placement("mine", layers, dict.fromkeys(layers, 4))


def test_ours_is_read_back(tmp_path: Path) -> None:
    uneven = Layout.of_ranks([[4, 3, 1], [2, 0]])
    given = Placement("mine", {0: REPLICAS, 7: uneven}, {0: 4, 7: 5})
    file = tmp_path / "mine.json"
    file.write_text(forms()["ours"].dump(given))
    found = read(file)
    assert list(found) == [0, 7]
    for layer, layout in given.layers.items():
        assert found[layer].order.tolist() == layout.order.tolist()
        assert found[layer].sizes.tolist() == layout.sizes.tolist()


def test_ours_may_be_a_plain_list(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"nvtxmoe_placement": 1, "ranks": 2, "layers": {"3": [3, 0, 2, 1]}}))
    assert [read(file)[3].held(rank).tolist() for rank in (0, 1)] == [[3, 0], [2, 1]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "no placement of ours"),
        ('{"physical_to_logical_map": [[0, 1]]}', "no placement of ours"),
        ('{"nvtxmoe_placement": 1, "layers": {"0": [0, 1]}}', "ranks or layers are absent"),
        ('{"nvtxmoe_placement": 1, "ranks": 2, "layers": {"x": [0, 1]}}', "layer 'x': not a number"),
        ('{"nvtxmoe_placement": 1, "ranks": 2, "layers": {"0": [0, 1, 2]}}', "layer 0: 3 slots do not divide"),
        ('{"nvtxmoe_placement": 1, "ranks": 2, "layers": {"0": [0, "1"]}}', "layer 0: order is no list of experts"),
        (
            '{"nvtxmoe_placement": 1, "ranks": 2, "layers": {"0": {"order": [0, 1], "slots_per_rank": [2, 1]}}}',
            "slots_per_rank does not add up",
        ),
    ],
)
def test_a_file_that_is_no_placement_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(NvtxmoeError, match=says):
        read(file)


def test_sglang_has_a_row_for_every_hidden_layer_and_no_other_key() -> None:
    document = json.loads(forms()["sglang"].dump(placement(REPLICAS, REPLICAS)))
    assert list(document) == ["physical_to_logical_map"]  # others would be passed on to init_by_mapping
    rows = np.array(document["physical_to_logical_map"])
    assert rows.shape == (5, 6)  # layers 0 to 4, of which 2 and 4 have experts
    assert rows.dtype == np.int64
    assert rows[2].tolist() == rows[4].tolist() == [3, 0, 1, 2, 1, 3]
    assert rows[0].tolist() == [0, 1, 2, 3, 0, 1]  # SGLang's trivial one
    # Every logical expert has a physical one in each layer, as logical_to_all_physical_map needs.
    assert all(set(row) == {0, 1, 2, 3} for row in rows.tolist())


def test_tensorrt_llm_has_the_experts_by_slot_and_layer() -> None:
    text = forms()["tensorrt_llm"].dump(placement(REPLICAS, REPLICAS))
    assert text == (
        "num_slots: 6\n"
        "initial_global_assignments:\n"
        "  2: [3, 0, 1, 2, 1, 3]\n"
        "  4: [3, 0, 1, 2, 1, 3]\n"
        "layer_updates_per_iter: 0\n"
    )


def test_vllm_gets_the_order_of_a_checkpoint() -> None:
    document = json.loads(forms()["vllm"].dump(placement(PERMUTED)))
    order = document["checkpoint_order"]["2"]
    # Renumbered, vLLM's contiguous blocks hold what the placement's ranks hold.
    blocks = contiguous(4, 2)
    for rank in (0, 1):
        assert [order[new] for new in blocks.held(rank)] == PERMUTED.held(rank).tolist()


@pytest.mark.parametrize(
    ("form", "layouts", "says"),
    [
        ("vllm", [REPLICAS], "redundant experts"),
        ("vllm", [Layout.of_ranks([[0], [1, 2, 3]])], "other numbers of experts"),
        ("sglang", [Layout.of_ranks([[0], [1, 2, 3]])], "unequal numbers of slots"),
        ("tensorrt_llm", [PERMUTED, REPLICAS], "unequal numbers of experts or slots"),
    ],
)
def test_a_form_that_cannot_hold_a_placement_says_why(form: str, layouts: list[Layout], says: str) -> None:
    with pytest.raises(NvtxmoeError, match=says):
        forms()[form].dump(placement(*layouts))


def renumber(
    folder: Path, stored: Mapping[str, Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """Run the example on a checkpoint of these tensors by file, from ``old`` to ``new``. Return what it saved."""
    source, file = folder / "old", folder / "mine.vllm.json"
    source.mkdir()
    file.write_text(forms()["vllm"].dump(placement(PERMUTED)))
    for name in stored:
        (source / name).touch()
    names = {tensor: name for name, tensors in stored.items() for tensor in tensors}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    saved: dict[str, dict[str, Any]] = {}
    library, files = ModuleType("safetensors"), ModuleType("safetensors.torch")
    library.safe_open = lambda path, framework: nullcontext(stored[path.name])  # type: ignore[attr-defined]
    files.load_file = lambda path: stored[path.name]  # type: ignore[attr-defined]
    files.save_file = lambda tensors, path, metadata: saved.update({path.name: tensors})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "safetensors", library)
    monkeypatch.setitem(sys.modules, "safetensors.torch", files)
    monkeypatch.setattr(sys, "argv", ["renumber", str(file), str(source), str(folder / "new")])
    runpy.run_path(str(ROOT / "examples" / "renumber_experts.py"), run_name="__main__")
    return saved


def test_a_checkpoint_is_renumbered_by_the_file_for_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert i of the new checkpoint is expert order[i] of the old one; other tensors and layers stay."""
    stored = {
        "a.safetensors": {
            **{f"model.layers.2.mlp.experts.{expert}.up_proj.weight": np.full(3, expert) for expert in range(4)},
            "model.layers.2.mlp.gate.weight": np.arange(4)[:, None] * np.ones(2),
            "model.layers.2.self_attn.q_proj.weight": np.arange(4),
        },
        "b.safetensors": {"model.layers.3.mlp.experts.1.up_proj.weight": np.ones(3)},
    }
    saved = renumber(tmp_path, stored, monkeypatch)
    order = PERMUTED.order.tolist()
    new = saved["a.safetensors"]
    assert [new[f"model.layers.2.mlp.experts.{expert}.up_proj.weight"][0] for expert in range(4)] == order
    assert new["model.layers.2.mlp.gate.weight"][:, 0].tolist() == order
    assert new["model.layers.2.self_attn.q_proj.weight"].tolist() == [0, 1, 2, 3]
    assert list(saved["b.safetensors"]) == list(stored["b.safetensors"])
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {tensor: name for name, tensors in stored.items() for tensor in tensors}


def test_a_checkpoint_with_fused_experts_is_not_renumbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its router alone would get another order, and the model would be broken."""
    fused = {"model.layers.2.mlp.experts.gate_up_proj": np.ones(4), "model.layers.2.mlp.gate.weight": np.ones((4, 2))}
    with pytest.raises(SystemExit, match=r"no tensor \.\.\.layers\.2\.\.\.experts\.E"):
        renumber(tmp_path, {"a.safetensors": fused}, monkeypatch)
    assert not (tmp_path / "new").exists()
