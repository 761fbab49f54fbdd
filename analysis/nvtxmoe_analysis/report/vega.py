"""The script that draws charts in a page. Making it takes three seconds, so it is kept in the user's cache."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vl_convert

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import refuse_special
from nvtxmoe_analysis.core.cache import cache_folder
from nvtxmoe_analysis.core.files import whole_file


@cache
def bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that defines no global names."""
    return f"(() => {{\n{_stored_script() or _made()}\n}})();"


def _stored_script() -> str | None:
    """The script as an earlier process made it with this version of vl-convert; None where there is none, whole."""
    with suppress(OSError, ValueError, RuntimeError, NvtxmoeError):
        refuse_special(_path())
        digest, _, script = _path().read_bytes().decode().partition("\n")
        if digest == _digest(script):
            return script
    return None


def _made() -> str:
    """Make the script, and keep it where that is possible."""
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # a snippet beside them is optional
    with suppress(OSError, NvtxmoeError, RuntimeError):  # RuntimeError: there is no home folder
        _path().parent.mkdir(parents=True, exist_ok=True)
        with whole_file(_path()) as file:
            file.write_bytes(f"{_digest(script)}\n{script}".encode())
    return script


def _path() -> Path:
    return cache_folder() / f"vega-{version('vl-convert-python')}.js"


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()
