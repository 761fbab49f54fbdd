"""Where files are kept that would cost time to make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of nvtxmoe in the user's cache: below $XDG_CACHE_HOME, else ~/.cache. It need not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "nvtxmoe"
