"""Reports that are not of one run are refused: their numbers must not be put together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.process_lives import process_name
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts

APART = "Analyse the reports of each run apart, into folders of their own"


def refuse_several_runs(reports: Sequence[CaptureFacts]) -> None:
    """Raise when what moe.meta tells can't be of one run. Names and order of the files mean nothing.

    Raises:
        NvtxmoeError: the reports have different run ids, models, or two processes of one rank.
    """
    _refuse_run_ids(reports)
    _refuse_world_sizes(reports)
    _refuse_models(reports)
    _refuse_same_rank(reports)


def _refuse_run_ids(reports: Sequence[CaptureFacts]) -> None:
    first: dict[str, str] = {}
    for report in reports:
        for meta in report.metas.values():
            if meta.raw.get("run_id") is not None:
                run = str(meta.raw["run_id"])
                first.setdefault(run, f"{report.source} (rank {meta.rank}) of run {run}")
    if len(first) > 1:
        raise NvtxmoeError(f"the reports are of {len(first)} runs: {_two(first)}", remedy=APART)


def _refuse_world_sizes(reports: Sequence[CaptureFacts]) -> None:
    """Within a report a check tells (``ranks_present``): what is in it was captured together."""
    first: dict[int, str] = {}
    for report in reports:
        if report.metas:
            size = max(meta.world_size for meta in report.metas.values())
            first.setdefault(size, f"{report.source} of {number(size, 'rank')}")
    if len(first) > 1:
        raise NvtxmoeError(f"the reports are of runs of different sizes: {_two(first)}", remedy=APART)


def _refuse_models(reports: Sequence[CaptureFacts]) -> None:
    """Ranks may hold different layers (pipeline stages), but a layer is the same on all of them."""
    names: dict[str, str] = {}
    shapes: dict[int, tuple[tuple[int, int], str]] = {}
    for report in reports:
        for meta in report.metas.values():
            report_text = f"{report.source} (rank {meta.rank})"
            if (name := _hub_name(meta)) is not None:
                names.setdefault(name, f"{report_text} of {name}")
            for layer_number, layer in meta.layers.items():
                shape = layer.num_experts, layer.top_k
                known, first_report = shapes.setdefault(layer_number, (shape, report_text))
                if known != shape:
                    raise NvtxmoeError(
                        f"the reports are of different models: layer {layer_number} has {known[0]} experts, "
                        f"top-{known[1]}, in {first_report} and {shape[0]} experts, top-{shape[1]}, in {report_text}",
                        remedy=APART,
                    )
    if len(names) > 1:
        raise NvtxmoeError(f"the reports are of different models: {_two(names)}", remedy=APART)


def _two(texts: dict[Any, str]) -> str:
    return ", ".join(list(texts.values())[:2])


def _hub_name(meta: Meta) -> str | None:
    """The model's name as ``org/name``. A path, or the last part of one (``trim`` leaves that), says nothing: each
    process may have a copy of its own."""
    name = meta.raw.get("model")
    return name if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else None


def _refuse_same_rank(reports: Sequence[CaptureFacts]) -> None:
    seen: dict[int, str] = {}
    processes: dict[int, int] = {}
    for report in reports:
        ranks = {(pid, meta.rank) for pid, meta in report.metas.items()}
        for frame in (report.steps, report.events.counts.cells):
            ranks |= set(frame.select("pid", "rank").drop_nulls().unique().rows())
        for pid, rank in sorted(ranks):
            file = report.events.journals.get(pid)
            process_text = (
                f"{report.source} ({process_name(pid, list(report.metas))})" if file is None else str(file.path)
            )
            if rank in seen:
                raise NvtxmoeError(
                    f"two processes say they are rank {rank}: {seen[rank]} and {process_text}",
                    remedy="Give each rank's report once, and reports of one run only"
                    + (" (are they copies of one report?)" if processes[rank] == pid else "")
                    if file is None
                    else "Give each journal once, and of an engine that started again the journals of one run, not the "
                    "folder",
                )
            seen[rank], processes[rank] = process_text, pid
