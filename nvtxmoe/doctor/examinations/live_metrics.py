"""Live metrics, where they are on: prometheus_client, the port, the layer model."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.capture.live import imbalance_time
from nvtxmoe.capture.startup.settings import Settings
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Installed

ORDER = 85
TOPIC = "live metrics"


def diagnose(context: Context) -> Iterator[Finding]:
    """Whether the metrics that the settings ask for can be shown."""
    if context.settings.shows_metrics:
        yield from live_metrics(context.installed, context.settings)


def live_metrics(installation: Installed, settings: Settings) -> Iterator[Finding]:
    """Whether the Python that serves can show metrics, the port is free, and the model can be read."""
    level = PROBLEM if settings.mode == "live" else NOTE
    if not installation.prometheus_client:
        yield Finding(
            TOPIC,
            level,
            f"{installation.path} has no prometheus_client: there would be no live metrics",
            f"Run {installation.path} -m pip install prometheus_client",
        )
        return
    host, port = settings.metrics_host, settings.metrics_port
    if trouble := _cannot_listen(host, port):
        yield Finding(
            TOPIC,
            NOTE,
            f"{host}:{port}: {trouble}: a program without vLLM's /metrics would show none",
            "Name another port with NVTXMOE_METRICS_PORT, or stop what listens there",
        )
    else:
        yield Finding(TOPIC, OK, f"on vLLM's /metrics, or on {host}:{port} where vLLM serves none")
    if settings.metrics_model:
        try:
            imbalance_time.load(Path(settings.metrics_model))
        except (OSError, ValueError) as error:
            yield Finding(
                TOPIC,
                NOTE,
                f"no estimate of the time lost to imbalance: {settings.metrics_model}: {error}",
                "Set NVTXMOE_METRICS_MODEL to the moe_layer_model.json of an earlier analysis",
            )


def _cannot_listen(host: str, port: int) -> str | None:
    """Why no server can listen there; None where one can."""
    try:
        with socket.create_server((host, port)):
            return None
    except OSError as error:
        return error.strerror or str(error)
