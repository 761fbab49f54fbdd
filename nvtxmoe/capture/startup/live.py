"""Live metrics in a process: the folder that all processes share, vLLM's /metrics, else a server of our own.

Workers publish snapshots into the folder. vLLM's API servers read them at each scrape: whichever registry they serve,
that of the process or the one of prometheus_client's multiprocess mode, gets our collector. The process that made the
folder serves them itself where no API server does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from nvtxmoe.capture.hooks import Hook, registered, wrap
from nvtxmoe.capture.live import imbalance_time
from nvtxmoe.capture.live.collector import Collector
from nvtxmoe.capture.live.samples import Options
from nvtxmoe.capture.live.snapshot import read_all, started
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.sinks import Sink
from nvtxmoe.capture.startup import import_watch
from nvtxmoe.capture.startup.settings import Settings

#: Set by the first process of a run, for its children.
LIVE_DIR = "NVTXMOE_LIVE_DIR"
#: Where vLLM asks for the registry that its /metrics serves.
ASKS_FOR_REGISTRY = (
    ("vllm.v1.metrics.prometheus", "get_prometheus_registry"),
    ("vllm.entrypoints.serve.instrumentator.metrics", "get_prometheus_registry"),
)
#: In the folder: an API server serves the series.
SERVED = "served"
#: Seconds between two looks for the first counts.
LOOK_S = 0.5
#: Memory, where there is such a folder: snapshots are written every second.
FOLDERS = "nvtxmoe-live-"
IN_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108  a folder of our own is made there


def begin(settings: Settings) -> None:
    """Prepare live metrics in this process. What goes wrong is one warning, and there are none."""
    try:
        _begin(settings)
    except Exception as error:  # serving is sacred
        os.environ.pop(LIVE_DIR, None)
        logger().warning("no live metrics: %s", error)


def live_sinks(settings: Settings, rank: int) -> list[Sink]:
    """The sink of a worker, none where there are no live metrics."""
    folder = os.environ.get(LIVE_DIR)
    if not settings.shows_metrics or not folder:
        return []
    from nvtxmoe.capture.sinks.metrics import MetricsSink  # noqa: PLC0415  only when asked for

    return [MetricsSink(Path(folder), rank, options_of(settings))]


def options_of(settings: Settings) -> Options:
    """What is shown."""
    return Options(settings.metrics_top_k, settings.metrics_experts)


def _begin(settings: Settings) -> None:
    import prometheus_client  # noqa: F401, PLC0415  vLLM brings it

    live_dir = os.environ.get(LIVE_DIR)
    folder = Path(live_dir) if live_dir else _make_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise OSError(f"{folder} can't be written to")
    collector = Collector(folder, options_of(settings), _model(settings))
    for module, attribute in ASKS_FOR_REGISTRY:
        import_watch.watch(module, _join_registry(module, attribute, collector, folder))
    if not live_dir:
        arguments = (folder, settings.metrics_host, settings.metrics_port, collector)
        threading.Thread(target=serve_if_nobody_does, args=arguments, name="nvtxmoe-look", daemon=True).start()


def _make_folder() -> Path:
    base = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-", dir=base))
    os.environ[LIVE_DIR] = str(folder)
    weakref.finalize(sys.modules[__name__], _remove, folder, os.getpid())  # as sessions are merged: after vLLM's end
    return folder


def _sweep(base: Path) -> None:
    """Remove what processes left that were killed."""
    for folder in base.glob(f"{FOLDERS}*"):
        pid = folder.name.removeprefix(FOLDERS).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and started(int(pid)) is None and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _model(settings: Settings) -> imbalance_time.ImbalanceTime | None:
    if not settings.metrics_model:
        return None
    try:
        return imbalance_time.load(Path(settings.metrics_model))
    except (OSError, ValueError) as error:
        logger().warning("no estimate of the time lost to imbalance: %s: %s", settings.metrics_model, error)
        return None


def _join_registry(module: str, attribute: str, collector: Collector, folder: Path) -> Any:
    """What is done once a module is there: the registry that its function returns gets the collector."""

    def leave(_: Any, registry: Any) -> None:
        if collector not in _collectors_of(registry):
            registry.register(collector)
        with contextlib.suppress(OSError):
            (folder / SERVED).touch()

    def put() -> None:
        where = sys.modules[module]
        if hasattr(where, attribute):
            wrap(where, attribute, registered(Hook(f"metrics of {module}", leave=leave)))

    return put


def _collectors_of(registry: Any) -> list[Any]:
    return list(getattr(registry, "_collector_to_names", ()))


def serve_if_nobody_does(folder: Path, host: str, port: int, collector: Collector) -> None:
    """Wait for the first counts; serve them from here, unless an API server does."""
    from nvtxmoe.capture.live.own_server import serve  # noqa: PLC0415  only where it is needed

    while folder.exists():
        if (folder / SERVED).exists():
            return
        if any(snapshot.header["steps"] for snapshot in read_all(folder)):
            break
        time.sleep(LOOK_S)
    else:
        return
    try:
        serve(host, port, collector)
    except (OSError, ImportError) as error:
        logger().warning("live metrics are not served: %s:%s: %s", host, port, error)
    else:
        logger().info("live metrics: http://%s:%s/metrics", host, port)
