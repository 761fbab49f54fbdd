"""Windows of a real vLLM server with two tensor-parallel workers, opened and closed by the command."""

from __future__ import annotations

import csv
import json
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.make_tiny_model import write_model
from tests.support.cli import run
from tests.support.prometheus import free_port
from tests.system.test_live_server import PATIENCE_S, complete, serving, wait_until_healthy

# One vLLM at a time: waiting workers keep a core busy.
pytestmark = pytest.mark.xdist_group("vllm")

LAYERS, EXPERTS, TOP_K = 3, 16, 4
#: Lengths of prompts and answers, one request after the other: before, in and after windows.
REQUESTS = ((20, 7), (9, 12))
OTHERS = ((31, 5),)


@dataclass(frozen=True)
class Served:
    """What came of the run.

    Attributes:
        answers: tokens of the answers to REQUESTS, before the first window and in each of them.
        ended: what ``nvtxmoe window stop --json`` printed, by window.
    """

    answers: Sequence[list[list[int]]]
    ended: Sequence[dict[str, Any]]
    session: Path
    stderr: str


def window(action: str, session: Path) -> dict[str, Any]:
    done = run("window", action, session, "--json", "--timeout", 60)
    assert done.code == 0, done.err
    found: dict[str, Any] = done.json
    return found


@pytest.fixture(scope="module")
def served(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Two windows are opened and closed; the server ends while a third one is open."""
    folder = tmp_path_factory.mktemp("windows")
    model = write_model(folder / "model", "qwen3_moe", layers=LAYERS, experts=EXPERTS, top_k=TOP_K)
    port = free_port()

    def answers(requests: Sequence[tuple[int, int]]) -> list[list[int]]:
        return [complete(port, length, most) for length, most in requests]

    with serving(vllm_python, model, folder, port, {"NVTXMOE_WINDOW": "closed"}) as process:
        wait_until_healthy(process, port, folder)
        (session,) = (folder / "sessions").iterdir()
        found, ended = [answers(REQUESTS)], []
        for _ in range(2):
            window("start", session)
            found.append(answers(REQUESTS))
            ended.append(window("stop", session))
            answers(OTHERS)
        window("start", session)
        answers(OTHERS)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    return Served(found, ended, session, (folder / "stderr.txt").read_text())


def counts(session: Path, number: int) -> dict[tuple[int, int], int]:
    """Activations of a window by (layer, expert)."""
    folder = session / "windows" / str(number) / "moe_expert_tracking"
    with (folder / "moe_expert_activations.csv").open() as file:
        return {
            (int(row["layer_idx"]), int(row["expert_id"])): int(row["activation_count"]) for row in csv.DictReader(file)
        }


def by_layer(found: dict[tuple[int, int], int]) -> Counter[int]:
    sums: Counter[int] = Counter()
    for (layer, _), number in found.items():
        sums[layer] += number
    return sums


def tokens_of(requests: Sequence[tuple[int, int]]) -> int:
    return sum(length + most - 1 for length, most in requests)


def test_a_window_s_standard_set_is_what_was_sent_in_it(served: Served) -> None:
    """Each token once, of two workers, and nothing of the requests before and after."""
    for number, ended in enumerate(served.ended, 1):
        assert by_layer(counts(served.session, number)) == dict.fromkeys(range(LAYERS), TOP_K * tokens_of(REQUESTS))
        assert ended["tokens"] == ended["window"]["tokens"] == tokens_of(REQUESTS)
        assert (ended["window"]["number"], ended["window"]["ranks"], ended["silent"]) == (number, [0, 1], {})
    assert counts(served.session, 1) == counts(served.session, 2)


def test_windows_are_complete(served: Served) -> None:
    for number, ended in enumerate(served.ended, 1):
        assert (ended["verdict"], ended["reasons"]) == ("complete", [])
        folder = served.session / "windows" / str(number) / "moe_expert_tracking"
        checks = {
            check["name"]: check for check in json.loads((folder / "moe_capture_validation.json").read_text())["checks"]
        }
        bounds = [[ended["window"]["first_step"], ended["window"]["last_step"]]]
        assert checks["steps_consecutive"]["figures"]["windows"] == bounds
        assert checks["ranks_in_step"]["status"] == checks["journals_agree"]["status"] == "pass"
    first, second = (ended["window"] for ended in served.ended)
    assert first["first_step"] > 0
    assert second["first_step"] > first["last_step"] + 1


def test_a_window_that_is_open_at_the_end_ends_with_the_server(served: Served) -> None:
    assert by_layer(counts(served.session, 3)) == dict.fromkeys(range(LAYERS), TOP_K * tokens_of(OTHERS))
    assert f"tokens in {served.session / 'windows' / '3'}" in served.stderr
    assert "capture complete: " in served.stderr
    assert not (served.session / "control").exists()


def test_answers_are_the_same_in_and_out_of_windows(served: Served) -> None:
    outside, *inside = served.answers
    assert inside == [outside, outside]
    assert [len(tokens) for tokens in outside] == [most for _, most in REQUESTS]


def test_nothing_went_wrong(served: Served) -> None:
    assert "nvtxmoe[" not in served.stderr
    assert f"nvtxmoe: windows are opened and closed with: nvtxmoe window start {served.session}" in served.stderr
