"""A plugin of vLLM in a folder on PYTHONPATH, found through the metadata beside this file.

Launchers such as ``opentelemetry-instrument`` put a sitecustomize of their own before nvtxmoe's and run no other. vLLM
looks for plugins on the whole path and finds this one all the same.
"""

import os
import sys
from pathlib import Path


def register() -> None:
    """Start capture, if NVTXMOE_ENABLE or a settings file asks for it. vLLM calls this in each of its processes."""
    if os.environ.get("NVTXMOE_ENABLE") or os.environ.get("NVTXMOE_CONFIG"):
        make_importable(Path(__file__).resolve().parents[1])
        from nvtxmoe.capture.startup.plugin import register as start  # noqa: PLC0415  only when asked for

        start()


def make_importable(package: Path) -> None:
    """Make the nvtxmoe in ``package`` importable, where none is installed.

    The path stays as it is: other things in that folder (a whole environment, perhaps) are not for this program.
    """
    from importlib.util import find_spec, module_from_spec, spec_from_file_location  # noqa: PLC0415

    if "nvtxmoe" in sys.modules or find_spec("nvtxmoe") is not None:
        return
    spec = spec_from_file_location("nvtxmoe", package / "__init__.py", submodule_search_locations=[str(package)])
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["nvtxmoe"] = module
        spec.loader.exec_module(module)
