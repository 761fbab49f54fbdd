"""Emitters on the nvtx modules of both kinds: the fixed set of messages, and that nothing grows with the steps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks import nvtx_emitter
from nvtxmoe.capture.sinks.nvtx_emitter import WordEmitter, make_emitter
from nvtxmoe.formats import schema, word_payloads
from tests.support.paths import ROOT

BINARY = ROOT / ".cache" / "nvtx-binary"

STEPS = 100_000

#: Emits steps of one layer, and prints how the resident memory grew after the first hundredth.
PROGRAM = """
import resource, sys
import numpy as np
from nvtxmoe.formats import schema
from nvtxmoe.capture.sinks.nvtx_emitter import make_emitter
from nvtxmoe.capture.run_identity import Step

steps, wanted = int(sys.argv[1]), sys.argv[2]
emitter = make_emitter("auto")
assert emitter.encoding == wanted, emitter.encoding
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def step(number):
    emitter.push_step(Step(number, 0, 2, 1, 0, 2).payload())
    emitter.push("moe.layer.0", 0, "layer")
    emitter.push("moe.route", 0, "phase")
    emitter.pop(); emitter.pop(); emitter.pop()
    row = np.array((number, 0, 0, 2, 2, [1, 1, 2, number % 7]), schema.counts_dtype(4))
    emitter.mark(schema.COUNTS, row)
for number in range(steps // 100):
    step(number)
before = rss()
for number in range(steps):
    step(number)
print(rss() - before, emitter.depth())
"""


def grown(wanted: str, *path: Path) -> tuple[int, int]:
    """Bytes by which memory grew, and the depth of ranges at the end."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    command = [sys.executable, "-c", PROGRAM, str(STEPS), wanted]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    bytes_grown, depth = map(int, done.stdout.split())
    return bytes_grown, depth


@pytest.mark.slow
def test_the_word_form_leaks_nothing() -> None:
    assert nvtx_emitter.nvtx_version() < nvtx_emitter.BINARY_SINCE  # what requirements-test.txt pins
    bytes_grown, depth = grown("words")
    assert bytes_grown < 2_000_000  # 20 bytes a step would be seen
    assert depth == 0


@pytest.mark.slow
def test_the_binary_form_on_a_newer_nvtx_leaks_nothing() -> None:
    assert (BINARY / "nvtx").is_dir(), "scripts/setup_env.sh test puts a newer nvtx there"
    bytes_grown, depth = grown("binary", BINARY)
    assert bytes_grown < 2_000_000
    assert depth == 0


def test_the_word_form_on_a_newer_nvtx_without_a_listener() -> None:
    program = PROGRAM.replace('"auto"', '"words"')
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (BINARY, ROOT)))}
    command = [sys.executable, "-c", program, "200", "words"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "0"


@pytest.mark.slow
def test_what_does_leak_would_be_seen() -> None:
    """The measure itself: as many distinct ranges as steps."""
    program = PROGRAM.replace('push("moe.route", 0, "phase")', 'push("moe.route", number, "phase")')
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(STEPS), "words"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) > 4_000_000


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What reaches the nvtx module."""
    out: list[tuple[Any, ...]] = []

    def seen(attributes: Any) -> tuple[Any, ...]:
        return attributes.message.string, attributes.payload

    calls = (
        lambda a: out.append(("push", *seen(a))),
        lambda: out.append(("pop",)),
        lambda a: out.append(("mark", *seen(a))),
    )
    monkeypatch.setattr(nvtx_emitter, "_calls", lambda _: calls)
    return out


def test_words_of_a_step_and_its_counts(emitted: list[tuple[Any, ...]]) -> None:
    emitter = WordEmitter()
    step = Step(7, 1, 3, 2, 3, 0)
    emitter.push_step(step.payload())
    emitter.push("moe.layer.4", 4, "layer")
    assert emitter.depth() == 2
    emitter.pop()
    emitter.pop()
    counts = np.array((7, 4, 1, 3, 2, [1, 2, 3]), schema.counts_dtype(3))
    emitter.mark(schema.COUNTS, counts)
    assert [event for event in emitted if event[0] != "mark"] == [
        ("push", "moe.step", 7), ("push", "moe.layer.4", 4), ("pop",), ("pop",),
    ]  # fmt: skip
    marks = [event[1:] for event in emitted if event[0] == "mark"]
    assert marks == [
        *word_payloads.marks("step", step.payload().tobytes()),
        *word_payloads.marks("counts", counts.tobytes()),
    ]


def test_threads_do_not_share_a_payload() -> None:
    emitter = WordEmitter()
    found: list[Any] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(emitter._reused("moe.w.counts", 1)))
        thread.start()
        thread.join()
    found.append(emitter._reused("moe.w.counts", 2))
    assert found[-1] is emitter._reused("moe.w.counts", 3)
    assert found[-1] is not found[0]
    assert found[0].payload == 1


@pytest.mark.parametrize(("payload", "encoding"), [("auto", "words"), ("words", "words")])
def test_the_form_for_this_nvtx(payload: str, encoding: str) -> None:
    assert make_emitter(payload).encoding == encoding
