"""Where expert ids come from, as moe.meta tells it, and what of it is uncertain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.checks.ids_taken import ROUTER_OUTSIDE
from nvtxmoe_analysis.events.meta import Layer, Meta
from nvtxmoe_analysis.events.recording import recomputed_tokens, recording_by_layer
from nvtxmoe_analysis.trimming.scrub_meta import scrub_text
from tests.support.cli import run
from tests.support.export_builder import Export, Process
from tests.support.sessions import counts, journal, meta, step
from tests.support.written_results import Written, written


def exported(folder: Path, *told: dict[str, Any]) -> Written:
    """An export with a process for each set of keys, and counts of layers 0 and 1."""
    export = Export()
    for rank, keys in enumerate(told):
        worker = Process(export, pid=100 + rank, rank=rank, world_size=len(told), meta=keys)
        worker.send_meta()
        with worker.step(0):
            for layer in range(2):
                with worker.layer(layer):
                    worker.kernel()
        for layer in range(2):
            worker.counts(0, layer, [2, 2, 1, 1])
    return written(folder, export)


def in_session(folder: Path, *told: dict[str, Any]) -> Written:
    """The same as a session; the keys are in the last moe.meta, as a recorder sends them."""
    for rank, keys in enumerate(told):
        world = {"world_size": len(told)}
        sent = [meta(rank=rank, **world), step(0, rank), *(counts(0, layer, [2, 2, 1, 1], rank) for layer in range(2))]
        journal(folder / "session", [*sent, meta(rank=rank, **world, **keys)], rank=rank, pid=100 + rank)
    return written(folder, folder / "session")


def folder(path: Path) -> Path:
    path.mkdir()
    return path


FORMS = pytest.mark.parametrize("recorded", [exported, in_session])


@FORMS
def test_an_old_capture_tells_nothing(tmp_path: Path, recorded: Any) -> None:
    status, message, _ = recorded(tmp_path, {}).check("ids_taken")
    assert (status, message) == ("not_applicable", "No process tells how it took the expert ids.")


@FORMS
def test_the_routers_own(tmp_path: Path, recorded: Any) -> None:
    status, message, figures = recorded(tmp_path, {"recording": {"references": "0", "sink": "1"}}).check("ids_taken")
    assert (status, message) == ("pass", "The expert ids are those that routers or kernels chose.")
    assert (figures["references"], figures["sink"]) == ("0", "1")


@FORMS
def test_recomputed_layers_and_their_ambiguous_tokens(tmp_path: Path, recorded: Any) -> None:
    one = {"recording": "recomputed", "recomputed_tokens": 6, "ambiguous_tokens": {"1": 1}}
    other = {"recording": {"references": "0", "recomputed": "1"}, "recomputed_tokens": 3, "ambiguous_tokens": {"1": 1}}
    found = recorded(tmp_path, one, other)
    status, message, figures = found.check("ids_taken")
    assert status == "warn"
    outside = f" {ROUTER_OUTSIDE}" if recorded is exported else ""  # a session has no times
    assert message == (
        "The expert ids of layers 0-1 are recomputed from router logits, because the kernel does not show its own; "
        "2 (22 %) of 9 tokens, each layer's added up, are ambiguous: the last chosen expert's score equals the next "
        f"one's or differs by rounding only.{outside}"
    )
    assert figures == {
        "recomputed": "0-1",
        "references": "0",
        "recomputed_tokens": 9,
        "ambiguous_tokens": 2,
        "ambiguous_by_layer": {"1": 2},
    }


@FORMS
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"recording": "references", "recomputed_tokens": 6}, "6 tokens are recomputed, and no layer is"),
        ({"recording": {"recomputed": "0"}}, "recording does not name layer 1"),
        ({"recording": {"recomputed": "0-3"}}, "recording names layers 2-3, which the model has not"),
        ({"recording": {"recomputed": "0-1", "sink": "1"}}, "recording names layer 1 in two ways"),
        ({"recording": {"recomputed": "1-0"}}, "is no range of layers"),
        ({"recording": ["x"]}, "not a word or layers by word"),
        (
            {"recording": "recomputed", "recomputed_tokens": 6, "ambiguous_tokens": {"1": 7}},
            "7 of 6 recomputed tokens are ambiguous",
        ),
        (
            {"recording": "recomputed", "recomputed_tokens": 6, "ambiguous_tokens": {"9": 1}},
            "layer 9 has ambiguous tokens, and not recomputed ids",
        ),
    ],
)
def test_contradictions_are_never_complete(tmp_path: Path, recorded: Any, keys: dict[str, Any], says: str) -> None:
    found = recorded(tmp_path, keys)
    status, message, _ = found.check("ids_taken")
    assert status == "fail"
    assert says in message
    assert found.verdict == "incomplete"


@FORMS
def test_an_unknown_way_and_old_totals_are_said(tmp_path: Path, recorded: Any) -> None:
    status, message, _ = recorded(folder(tmp_path / "way"), {"recording": "magic"}).check("ids_taken")
    assert (status, "does not know: magic" in message) == ("warn", True)
    told = {"recording": "recomputed", "recomputed_tokens": 2}
    status, message, _ = recorded(folder(tmp_path / "old"), told).check("ids_taken")
    assert status == "warn"
    assert "The last moe.meta tells of 2 of the 6 tokens." in message


def test_inspect_and_the_terminal_name_the_ways(tmp_path: Path) -> None:
    exported(tmp_path, {"recording": {"references": "0", "recomputed": "1"}, "recomputed_tokens": 3})
    export = next(tmp_path.rglob("*.sqlite"))
    for command in (["inspect", str(export)], ["analyze", str(export), "-o", str(tmp_path / "out")]):
        printed = " ".join(run(*command).out.split())
        assert "recomputed (layer 1), references (layer 0)" in printed
    (found,) = json.loads(run("inspect", "--json", str(export)).out)["inputs"]
    assert found["contents"]["recording"] == {"recomputed": "1", "references": "0"}
    exported(folder(tmp_path / "sink"), {"recording": "sink"})
    export = next((tmp_path / "sink").rglob("*.sqlite"))
    assert "expert ids sink" in " ".join(run("inspect", str(export)).out.split())


def test_compare_names_runs_that_took_ids_in_different_ways(tmp_path: Path) -> None:
    for name, way in (("a", "references"), ("b", "recomputed")):
        in_session(folder(tmp_path / name), {"recording": way, "recomputed_tokens": 6 * (name == "b")})
        merged = run("merge", str(tmp_path / name / "session"), "-o", str(tmp_path / name / "out"))
        assert merged.code == 0
    printed = " ".join(run("compare", str(tmp_path / "a" / "out"), str(tmp_path / "b" / "out")).out.split())
    assert "The expert ids were taken in different ways: references in A, recomputed in B." in printed


def test_the_report_says_it(tmp_path: Path) -> None:
    told = {"recording": "recomputed", "recomputed_tokens": 12}
    in_session(tmp_path, told)
    assert run("merge", str(tmp_path / "session"), "-o", str(tmp_path / "out")).code == 0
    assert run("report", str(tmp_path / "out")).code == 0
    (page,) = tmp_path.rglob("report.html")
    assert "The expert ids of layers 0-1 are recomputed from router logits" in page.read_text()
    assert "0 of 12 tokens, each layer&#39;s added up, are ambiguous" in page.read_text()


def test_a_trimmed_capture_tells_it_too() -> None:
    keys = {"recording": {"references": "0", "recomputed": "1"}, "recomputed_tokens": 9, "ambiguous_tokens": {"1": 2}}
    scrubbed = json.loads(scrub_text(json.dumps({"schema": 1, "rank": 0, "layers": [], **keys}).encode(), "here"))
    assert {key: scrubbed.get(key) for key in keys} == keys


def told(**raw: Any) -> Meta:
    """moe.meta of two layers with these keys."""
    layers = {number: Layer(number, None, 4, 2, None) for number in (0, 1)}
    return Meta(1, 0, 1, 0, 1, layers, raw)


@pytest.mark.parametrize("text", ["0-", "-1", "x", "1,,2", "99999999999", ""])
def test_damaged_layers_are_refused(text: str) -> None:
    with pytest.raises(NvtxmoeError, match="no layer"):
        recording_by_layer(told(recording={"sink": text}))


@pytest.mark.parametrize("value", [3, ["sink"], {"sink": 3}])
def test_another_recording_is_refused(value: Any) -> None:
    with pytest.raises(NvtxmoeError, match="damaged payload: recording is"):
        recording_by_layer(told(recording=value))


@pytest.mark.parametrize(
    "keys", [{"recomputed_tokens": -1}, {"ambiguous_tokens": [1]}, {"ambiguous_tokens": {"0": 1.5}}]
)
def test_other_totals_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(NvtxmoeError, match="ambiguous_tokens"):
        recomputed_tokens(told(**keys))
