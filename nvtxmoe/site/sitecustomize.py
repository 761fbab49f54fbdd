"""The way in by PYTHONPATH: Python imports this at every start when this folder is on the path.

It only arranges to be told when vLLM is imported. Another sitecustomize that stood behind it on the path is run first.
"""

import os
import sys
from pathlib import Path


def _run_next_sitecustomize(site_folder: str) -> None:
    """Run the sitecustomize that this one hides, as if it had been found."""
    from importlib.machinery import PathFinder  # noqa: PLC0415
    from importlib.util import module_from_spec  # noqa: PLC0415

    # Copies of this file may stand on the path: each is run once.
    done = sys.__dict__.setdefault("_nvtxmoe_sites", set())
    done.add(site_folder)
    behind = [entry for entry in sys.path if os.path.realpath(entry or ".") not in done]
    spec = PathFinder.find_spec("sitecustomize", behind)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _watch(site_folder: str) -> None:
    """Start capture when vLLM is imported, not before: pip and the like are not to notice."""
    from nvtxmoe_by_path import make_importable  # type: ignore[import-not-found]  # noqa: PLC0415  beside this file

    make_importable(Path(site_folder).parent)
    from nvtxmoe.capture.startup.import_watch import watch  # noqa: PLC0415
    from nvtxmoe.capture.startup.plugin import register  # noqa: PLC0415

    watch("vllm", register)


_site_folder = os.path.realpath(Path(__file__).parent)
try:
    _run_next_sitecustomize(_site_folder)
finally:
    if os.environ.get("NVTXMOE_ENABLE") or os.environ.get("NVTXMOE_CONFIG"):
        try:
            _watch(_site_folder)
        except Exception as error:  # the interpreter's start is not ours to break
            sys.stderr.write(f"nvtxmoe: nothing is recorded in this process: {error}\n")
