"""The golden run of elastic expert parallelism: a session of real journals, and per worker what vLLM routed.

    python -m tests.support.elastic_golden OUT

packs OUT of ``scripts/gpu/elastic_ep.py`` into the golden archive.
"""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from scripts.gpu.elastic_compare import first_of_another_size
from scripts.gpu.oracle import Steps
from tests.support.paths import GOLDEN

ARCHIVE = GOLDEN / "h200-elastic-ep-2-3-2.tar.xz"


def pack(out: Path, archive: Path = ARCHIVE) -> None:
    """Write the journals of a run and its oracles, which after a change of ranks keep the numbers of tokens alone."""
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for journal in sorted(out.glob("session/ranks/*.journal")):
            _add(packed, f"session/ranks/{journal.name}", journal.read_bytes())
        for oracle in sorted(out.glob("*.oracle")):
            _add(packed, f"{oracle.stem}.npz", reduced(pickle.loads(oracle.read_bytes())))


def _add(packed: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    packed.addfile(member, io.BytesIO(content))


def reduced(steps: Steps) -> bytes:
    """Return the arrays of an npz: experts as uint8, [tokens, layers, top_k], up to the first change of ranks."""
    first = first_of_another_size(steps)
    arrays: dict[str, Any] = {
        "layers": np.array(steps.layers),
        "tokens": np.array([len(ids) for ids in steps.ids]),
        "sizes": np.array(steps.sizes),
        "replays": np.array(steps.replays),
        "idle": np.array(steps.idle),
    }
    for name, kind in (("ids", "u1"), ("physical", "u1"), ("weights", "f4")):
        arrays[name] = np.concatenate([step for step in getattr(steps, name)[:first] if len(step)]).astype(kind)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def steps_of(file: Path) -> Steps:
    """Return an oracle from its npz; steps after the change have their tokens, and zeros for experts and weights."""
    with np.load(file) as arrays:
        return Steps(
            layers=arrays["layers"].tolist(),
            ids=_each_step(arrays, "ids", np.int64),
            physical=_each_step(arrays, "physical", np.int64),
            weights=_each_step(arrays, "weights", np.float32),
            sizes=[(int(data), int(expert)) for data, expert in arrays["sizes"]],
            replays=arrays["replays"].tolist(),
            micro_batches=[[] for _ in arrays["replays"]],
            idle=int(arrays["idle"]),
        )


def _each_step(arrays: Any, name: str, kind: type[np.generic]) -> list[np.ndarray[Any, Any]]:
    known = arrays[name].astype(kind)
    ends = np.cumsum(arrays["tokens"])
    rows = np.zeros((int(ends[-1]), *known.shape[1:]), dtype=kind)
    rows[: len(known)] = known
    return np.split(rows, ends[:-1])


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
