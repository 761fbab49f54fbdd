"""Makes every hook of nvtxmoe raise, one after another, while a model answers on a real vLLM in this process.

    python tests/programs/run_vllm_faults.py SPEC.json OUT

SPEC is that of run_vllm.py. OUT.json gets, for every hook and each of its functions, how often it was called, the
warnings, and what the model answered meanwhile.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from run_vllm import ENVIRONMENT, generate, make_llm  # type: ignore[import-not-found]


class Heard(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.messages.append(record.getMessage())


@contextmanager
def broken(hook: Any, part: str, said: dict[str, Any]) -> Iterator[None]:
    """Within, one of the hook's functions raises. ``said`` gets how often it was called, what was warned of, and the
    hooks that are off at the end; they are switched on again.
    """
    from nvtxmoe.capture.hooks import REGISTRY, failures  # noqa: PLC0415  after vLLM was imported

    original, heard = getattr(hook, part), Heard()
    said["calls"] = 0

    def fault(*_: Any, **__: Any) -> None:
        said["calls"] += 1
        raise RuntimeError("injected")

    logging.getLogger("nvtxmoe").addHandler(heard)
    setattr(hook, part, fault)
    try:
        yield
    finally:
        setattr(hook, part, original)
        logging.getLogger("nvtxmoe").removeHandler(heard)
        said |= {"warnings": heard.messages, "failures": failures()}
        for one in REGISTRY.values():
            one.failure = None


def reduce_alone() -> None:
    """Call the all-reduce of the group of one, as vLLM does where it has ranks to sum."""
    import torch  # noqa: PLC0415
    from vllm.distributed.parallel_state import get_tp_group  # noqa: PLC0415

    group = get_tp_group()
    before, group.device_communicator = group.device_communicator, SimpleNamespace(all_reduce=lambda tensor: tensor)
    try:
        assert group._all_reduce_out_place(torch.ones(2)).tolist() == [1.0, 1.0]
    finally:
        group.device_communicator = before


def faults_at_load(spec: dict[str, Any], hook: Any, said: dict[str, Any]) -> None:
    """An engine whose start met a fault answers, unrecorded."""
    for part in ("enter", "leave"):
        one = said.setdefault(f"load.{part}", {})
        with broken(hook, part, one):
            llm = make_llm(spec)
            one["tokens"] = generate(llm, spec)
        del llm
        gc.collect()  # two engines in one process share torch's groups: the first has to be gone


def main(spec_path: str, out: str) -> None:
    """Run one spec."""
    spec = json.loads(Path(spec_path).read_text())
    os.environ.update(ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    from vllm.plugins import load_general_plugins  # noqa: PLC0415

    load_general_plugins()  # nvtxmoe, as an engine does
    import vllm.v1.worker.gpu_worker  # noqa: F401, PLC0415  hooked when it is imported

    from nvtxmoe.capture.hooks import REGISTRY  # noqa: PLC0415

    said: dict[str, Any] = {}
    faults_at_load(spec, REGISTRY["load"], said)
    engine = [make_llm(spec)]
    others: dict[str, Callable[[], Any]] = {
        "collective": reduce_alone,
        "idle": lambda: engine[0].collective_rpc("execute_dummy_batch"),
        "warm_up": lambda: engine[0].collective_rpc("compile_or_warm_up_model"),
    }
    for name, hook in REGISTRY.items():
        for part in ("enter", "leave") if name not in ("load", "shutdown") else ():
            one = said.setdefault(f"{name}.{part}", {})
            depth = hook.depth()
            with broken(hook, part, one):
                others.get(name, lambda: None)()
                one["tokens"] = generate(engine[0], spec)
            one |= {"tokens_after": generate(engine[0], spec), "open_ranges": hook.depth() - depth}
    clean = generate(engine[0], spec)
    one = said.setdefault("shutdown.enter", {})
    with broken(REGISTRY["shutdown"], "enter", one):
        one["tokens"] = generate(engine[0], spec)
        engine.clear()
        gc.collect()
    Path(out + ".json").write_text(json.dumps({"tokens": clean, "hooks": list(REGISTRY), "faults": said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
