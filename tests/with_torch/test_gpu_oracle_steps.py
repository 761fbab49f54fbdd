"""What the oracle of the GPU checks notes of steps: warm-up, idle batches, micro-batches, sizes of groups."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.gpu import vllm_state
from scripts.gpu.oracle import Oracle

TOP_K = 2


class Worker:
    """Runs a step in its warm-up, as model runner V2 does."""

    def load_model(self) -> None: ...

    def execute_model(self, scheduled: Any) -> None: ...

    def execute_dummy_batch(self) -> None: ...

    def compile_or_warm_up_model(self) -> None:
        self.execute_model(SimpleNamespace(total_num_scheduled_tokens=3))


def followed() -> tuple[Oracle, Worker]:
    oracle = Oracle("copies", most_tokens=8)
    oracle.recorded.layers = [0]
    for name, dtype in (("ids", "int32"), ("physical", "int32"), ("weights", "float32")):
        oracle._buffers[name][0] = oracle._empty(TOP_K, dtype)
    worker = type("Copy", (Worker,), dict(vars(Worker)))
    oracle.wrap(worker)
    return oracle, worker()


def step(worker: Worker, tokens: int) -> None:
    worker.execute_model(SimpleNamespace(total_num_scheduled_tokens=tokens))


def test_steps_of_warm_ups_are_left_out_and_earlier_steps_stay() -> None:
    oracle, worker = followed()
    worker.compile_or_warm_up_model()
    step(worker, 2)
    worker.compile_or_warm_up_model()  # elastic expert parallelism warms up again
    step(worker, 0)
    step(worker, 4)
    assert [len(ids) for ids in oracle.recorded.ids] == [2, 4]


def test_an_idle_batch_takes_a_number_in_every_list_that_goes_by_number() -> None:
    oracle, worker = followed()
    step(worker, 2)
    worker.execute_dummy_batch()
    step(worker, 1)
    recorded = oracle.recorded
    for lists in (recorded.ids, recorded.physical, recorded.weights):
        assert [len(rows) for rows in lists] == [2, 0, 1]
    assert (recorded.idle, len(recorded.replays), len(recorded.sizes)) == (1, 2, 3)


def test_each_step_has_the_sizes_of_the_groups_that_it_ran_in(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, worker = followed()
    state = SimpleNamespace(_DP=SimpleNamespace(world_size=2), _EP=SimpleNamespace(world_size=2))
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", state)
    step(worker, 1)
    state._DP = state._EP = SimpleNamespace(world_size=1)
    worker.execute_dummy_batch()
    state._EP = None
    step(worker, 1)
    assert oracle.recorded.sizes == [(2, 2), (1, 1), (1, 1)]


class Slice:
    def __init__(self, start: int, stop: int) -> None:
        self.token_slice = slice(start, stop)


def test_micro_batches_of_both_model_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(ubatch_slices=None)

    class UBatchWrapper:
        def __call__(self) -> str:
            return "output"

    class UBatchRunner:
        def prepare(self) -> Any:
            return SimpleNamespace(slices=[Slice(0, 3), Slice(3, 6)])

    modules: dict[str, dict[str, Any]] = {
        "vllm.forward_context": {"get_forward_context": lambda: context},
        "vllm.v1.worker.gpu.ubatch_utils": {"UBatchRunner": UBatchRunner},
        "vllm.v1.worker.gpu_ubatch_wrapper": {"UBatchWrapper": UBatchWrapper},
    }
    for name, members in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts)):
            package = ModuleType(".".join(parts[:end]))
            package.__path__ = []
            monkeypatch.setitem(sys.modules, package.__name__, package)
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    told: list[list[int]] = []
    vllm_state.watch_micro_batches(told.append)
    assert UBatchWrapper()() == "output"
    context.ubatch_slices = [Slice(0, 4), Slice(4, 8)]
    UBatchWrapper()()
    assert len(UBatchRunner().prepare().slices) == 2
    assert told == [[], [0, 4], [0, 3]]


def test_a_step_has_its_own_micro_batches() -> None:
    oracle, worker = followed()
    oracle._divided([0, 1])  # left over from a dummy batch
    step(worker, 2)
    assert oracle.recorded.micro_batches == [[]]
    assert torch.equal(oracle._buffers["ids"][0], torch.zeros(8, TOP_K, dtype=torch.int32))
