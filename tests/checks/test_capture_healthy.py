"""What capture says of itself: hooks that failed, events that were lost, layers whose routing is hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import run
from tests.support.export_builder import Export, Process
from tests.support.sessions import counts, journal, meta, run_of, step
from tests.support.written_results import Written, written

MONOLITHIC = "routing happens inside a monolithic kernel (FlashInfer)"


def exported(folder: Path, *captures: dict[str, Any], layers: tuple[int, ...] = (0, 1)) -> Written:
    """A binary export with a process for each ``capture`` key, and counts of these layers of two."""
    export = Export()
    for rank, capture in enumerate(captures):
        more = {"capture": capture} if capture else {}
        worker = Process(export, pid=100 + rank, rank=rank, world_size=len(captures), meta=more)
        worker.send_meta()
        for number in range(2):
            with worker.step(number):
                for layer in range(2):
                    with worker.layer(layer):
                        worker.kernel()
            for layer in layers:
                worker.counts(number, layer, [2, 2, 1, 1])
    return written(folder, export)


def in_session(folder: Path, *captures: dict[str, Any], layers: tuple[int, ...] = (0, 1)) -> Written:
    """The same as a session; the key is in the last moe.meta."""
    for rank, capture in enumerate(captures):
        world = {"world_size": len(captures)}
        sent = [meta(rank=rank, **world)]
        for number in range(2):
            sent += [step(number, rank), *(counts(number, layer, [2, 2, 1, 1], rank) for layer in layers)]
        sent.append(meta(rank=rank, **world, capture=capture) if capture else meta(rank=rank, **world))
        journal(folder / "session", sent, rank=rank, pid=100 + rank)
    return written(folder, folder / "session")


FORMS = pytest.mark.parametrize("recorded", [exported, in_session])


@FORMS
def test_nothing_to_tell(tmp_path: Path, recorded: Any) -> None:
    found = recorded(tmp_path, {}, {"failures": {}, "lost": {}, "hidden_layers": {}})
    said = "No process reports a failure or a loss."
    assert found.check("capture_healthy") == ("pass", said, {"processes": 2})
    assert found.verdict == "complete"


@FORMS
def test_losses_and_failures(tmp_path: Path, recorded: Any) -> None:
    """Losses of several processes are added; one sentence a kind."""
    first = {"lost": {"steps whose forward failed": 2, "layers with fewer rows than tokens": 1}}
    second = {"lost": {"steps whose forward failed": 1}, "failures": {"router": "ValueError: no\nsuch thing."}}
    found = recorded(tmp_path, first, second)
    assert found.check("capture_healthy") == (
        "fail",
        "Capture lost layers with fewer rows than tokens (1), steps whose forward failed (3). Hooks that failed: "
        "router: ValueError: no such thing.",
        {
            "processes": 2,
            "hidden_layers": {},
            "lost": {"layers with fewer rows than tokens": 1, "steps whose forward failed": 3},
            "failures": {"router": "ValueError: no\nsuch thing."},
        },
    )
    assert (found.statuses, found.verdict) == ({"capture_healthy": "fail"}, "incomplete")


@FORMS
def test_hidden_layers(tmp_path: Path, recorded: Any) -> None:
    """One clear sentence instead of a thousand missing counts; the other layers still need theirs."""
    found = recorded(tmp_path, {"hidden_layers": {"1": MONOLITHIC}}, layers=(0,))
    said = f"No counts of layer 1: {MONOLITHIC}."
    assert found.check("capture_healthy")[:2] == ("fail", said)
    assert found.check("steps_have_counts") == (
        "pass",
        "All 2 (rank, step, layer) have counts, 1 hidden layer apart.",
        {"cells": 2, "missing": 0, "hidden_layers": 1},
    )
    assert (found.statuses, found.verdict) == ({"capture_healthy": "fail"}, "incomplete")
    assert found.validation["reasons"] == [said]
    assert {layer for (layer,) in found.rows("moe_expert_activations", "layer_idx")} == {"0"}


@FORMS
def test_every_layer_is_hidden(tmp_path: Path, recorded: Any) -> None:
    found = recorded(tmp_path, {"hidden_layers": {"0": MONOLITHIC, "1": MONOLITHIC}}, layers=())
    assert found.check("capture_healthy")[1] == f"No counts of layers 0-1: {MONOLITHIC}."
    said = "The routing of every layer is hidden, see capture_healthy."
    assert found.check("steps_have_counts")[:2] == ("not_applicable", said)
    assert found.statuses == {"capture_healthy": "fail"}
    assert found.json("moe_summary") == {}


@FORMS
def test_a_hidden_layer_excuses_no_other(tmp_path: Path, recorded: Any) -> None:
    found = recorded(tmp_path, {"hidden_layers": {"1": MONOLITHIC}}, layers=())
    assert found.statuses == {"capture_healthy": "fail", "steps_have_counts": "fail"}
    assert found.check("steps_have_counts")[2]["missing"] == 2


@FORMS
def test_hidden_on_one_rank_only(tmp_path: Path, recorded: Any) -> None:
    """Its own counts are not expected; the other rank's are."""
    found = recorded(tmp_path, {"hidden_layers": {"0": "one", "1": "two"}}, {}, layers=())
    assert found.check("capture_healthy")[1] == "No counts of layer 0: one. No counts of layer 1: two."
    assert found.check("steps_have_counts")[2]["missing"] == 4


def test_the_end_of_a_journal_tells_last(tmp_path: Path) -> None:
    """Its running totals replace those of an earlier moe.meta; hidden layers are told there alone."""
    early = {"lost": {"events": 2, "rows": 1}, "hidden_layers": {"1": MONOLITHIC}}
    end = {"steps": 3, "lost": {"events": 5}, "failures": {"router": "off"}}
    sent = [*run_of(), meta(capture=early)]
    journal(tmp_path, sent, end=end)
    found = written(tmp_path, tmp_path)
    figures = found.check("capture_healthy")[2]
    assert figures["lost"] == {"events": 5, "rows": 1}
    assert figures["hidden_layers"] == {"1": MONOLITHIC}
    (process,) = found.validation["inputs"][0]["processes"]
    assert (process["lost"], process["failures"], process["capture"]) == ({"events": 5}, {"router": "off"}, early)


def test_nobody_says_anything(tmp_path: Path) -> None:
    found = written(tmp_path, _without_meta())
    assert found.check("capture_healthy")[:2] == ("not_applicable", "No process says how its capture went.")


def _without_meta() -> Export:
    export = Export()
    worker = Process(export)
    with worker.step(0):
        worker.kernel()
    return export


@pytest.mark.parametrize(
    ("capture", "said"),
    [
        (3, "capture is 3, not an object"),
        ({"lost": [1]}, "lost is [1], not an object"),
        ({"lost": {"x": "many"}}, 'lost is {"x": "many"}, not numbers by name'),
        ({"hidden_layers": {"first": "why"}}, 'hidden_layers is {"first": "why"}, not reasons by layer'),
    ],
)
def test_a_damaged_state(tmp_path: Path, capture: Any, said: str) -> None:
    journal(tmp_path, [meta(capture=capture), step(0)])
    ran = run("merge", tmp_path)
    assert ran.code == 2
    assert f"moe.meta of process 100: damaged payload: {said}" in ran.err


def test_a_trimmed_export_says_the_same(tmp_path: Path) -> None:
    """But for the message of an error, which is free text."""
    capture = {"failures": {"router": "OSError: /home/somebody/x"}, "hidden_layers": {"1": MONOLITHIC}}
    exported(tmp_path, capture, layers=(0,))
    assert run("trim", tmp_path / "built0.sqlite", tmp_path / "small.sqlite").code == 0
    found = written(tmp_path / "again", tmp_path / "small.sqlite")
    said = f"No counts of layer 1: {MONOLITHIC}. Hooks that failed: router: OSError."
    assert found.check("capture_healthy")[1] == said
    assert found.check("steps_have_counts")[0] == "pass"
    assert b"somebody" not in (tmp_path / "small.sqlite").read_bytes()


def test_inspect_names_hidden_layers(tmp_path: Path) -> None:
    exported(tmp_path, {"hidden_layers": {"1": MONOLITHIC}}, layers=(0,))
    found = run("inspect", tmp_path / "built0.sqlite", "--json").json
    assert found["missing"] == [f"No counts of layer 1: {MONOLITHIC}"]


def test_counts_that_were_not_asked_for_are_not_missing(tmp_path: Path) -> None:
    """NVTXMOE_EMIT without counts: said in moe.meta."""
    for emit, status in ((["topk"], "warn"), (["counts", "topk"], "fail")):
        folder = tmp_path / emit[0]
        journal(folder, [meta(emit=emit), step(0)])
        run("merge", folder)
        document = json.loads((folder / "moe_expert_tracking" / "moe_capture_validation.json").read_text())
        assert {c["name"]: c["status"] for c in document["checks"]}["steps_have_counts"] == status


def test_experts_that_no_hook_sees_and_a_changed_program(tmp_path: Path) -> None:
    """Both are optional keys of moe.meta; anything but what capture writes there is ignored."""
    changed = "the fused front of decode_backend=latency_specialized is off"
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"changed_program": changed}, "warn", f"or a loss. Capture changed the program that ran: {changed}."),
        ({"unrecorded_experts": {"OddExperts": 2}}, "fail", "Experts of these classes are not recorded: OddExperts."),
        ({"unrecorded_experts": ["OddExperts"], "changed_program": 1}, "pass", "or a loss."),
    ]
    for place, (keys, status, said) in enumerate(cases):
        sent = [meta(**keys)]
        for number in range(2):
            sent += [step(number), *(counts(number, layer, [2, 2, 1, 1]) for layer in range(2))]
        journal(tmp_path / str(place), sent)
        found = written(tmp_path / f"results{place}", tmp_path / str(place))
        assert found.check("capture_healthy")[0] == status
        assert found.check("capture_healthy")[1].endswith(said)
        assert found.verdict == ("incomplete" if status == "fail" else "complete")


def test_no_layer_is_recorded_and_the_reason_is_captures_own(tmp_path: Path) -> None:
    why = "the model's experts are of a class that nvtxmoe does not record: OddExperts (2)"
    journal(tmp_path / "session", [meta(layers=[], no_layers=why), step(0), step(1)])
    found = written(tmp_path, tmp_path / "session")
    assert found.check("steps_have_counts")[1] == f"2 steps with tokens, and no layer is recorded: {why}."


def test_a_journal_without_an_end_may_have_lost_more(tmp_path: Path) -> None:
    """moe.meta with a loss is sent once: a killed process has no later number."""
    lost = {"lost": {"events": 1}}
    journal(tmp_path, [*run_of(world_size=2), meta(world_size=2, capture=lost)], end=None)
    journal(tmp_path, [*run_of(1, world_size=2), meta(rank=1, world_size=2, capture=lost)], rank=1, pid=101)
    status, message, figures = written(tmp_path, tmp_path).check("capture_healthy")
    assert (status, message) == ("fail", "Capture lost events (at least 2).")
    assert figures["lost"] == {"events": 2}
    assert "ranks_changed" not in figures
