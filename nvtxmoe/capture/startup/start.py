"""Starting capture in a process: settings, the watch for vLLM's worker, and the hooks once it is there."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from multiprocessing import util
from typing import TYPE_CHECKING

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.startup import import_watch
from nvtxmoe.capture.startup import settings as config
from nvtxmoe.capture.startup.settings import ENABLE, Settings
from nvtxmoe.errors import NvtxmoeError

if TYPE_CHECKING:
    from nvtxmoe.capture.sinks import Sink
    from nvtxmoe.capture.vllm.layer_hooks import Capture

#: The worker's class is the last thing that the hooks need, in every process that runs a model.
WORKER = "vllm.v1.worker.gpu_worker"
#: Set in processes that nsys records.
UNDER_NSYS = ("NVTX_INJECTION64_PATH", "NSYS_PROFILING_SESSION_ID")

_started = False


def start() -> None:
    """Begin to watch for vLLM's worker in this process, if capture is enabled. A second call does nothing.

    A wrong setting, or any other failure, is one warning. Capture is then off in this process and its children.
    """
    global _started  # noqa: PLW0603  once a process
    if _started:
        return
    _started = True
    if not config.may_be_on():
        return  # whatever else is set
    try:
        _begin(config.load())
    except Exception as error:  # serving is sacred
        reason = error if isinstance(error, NvtxmoeError) else f"{type(error).__name__}: {error}"
        logger().warning("nothing is recorded: %s", reason)
        os.environ[ENABLE] = "0"


def _begin(settings: Settings) -> None:
    """Do what the settings ask for.

    Raises:
        NvtxmoeError: no session can be made.
    """
    if not settings.enable:
        return
    log = logger(settings.verbose)
    if "moe" in sinks_of(settings) or has_windows(settings):
        from nvtxmoe.capture.startup.session import session_dir  # noqa: PLC0415  only where there is one

        fresh = not os.environ.get(config.SESSION_DIR)
        log.info("session: %s", session_dir(settings.output_dir))
        if fresh and has_windows(settings):
            where = f"nvtxmoe window start {session_dir(settings.output_dir)}"
            print(f"nvtxmoe: windows are opened and closed with: {where}", file=sys.stderr)  # noqa: T201
    if settings.shows_metrics:
        from nvtxmoe.capture.startup import live  # noqa: PLC0415  only when asked for

        live.begin(settings)
    import_watch.watch(WORKER, lambda: _hook(settings))


def sinks_of(settings: Settings) -> Sequence[str]:
    """The sinks that a mode means, of ``nsys`` and ``moe``."""
    if settings.mode == "auto":
        return ("nsys",) if any(os.environ.get(name) for name in UNDER_NSYS) else ("moe",)
    if settings.mode == "live":
        return ()
    return ("nsys", "moe") if settings.mode == "both" else (settings.mode,)


def has_windows(settings: Settings) -> bool:
    """Whether steps are recorded in windows: with sinks that live metrics alone do not have."""
    return settings.window != config.WINDOWS_OFF and bool(sinks_of(settings))


def _hook(settings: Settings) -> None:
    from nvtxmoe.capture.vllm.adapters import choose  # noqa: PLC0415  vLLM is being imported

    log = logger(settings.verbose)
    adapter, missing_clauses = choose()
    if adapter is None:
        import vllm  # noqa: PLC0415

        clauses = "; ".join(f"{name}: {', '.join(missing)}" for name, missing in missing_clauses.items())
        log.warning("no adapter fits vLLM %s, nothing is recorded. Missing: %s", vllm.__version__, clauses)
        return
    adapter.install(make_capture(settings))
    log.info("hooked with adapter %s", adapter.NAME)


def make_capture(settings: Settings) -> Capture:
    """The recorder with its sinks and the hooks' state."""
    from nvtxmoe.capture.recording.recorder import Recorder  # noqa: PLC0415
    from nvtxmoe.capture.recording.windows import EveryStep  # noqa: PLC0415
    from nvtxmoe.capture.run_identity import Identity  # noqa: PLC0415
    from nvtxmoe.capture.sinks.nvtx_emitter import make_emitter  # noqa: PLC0415
    from nvtxmoe.capture.vllm.layer_hooks import Capture  # noqa: PLC0415  with all that it imports

    sinks = sinks_of(settings)
    emitter = make_emitter(settings.payload) if "nsys" in sinks else None

    def make_sinks(identity: Identity) -> Sequence[Sink] | EveryStep:
        from nvtxmoe.capture.sinks.nvtx import NvtxSink  # noqa: PLC0415

        nvtx: list[Sink] = [] if emitter is None else [NvtxSink(emitter)]
        metrics: list[Sink] = []
        if settings.shows_metrics:
            from nvtxmoe.capture.startup.live import live_sinks  # noqa: PLC0415  only when asked for

            metrics = live_sinks(settings, identity.rank)
        if has_windows(settings):
            from nvtxmoe.capture.startup.windows import make_windows  # noqa: PLC0415  only when asked for

            return make_windows(settings, recorder, identity, metrics, nvtx, "moe" in sinks)
        return nvtx + (_journals(settings, identity.rank) if "moe" in sinks else []) + metrics

    recorder = Recorder(make_sinks, sample_every=settings.log_interval, layers=settings.layers, emit=settings.emit)

    def close() -> None:
        recorder.close()  # does nothing in a process that recorded nothing

    atexit.register(close)
    util.Finalize(recorder, close, exitpriority=200)  # children of multiprocessing leave without atexit
    return Capture(recorder, emitter if "ranges" in settings.emit else None, settings.keep_router)


def _journals(settings: Settings, rank: int) -> list[Sink]:
    """The journal of a process; none, and a warning, where it can't be made."""
    from nvtxmoe.capture.sinks.journal import JournalSink  # noqa: PLC0415
    from nvtxmoe.capture.startup.session import session_dir  # noqa: PLC0415

    try:
        return [JournalSink(session_dir(settings.output_dir), rank, settings.flush_interval)]
    except (OSError, NvtxmoeError) as error:
        logger().warning("no files are written: %s", error)
        return []
