"""Calls of ``nvtxmoe window`` in tests, what came of them, and plain clients of a rank's socket."""

from __future__ import annotations

import csv
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.formats.window_socket import Control
from tests.support.cli import run
from tests.support.window_engine import EXPERTS, LAYERS, Rank


def ranks_of(folder: Path, number: int = 2, **more: Any) -> list[Rank]:
    """The ranks of an engine."""
    return [Rank(folder, rank, number, **more) for rank in range(number)]


def window(action: str, session: Path, *more: str, status: int = 0) -> dict[str, Any]:
    """What the command prints as JSON."""
    done = run("window", action, str(session), "--json", *more)
    assert done.code == status, done.out + done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def counts_of(folder: Path) -> np.ndarray[Any, Any]:
    """moe_expert_activations: [layers, experts]."""
    counts = np.zeros((LAYERS, EXPERTS), np.int64)
    with (folder / "moe_expert_tracking" / "moe_expert_activations.csv").open() as file:
        for row in csv.DictReader(file):
            counts[int(row["layer_idx"]), int(row["expert_id"])] += int(row["activation_count"])
    return counts


def validation_of(folder: Path) -> dict[str, Any]:
    """moe_capture_validation.json."""
    found: dict[str, Any] = json.loads((folder / "moe_expert_tracking" / "moe_capture_validation.json").read_text())
    return found


def journal_of(rank: Rank) -> JournalSink:
    """The journal of the window that is open."""
    assert rank.windows.current is not None
    (journal,) = rank.windows.current.sinks
    assert isinstance(journal, JournalSink)
    return journal


def counts_in_merge(folder: Path) -> list[list[int]]:
    """Counts after a merge by hand."""
    assert run("merge", str(folder), "--strict").code == 0
    counts: list[list[int]] = counts_of(folder).tolist()
    return counts


def connected(control: Control, rank: Rank) -> socket.socket:
    """A client's connection."""
    assert rank.socket is not None
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(control.address(rank.socket.path.name))
    return client
