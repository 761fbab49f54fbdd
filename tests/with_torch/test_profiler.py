"""The recorder on its own, on a PyTorch mixture of experts that knows nothing of vLLM."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path

import pytest
import torch

from nvtxmoe.capture.hooks import unhook_all
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.profiler import MoEExpertProfiler

EXPERTS, TOP_K, HIDDEN = 16, 4, 32


class Layer(torch.nn.Module):  # type: ignore[misc]
    """A gate; its experts don't matter here."""

    def __init__(self, number: int, profiler: MoEExpertProfiler) -> None:
        super().__init__()
        self.number, self.profiler = number, profiler
        self.gate = torch.nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.profiler.layer(self.number), self.profiler.phase(self.number, "route"):
            weights, ids = self.gate(x).softmax(-1).topk(TOP_K)
        self.profiler.record_expert_selection(self.number, ids, weights, EXPERTS, TOP_K)
        self.seen.append(ids.clone())
        return x + weights.sum()


def rows(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with file.open() as text:
        return list(csv.DictReader(text))


def counts(folder: Path, layer: int) -> list[int]:
    """Activations of a layer."""
    found = rows(folder / "moe_expert_activations.csv")
    return [int(row["activation_count"]) for row in found if int(row["layer_idx"]) == layer]


@pytest.fixture(autouse=True)
def unhooked() -> None:
    """Failures of other tests are not ours."""
    unhook_all()


def test_a_model_is_profiled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with MoEExpertProfiler(tmp_path / "session", log_interval=2) as profiler:
        layers = [Layer(number, profiler) for number in (0, 3)]
        model = torch.nn.Sequential(*layers)
        for tokens in (5, 7, 5, 1):
            model(torch.randn(tokens, HIDDEN))
        folder = profiler.save_stats()
    assert folder == tmp_path / "session" / "moe_expert_tracking"
    for layer in layers:
        wanted = torch.bincount(torch.cat(layer.seen).flatten(), minlength=EXPERTS).tolist()
        assert counts(folder, layer.number) == wanted
    summary = json.loads((folder / "moe_summary.json").read_text())
    assert list(summary) == ["layer_0", "layer_3"]
    assert summary["layer_3"]["total_activations"] == 18 * TOP_K
    weights = rows(folder / "moe_routing_weights_hist.csv")
    assert len(weights) == 2 * (5 + 5) * TOP_K  # steps 0 and 2
    assert {row["step"] for row in weights} == {"0", "2"}
    assert len(rows(folder / "moe_load_imbalance.csv")) == 4 * 2
    validation = json.loads((folder / "moe_capture_validation.json").read_text())
    assert [c["name"] for c in validation["checks"] if c["status"] == "fail"] == []


def test_stats_can_be_saved_again(tmp_path: Path) -> None:
    profiler = MoEExpertProfiler(tmp_path)
    chosen = torch.tensor([[0, 1]])
    profiler.record_expert_selection(0, chosen, None, 4, 2)
    assert counts(profiler.save_stats(), 0) == [1, 1, 0, 0]
    profiler.record_expert_selection(0, torch.tensor([[2, 1]]), None, 4, 2)
    profiler.close()
    assert counts(profiler.save_stats(), 0) == [1, 2, 1, 0]


def test_steps_by_repetition_and_by_word(tmp_path: Path) -> None:
    profiler = MoEExpertProfiler(tmp_path)
    two, three = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 1], [1, 2], [2, 3]])
    for layer in (0, 1, 0, 1):
        profiler.record_expert_selection(layer, two, None, 4, 2)
    with profiler.step():
        profiler.record_expert_selection(0, three, None, 4, 2)
    with profiler.step():
        profiler.record_expert_selection(1, two, None, 4, 2)
    found = rows(profiler.save_stats() / "moe_load_imbalance.csv")
    cells = sorted((int(row["step"]), int(row["layer_idx"]), int(row["num_tokens"])) for row in found)
    assert cells == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (2, 0, 3), (3, 1, 2)]


def test_pairs_of_all_tokens(tmp_path: Path) -> None:
    profiler = MoEExpertProfiler(tmp_path, log_interval=0, pairs=True)
    for _ in range(3):
        profiler.record_expert_selection(0, torch.tensor([[0, 1, 3], [3, 1, 2]]), None, 4, 3)
    found = rows(profiler.save_stats() / "moe_expert_coselection.csv")
    got = {(int(r["expert_id_1"]), int(r["expert_id_2"])): int(r["coselection_count"]) for r in found}
    assert got == {(0, 1): 3, (0, 3): 3, (1, 2): 3, (1, 3): 6, (2, 3): 3}
    assert {r["tokens"] for r in found} == {"6"}


def test_data_parallel_processes_share_a_folder(tmp_path: Path) -> None:
    for rank in (0, 1):
        with MoEExpertProfiler(tmp_path, rank=rank, world_size=2) as profiler:
            profiler.record_expert_selection(0, torch.tensor([[rank, 2]]), None, 4, 2)
    # A file a process: this process was both, so the second opened a file of its own rank.
    assert counts(profiler.save_stats(), 0) == [1, 1, 2, 0]


@pytest.mark.parametrize(
    ("ids", "weights", "top_k", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), None, 2, r"\[3\], not \[num_tokens, 2\]"),
        (torch.zeros(3, 2, dtype=torch.int64), None, 4, r"\[3, 2\], not \[num_tokens, 4\]"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 2), 2, "topk_weights of layer 0"),
    ],
)
def test_shapes_that_do_not_fit(
    ids: torch.Tensor, weights: torch.Tensor | None, top_k: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        MoEExpertProfiler(tmp_path).record_expert_selection(0, ids, weights, 8, top_k)


def test_layers_of_a_step_have_the_same_tokens(tmp_path: Path) -> None:
    profiler = MoEExpertProfiler(tmp_path)
    profiler.record_expert_selection(0, torch.zeros(3, 2, dtype=torch.int64), None, 8, 2)
    with pytest.raises(ValueError, match="4 tokens in a step of 3"):
        profiler.record_expert_selection(1, torch.zeros(4, 2, dtype=torch.int64), None, 8, 2)


def test_nothing_recorded(tmp_path: Path) -> None:
    with pytest.raises(NvtxmoeError):
        MoEExpertProfiler(tmp_path / "empty").save_stats()


def test_a_wrong_phase(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of route, dispatch, experts, combine, shared"):
        MoEExpertProfiler(tmp_path, nvtx=True, payload="words").phase(0, "router").__enter__()


def test_memory_for_64_experts_in_32_layers(tmp_path: Path) -> None:
    """At most 10 MB, however long it runs: measured over 400 steps after 100."""
    profiler = MoEExpertProfiler(tmp_path, flush_interval=0.05)
    chosen = torch.randint(0, 64, (32, 8))
    weights = torch.rand(32, 8)

    def run(steps: int) -> None:
        for _ in range(steps):
            for layer in range(32):
                profiler.record_expert_selection(layer, chosen, weights, 64, 8)

    tracemalloc.start()
    try:
        run(100)
        settled = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        run(400)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
    assert after - settled < 3_000_000


def test_a_folder_is_used_once(tmp_path: Path) -> None:
    with MoEExpertProfiler(tmp_path) as profiler:
        profiler.record_expert_selection(0, torch.tensor([[0, 1]]), None, 4, 2)
    with pytest.raises(NvtxmoeError, match="a recording of this rank is there already"):
        MoEExpertProfiler(tmp_path)


def test_a_layer_keeps_its_experts(tmp_path: Path) -> None:
    profiler = MoEExpertProfiler(tmp_path)
    profiler.record_expert_selection(0, torch.tensor([[0, 1]]), None, 8, 2)
    with pytest.raises(ValueError, match="layer 0 has 8 experts, top-2, and is recorded with 9, top-2"):
        profiler.record_expert_selection(0, torch.tensor([[0, 1]]), None, 9, 2)


def test_an_expert_out_of_range_names_its_layer(tmp_path: Path) -> None:
    profiler = MoEExpertProfiler(tmp_path)
    profiler.record_expert_selection(3, torch.tensor([[0, 99]]), None, 8, 2)
    with pytest.raises(ValueError, match="layer 3: a router chose expert 99 of 8"):
        profiler.save_stats()
