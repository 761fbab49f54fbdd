"""Sessions of direct mode: one folder for all processes of a run, merged when the first of them ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.startup.settings import SESSION_DIR
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.extras import TABLES
from nvtxmoe.formats.journal import RANKS, SUFFIX
from nvtxmoe.formats.window_socket import CONTROL, WINDOWS
from nvtxmoe.private_files import FOLDER_MODE, make_base

REMEDY = "If the server was stopped with Ctrl-C, start it with --shutdown-timeout 60, so that its engine can write"
#: Runs the command without importing from the working directory; ``python -P`` needs Python 3.11.
COMMAND = "import sys; sys.path[:] = filter(None, sys.path); from nvtxmoe.cli import main; main()"
#: Folder of the standard set beside the journals.
RESULTS = "moe_expert_tracking"
#: What the merge imports that vLLM's Python may lack.
NEEDED = ("click", "rich", *TABLES)


def session_dir(base: Path) -> Path:
    """The run's folder: the one that the parent process chose, else a new name, handed to the children.

    The process that chooses it merges the journals at its exit, and takes the folder away where there are none.

    Raises:
        NvtxmoeError: the folder can't be made, or its parent belongs to another user.
    """
    chosen = os.environ.get(SESSION_DIR)
    if chosen:
        return Path(chosen)
    name = time.strftime("session_%Y%m%d_%H%M%S")
    base = base.absolute()  # children may stand elsewhere
    try:
        make_base(base)
        folder = _new_folder(base, name)
    except OSError as error:
        what = f"no folder can be made in it ({error.strerror or error})"
        raise NvtxmoeError(what, where=base, remedy="Name another folder with NVTXMOE_OUTPUT_DIR") from error
    os.environ[SESSION_DIR] = str(folder)
    # Not atexit: that would come before vLLM ends its engine, which does it in a finalizer made later than this one.
    weakref.finalize(sys.modules[__name__], merge_at_exit, folder, os.getpid())
    return folder


def _new_folder(base: Path, name: str) -> Path:
    folder, number = base / name, 2
    while True:
        try:
            folder.mkdir(mode=FOLDER_MODE)  # two runs may begin in one second
        except FileExistsError:
            folder, number = base / f"{name}_{number}", number + 1
        else:
            return folder


def merge_at_exit(folder: Path, pid: int) -> None:
    """Merge what the processes of the run have written, in the process that began it.

    Windows that ``nvtxmoe window stop`` has merged already are left as they are.
    """
    if os.getpid() != pid:
        return
    shutil.rmtree(folder / CONTROL, ignore_errors=True)  # sockets of processes that were killed
    windows = sorted((folder / WINDOWS).glob("*"), key=lambda path: (len(path.name), path.name))
    open_windows = [window for window in windows if not (window / RESULTS).exists()]
    journals = [session for session in (folder, *open_windows) if any((session / RANKS).glob(f"*{SUFFIX}"))]
    for journal in journals:
        _merge(journal)
    if not windows and not journals:
        _say_nothing_is_left(folder)


def _say_nothing_is_left(folder: Path) -> None:
    """Remove the folder of a run that recorded nothing; say so if its journals were removed."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        print(f"nvtxmoe: nothing is merged: {folder} was removed during the run", file=sys.stderr)  # noqa: T201
    except OSError:  # not empty
        if (folder / RANKS).is_dir():
            print(f"nvtxmoe: nothing is merged: no journal is left in {folder / RANKS}", file=sys.stderr)  # noqa: T201


def _merge(folder: Path) -> None:
    """Merge the journals of a folder, in a process of its own."""
    if missing_modules := [name for name in NEEDED if find_spec(name) is None]:
        where = f"{', '.join(missing_modules)} not installed here; run where nvtxmoe is: nvtxmoe merge {folder}"
        print(f"nvtxmoe: {folder} is not merged: {where}", file=sys.stderr)  # noqa: T201
        return
    command = [sys.executable, "-c", COMMAND, "merge", "--json", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key not in (SESSION_DIR, "NVTXMOE_ENABLE")}
    package = Path(__file__).parents[3]
    package_paths = (str(package), str(package / "analysis"))  # the second in a checkout only
    # An empty entry would be the working directory.
    inherited = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (*inherited, *package_paths)))
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    try:
        verdict = verdict_line(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        logger().warning("the journals in %s are not merged (%s); run: nvtxmoe merge %s", folder, last, folder)
    else:
        print(f"nvtxmoe: {verdict}", file=sys.stderr)  # noqa: T201


def verdict_line(overview: Mapping[str, Any]) -> str:
    """Return the last line of a run: what was counted, whether that is all, where it is, and what to do.

    Parameters:
        overview: what ``nvtxmoe merge --json`` prints.
    """
    counted = f"{overview['steps_captured']:,} steps, {overview['tokens']:,} tokens in {overview['folder']}"
    if overview["verdict"] == "complete":
        return f"capture complete: {counted}"
    reasons = overview["reasons"]
    more = f" (and {len(reasons) - 1} more in moe_capture_validation.json)" if len(reasons) > 1 else ""
    return f"capture INCOMPLETE: {counted}. {reasons[0].removesuffix('.')}{more}. {REMEDY}"
