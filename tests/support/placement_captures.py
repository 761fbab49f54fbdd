"""Results of captures on two H200s with expert parallelism, packed under tests/placement/captures."""

from __future__ import annotations

import tarfile
from pathlib import Path

CAPTURES = Path(__file__).parents[1] / "placement" / "captures"
#: The captures of one day: one model, three gates.
CASES = ("skewed", "even", "tokens")


def unpacked(name: str, folder: Path) -> Path:
    """Unpack NAME.tar.xz into a new folder FOLDER/NAME and return it."""
    out = folder / name
    with tarfile.open(CAPTURES / f"{name}.tar.xz") as archive:
        archive.extractall(out, filter="data")
    return out
