"""Optional dependencies: which extra of nvtxmoe brings a module that is not installed."""

from __future__ import annotations

import sys
from importlib import import_module

from nvtxmoe.errors import NvtxmoeError

#: Modules that tables are computed and written with.
TABLES = ("connectorx", "polars", "pyarrow", "sqlite_utils")
#: Top-level modules by extra, see ``optional-dependencies`` in pyproject.toml.
EXTRAS = {
    "analysis": (*TABLES, "altair", "jinja2", "vl_convert"),
    "load": ("aiohttp",),
    "metrics": ("prometheus_client",),
    "mcp": ("mcp",),
}


def missing(error: ModuleNotFoundError) -> NvtxmoeError | None:
    """Return the error to show if a module of an extra is not installed; None for any other module."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return NvtxmoeError(
                f"{module} is not installed: nvtxmoe is here without its extra [{extra}]",
                remedy=f"In a clone of nvtxmoe, run {sys.executable} -m pip install -e '.[{extra}]'",
            )
    return None


def require(module: str) -> None:
    """Import a module of an extra.

    Raises:
        NvtxmoeError: it is not installed.
    """
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        extra = missing(error)
        if extra is None:
            raise
        raise extra from error
