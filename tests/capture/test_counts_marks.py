"""What the NVTX sink emits for the counts of a step: one mark of all layers, or words of each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks import nvtx_emitter
from nvtxmoe.capture.sinks.nvtx import NvtxSink
from nvtxmoe.capture.sinks.nvtx_emitter import BinaryEmitter, WordEmitter
from nvtxmoe.formats import schema, word_payloads
from nvtxmoe.formats.checksum import broken, sealed_dtype
from tests.support.paths import ROOT

BINARY = ROOT / ".cache" / "nvtx-binary"


class Attributes:
    """Stands for nvtx's EventAttributes, which copies an array when it is set."""

    made = payloads = 0

    def __init__(self, message: str, payload: Any) -> None:
        Attributes.made += 1
        self.message, self.payload = message, payload

    def __setattr__(self, name: str, value: Any) -> None:
        Attributes.payloads += name == "payload"
        super().__setattr__(name, value)


class Domain:
    """Stands for nvtx's Domain where a tool listens: remembers what is emitted."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Any]] = []

    def get_event_attributes(self, message: str, category: str, payload: Any) -> Attributes:
        """A new object."""
        return Attributes(message, payload)

    @property
    def set_payloads(self) -> int:
        """How often a payload was set."""
        return Attributes.payloads

    def push_range(self, attributes: Attributes) -> None:
        """As a mark."""
        self.mark(attributes)

    def mark(self, attributes: Attributes) -> None:
        """Read the attributes now, as nvtx does."""
        self.marks.append((attributes.message, attributes.payload.copy()))


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Domain:
    domain = Domain()
    Attributes.payloads = 0
    monkeypatch.setattr("nvtx.get_domain", lambda _: domain)
    return domain


def rows_of(layers: int, experts: int, step: int = 0) -> Any:
    rows = np.zeros(layers, schema.counts_dtype(experts))
    rows["step"], rows["layer"] = step, np.arange(layers)
    rows["counts"] = np.arange(layers * experts).reshape(layers, experts)
    return rows


def test_the_layers_of_a_step_are_one_mark(domain: Domain) -> None:
    sink = NvtxSink(BinaryEmitter())
    rows = rows_of(48, 16)
    for step in range(3):
        rows["step"] = step  # the recorder changes its rows
        sink.payloads(schema.COUNTS, rows)
    assert [name for name, _ in domain.marks] == [schema.COUNTS] * 3
    for step, (_, sent) in enumerate(domain.marks):
        assert np.array_equal(sent, rows_of(48, 16, step))


def sealed_rows(layers: int, experts: int) -> np.ndarray[Any, Any]:
    plain = rows_of(layers, experts)
    rows = np.zeros(layers, sealed_dtype(experts))
    for name in plain.dtype.names or ():
        rows[name] = plain[name]
    return rows


@pytest.mark.parametrize("most_rows", [10, 4, 1])
def test_each_mark_has_its_checksum(domain: Domain, monkeypatch: pytest.MonkeyPatch, most_rows: int) -> None:
    rows = sealed_rows(10, 16)
    monkeypatch.setattr(schema, "MOST_PAYLOAD_BYTES", most_rows * rows.dtype.itemsize)
    for step in range(2):
        rows["step"] = step
        NvtxSink(BinaryEmitter()).payloads(schema.COUNTS, rows)
    sent = [mark for _, mark in domain.marks]
    assert sum(map(len, sent)) == 20
    for mark in sent:
        assert mark["checksum"].any()
        assert broken(mark[None]).tolist() == [False]  # type: ignore[union-attr]
    assert len({int(mark["checksum"][0]) for mark in sent}) == len(sent)


def test_the_word_form_has_no_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[tuple[str, int]] = []
    calls = (lambda _: None, lambda: None, lambda a: words.append((a.message.string, a.payload)))
    monkeypatch.setattr(nvtx_emitter, "_calls", lambda _: calls)
    NvtxSink(WordEmitter()).payloads(schema.COUNTS, sealed_rows(3, 5))
    assert words == [word for row in rows_of(3, 5) for word in word_payloads.marks("counts", row.tobytes())]


def test_a_step_makes_no_new_attributes(domain: Domain) -> None:
    """nvtx takes most of a mark's time to make them."""
    sink = NvtxSink(BinaryEmitter())
    sink.payloads(schema.COUNTS, rows_of(4, 16))
    Attributes.made = 0
    for _ in range(5):
        sink.payloads(schema.COUNTS, rows_of(4, 16))
    assert Attributes.made == 0
    assert len(domain.marks) == 6


def test_a_step_is_set_anew_where_nvtx_would_have_copied_it(domain: Domain) -> None:
    """The stand-in's attributes do not hold the struct's address: what they hold may be a copy."""
    sink = NvtxSink(BinaryEmitter())
    seen: list[int] = []
    for number in range(3):
        sink.step_begins(Step(number, 0, 1, 1, 0, 1))
        seen.append(domain.set_payloads)
    assert seen == [1, 2, 3]
    assert [int(payload["step"]) for _, payload in domain.marks] == [0, 1, 2]


def test_arrays_that_are_too_large_are_split(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(10, 16)
    monkeypatch.setattr(schema, "MOST_PAYLOAD_BYTES", 4 * rows.dtype.itemsize + 3)
    NvtxSink(BinaryEmitter()).payloads(schema.COUNTS, rows)
    assert [len(sent) for _, sent in domain.marks] == [4, 4, 2]
    assert np.array_equal(np.concatenate([sent for _, sent in domain.marks]), rows)
    monkeypatch.setattr(schema, "MOST_PAYLOAD_BYTES", 1)  # one layer alone is more
    domain.marks.clear()
    NvtxSink(BinaryEmitter()).payloads(schema.COUNTS, rows)
    assert [len(sent) for _, sent in domain.marks] == [1] * 10


def test_no_layer_is_no_mark(domain: Domain) -> None:
    NvtxSink(BinaryEmitter()).payloads(schema.COUNTS, rows_of(0, 16))
    assert domain.marks == []


def test_the_word_form_has_words_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[tuple[str, int]] = []
    calls = (lambda _: None, lambda: None, lambda a: words.append((a.message.string, a.payload)))
    monkeypatch.setattr(nvtx_emitter, "_calls", lambda _: calls)
    rows = rows_of(3, 5)
    NvtxSink(WordEmitter()).payloads(schema.COUNTS, rows)
    assert words == [word for row in rows for word in word_payloads.marks("counts", row.tobytes())]


#: With a real nvtx and no tool: a domain that believes in one, so that payloads are set as under nsys.
PROGRAM = """
import resource, sys
import numpy as np
import nvtx
from nvtx._lib import lib
from nvtxmoe.capture.sinks import nvtx_emitter
from nvtxmoe.capture.sinks.nvtx import NvtxSink
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.formats import schema
from nvtxmoe.formats.checksum import sealed_dtype

domain = object.__new__(lib.Domain)
domain.handle = lib.DomainHandle("nvtxmoe")
lib.Domain.__init__(domain, "nvtxmoe")
nvtx_emitter.nvtx.get_domain = lambda _: domain
sink = NvtxSink(nvtx_emitter.make_emitter("auto"))
assert sink.encoding == "binary", sink.encoding
rows = np.zeros(48, sealed_dtype(128))
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def steps(number):
    for step in range(number):
        sink.step_begins(Step(step, 0, 2, 1, 0, 2))
        sink.step_ends()
        rows["step"] = step
        sink.payloads(schema.COUNTS, rows)
steps(200)
before = rss()
steps(2000)
print(rss() - before)
kept = sink.emitter._reused(schema.COUNTS, rows, "counts")
print(np.array_equal(kept.payload, rows))
print(sink.emitter._local.in_place[0] is not None, nvtx_emitter._reads_in_place(kept, rows))
"""


def test_a_real_nvtx_takes_the_array_and_keeps_nothing(tmp_path: Path) -> None:
    assert (BINARY / "nvtx").is_dir(), "scripts/setup_env.sh test puts a newer nvtx there"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (BINARY, ROOT)))}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown_bytes, equal, step_in_place, array_in_place = done.stdout.split()
    assert int(grown_bytes) < 4_000_000  # 26 KB per step would be 52 MB
    assert equal == "True"
    assert (step_in_place, array_in_place) == ("True", "False")  # nvtx copies arrays, and points to single structs
