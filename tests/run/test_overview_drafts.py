"""The header of an overview: steps and tokens of the model, not of a draft."""

from __future__ import annotations

from pathlib import Path

from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.overview import overview
from tests.support.export_builder import Export, Process


def test_a_drafts_layer_does_not_stand_for_the_model(tmp_path: Path) -> None:
    """Counts of a draft's layer -1 come from the last pipeline stage, and moe.meta does not announce it."""
    export = Export()
    for rank, layers in enumerate(([0, 1], [2, 3, -1])):
        told = [{"layer": layer, "num_experts": 4, "top_k": 2} for layer in layers if layer >= 0]
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, meta={"layers": told})
        worker.send_meta()
        for number in range(3 if rank else 4):
            with worker.step(number), worker.layer(layers[0]):
                worker.kernel()
            for layer in layers:
                worker.counts(number, layer, [2, 2, 1, 1])
    path = export.save(tmp_path / "built.sqlite")
    found = overview(analyze([path], tmp_path / "out"))
    assert (found["steps_captured"], found["tokens"]) == (4, 12)
    assert {layer["layer"] for layer in found["layers"]} == {-1, 0, 1, 2, 3}
