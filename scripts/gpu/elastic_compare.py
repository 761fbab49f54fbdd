"""A worker's journal compared with its oracle where the number of ranks changes: exact before, named losses after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.formats import schema
from scripts.gpu.compare_journal import compare
from scripts.gpu.oracle import Steps


def judged(journal: Path, steps: Steps) -> dict[str, Any]:
    """Compare what was recorded until the ranks changed, and what is said of the steps after it.

    Returns:
        The comparison of ``compare_journal.compare`` for the steps before the change; ``sizes``, the numbers of
        data-parallel and expert-parallel ranks in turn; ``steps_after`` of the oracle, ``recorded_after`` of the
        journal, ``told_after``: their number among the losses that are told last, None for no such loss, and
        ``told_as``, its name; ``has_end``: whether these are the losses at the process's end; ``first_place``: ranks
        and experts by the first moe.meta, and ``places``, how many different ones there are.
    """
    first = first_of_another_size(steps)
    after = sum(len(step) > 0 for step in steps.ids[first:])
    metas, last_step, lost, ended = _of_journal(journal)
    change_losses = {name: number for name, number in lost.items() if name.startswith(schema.RANKS_CHANGED)}
    meta_places = [place_of(meta) for meta in metas]
    result: dict[str, Any] = {
        "sizes": [size for at, size in enumerate(steps.sizes) if at == 0 or size != steps.sizes[at - 1]],
        "steps_after": after,
        "recorded_after": max(0, last_step + 1 - first),
        "told_after": next(iter(change_losses.values()), None),
        "told_as": next(iter(change_losses), None),
        "has_end": ended,
        "first_place": meta_places[0] if meta_places else None,
        "places": len({json.dumps(place) for place in meta_places}),
    }
    if result["recorded_after"]:  # the comparison knows nothing of such steps
        return {"exact": False, "error": "steps after the change were recorded", **result}
    comparison = compare(journal, until(steps, first), eplb=True)
    data, expert = steps.sizes[0] if steps.sizes else (None, None)
    first_place = result["first_place"] or {}
    is_its_own_place = (first_place.get("dp_size") or 1, first_place.get("ep_size")) == (data, expert)
    # moe.meta is sent with the first loss of a name: only the end has the number
    is_told = (result["told_after"] == after if ended else bool(change_losses)) if after else not change_losses
    exact = comparison["exact"] and is_told and is_its_own_place and result["places"] == 1
    return {**comparison, **result, "exact": exact}


def first_of_another_size(steps: Steps) -> int:
    """Number of the first step with other groups of ranks than the first step; the number of steps if there is none."""
    return next((at for at, size in enumerate(steps.sizes) if size != steps.sizes[0]), len(steps.ids))


def until(steps: Steps, first: int) -> Steps:
    """The oracle of the steps before ``first``."""
    busy = sum(len(step) > 0 for step in steps.ids[:first])
    return replace(
        steps,
        ids=steps.ids[:first],
        physical=steps.physical[:first],
        weights=steps.weights[:first],
        ties=steps.ties[:first],
        sizes=steps.sizes[:first],
        replays=steps.replays[:busy],
        micro_batches=steps.micro_batches[:busy],
        idle=first - busy,
    )


def place_of(meta: dict[str, Any]) -> dict[str, Any]:
    """What a moe.meta says of ranks, and of the experts of its first layer."""
    layer = (meta.get("layers") or [{}])[0]
    ranks = {name: meta.get(name) for name in ("rank", "world_size", "ep_rank", "ep_size", "dp_rank", "dp_size")}
    return {**ranks, "physical": layer.get("num_physical_experts"), "local": layer.get("local_experts")}


def _of_journal(journal: Path) -> tuple[list[dict[str, Any]], int, dict[str, int], bool]:
    """Every moe.meta, the last step's number, the losses that are told last, and whether an end record has them."""
    from nvtxmoe.formats.journal import EVENTS, Journal  # noqa: PLC0415

    record = Journal(journal)
    metas, last = [], -1
    for part in record.bulk():
        for place in range(len(part)):
            event = EVENTS[int(part.event[place])]
            if event == "meta":
                metas.append(json.loads(part.payloads(np.array([place])).tobytes()))
            elif event == "step":
                payload = part.payloads(np.array([place])).tobytes()
                last = max(last, int(np.frombuffer(payload, schema.STEP_DTYPE)[0]["step"]))
    if record.ended:
        return metas, last, dict(json.loads(record.ended).get("lost") or {}), True
    capture = metas[-1].get("capture") if metas else None
    return metas, last, dict((capture or {}).get("lost") or {}), False
