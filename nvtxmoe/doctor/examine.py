"""The whole examination, in the order in which it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import PROBLEM, Finding
from nvtxmoe.doctor.examinations import examinations
from nvtxmoe.doctor.probe import IMPORT_TIMEOUT_S


def examine(
    environ: Mapping[str, str],
    *,
    python: Path | None = None,
    nsys: Path | None = None,
    model: Path | None = None,
    gpu: str | None = None,
    steps: int = 1000,
    tokens: int = 32,
    import_timeout_s: float = IMPORT_TIMEOUT_S,
) -> list[Finding]:
    """Look at everything that a capture needs.

    Parameters:
        python: the Python that serves; default: that of the ``vllm`` command, else this one.
        nsys: an nsys that has to work; default: one that is found, of which what is wrong is a note unless the mode
            needs it.
        model: a config.json, its folder, or a hub's name of a model in the local cache: how its layers will be
            recorded, and the bytes of ``steps`` steps of ``tokens`` tokens.
        gpu: the GPU that will serve, as ``h200``; default: the one of this machine.
        import_timeout_s: how long importing torch and vLLM may take.

    Raises:
        NvtxmoeError: the Python is not there or does not run.
    """
    context = Context(
        environ=environ,
        python=python,
        nsys=nsys,
        model=model,
        gpu=gpu,
        steps=steps,
        tokens=tokens,
        import_timeout_s=import_timeout_s,
    )
    return [finding for examination in examinations().values() for finding in examination.diagnose(context)]


def can_capture(findings: list[Finding]) -> bool:
    """Whether nothing stands in the way of a capture."""
    return all(finding.level != PROBLEM for finding in findings)
