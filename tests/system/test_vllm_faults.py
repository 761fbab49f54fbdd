"""Hooks that raise inside a real vLLM: it answers the same, and says so once."""

from __future__ import annotations

import pytest

from tests.support.vllm_runs import RUNS, Runs

RUN, OFF = "faults", "deepseek_v3 off"
marks = pytest.mark.vllm_runs(OFF, RUN)

#: Every hook that this model runs without a GPU; the functions of each are made to raise.
HOOKS = [
    "load", "step", "sample", "idle", "shutdown", "layer", "route", "eplb", "dispatch", "experts", "combine", "shared",
    "collective", "warm_up",
]  # fmt: skip
#: Hooks on what this model does not run; ``tests/with_torch`` has their failures.
OTHERS = ["layer of experts", "monolithic", "send", "sink"]
FAULTS = [f"{hook}.{part}" for hook in HOOKS for part in ("enter", "leave") if (hook, part) != ("shutdown", "leave")]


@marks
def test_these_are_all_hooks(vllm_runs: Runs) -> None:
    said = vllm_runs[RUN].said
    assert sorted(said["hooks"]) == sorted([*HOOKS, *OTHERS])
    unused = [f"{hook}.{part}" for hook in OTHERS for part in ("enter", "leave")]
    assert sorted(said["faults"]) == sorted([*FAULTS, *unused])
    assert {said["faults"][fault]["calls"] for fault in unused} == {0}
    assert RUNS[RUN].family == RUNS[OFF].family


@marks
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_no_answer(vllm_runs: Runs, fault: str) -> None:
    said = vllm_runs[RUN].said["faults"][fault]
    hook = fault.partition(".")[0]
    assert said["calls"] == 1  # after it the hook is off
    assert said["failures"] == {hook: "RuntimeError: injected"}  # and no other hook fell with it
    assert [message.partition(" failed")[0] for message in said["warnings"]] == [f"hook {hook!r}"]
    assert said["tokens"] == said.get("tokens_after", said["tokens"]) == vllm_runs[OFF].tokens
    assert said.get("open_ranges", 0) == 0


@marks
def test_what_follows_a_fault_is_recorded(vllm_runs: Runs) -> None:
    """Once the hooks are whole again, every count is right."""
    done, expected = vllm_runs[RUN], vllm_runs[OFF].expected()
    assert done.tokens == vllm_runs[OFF].tokens
    captured = done.captured()[0]
    # The last answer was given under a broken shutdown hook, the one before under none.
    last = [int(step["step"]) for step in captured.steps][-2 * len(expected) :]
    for place, number in enumerate(last):
        step = expected[place % len(expected)]
        assert {layer: row["counts"].tolist() for (n, layer), row in captured.counts.items() if n == number} == {
            layer: cell.counts for layer, cell in step.cells.items()
        }
    assert captured.end is not None
    assert captured.end["failures"] == {}
    assert captured.end["lost"]["steps before the model was known"] == 2 * len(expected)
