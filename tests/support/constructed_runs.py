"""Constructed runs that several tests start from."""

from __future__ import annotations

from typing import Any

from tests.support.export_builder import Export, Process, simple_run

#: Counts of three tokens, two experts each.
GOOD = [2, 2, 1, 1]


def one_layer(**process: Any) -> tuple[Export, Process]:
    export = Export()
    worker = Process(export, layers=1, **process)
    worker.send_meta()
    return export, worker


def without(export: Export, *kinds: str) -> Export:
    """The export without these CUDA tables."""
    for kind in kinds:
        export.rows[f"CUPTI_ACTIVITY_KIND_{kind}"] = []
    return export


def simple(**process: Any) -> Export:
    export = Export()
    simple_run(export, **process)
    return export


def make_nodes(worker: Process, number: int, *, first: int = 1, clones: int = 100) -> None:
    """Nodes created inside layer 0, and the ids of their replays."""
    with worker.layer(0):
        for node in range(first, first + number):
            worker.create_node(node)
    for node in range(first, first + number):
        worker.clone_node(clones + node, node)


def replay(worker: Process, nodes: list[int]) -> int:
    """A graph launch and the kernels of these nodes."""
    launch = worker.call("cudaGraphLaunch_v10000")
    for node in nodes:
        worker.kernel(100, correlation=launch, node=node)
    return launch
