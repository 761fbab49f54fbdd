"""The whole examination, in the order in which it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from nvtxmoe.capture.startup.settings import Settings
from nvtxmoe.doctor import entry_points, machine, vllm
from nvtxmoe.doctor import nsys as profiler
from nvtxmoe.doctor import settings as configuration
from nvtxmoe.doctor.diagnosis import NOTE, PROBLEM, Finding
from nvtxmoe.doctor.probe import IMPORT_TIMEOUT_S, imported, installed, search_python
from nvtxmoe.nsys_compatibility import WORDS
from nvtxmoe.sizing.estimate import Estimate, estimate
from nvtxmoe.sizing.model_config import model_shape

#: Where `nvtxmoe profile` puts its results, from where it is started.
PROFILE_FOLDER = Path("profiling_results")


def examine(
    environ: Mapping[str, str],
    *,
    python: Path | None = None,
    nsys: Path | None = None,
    model: Path | None = None,
    steps: int = 1000,
    tokens: int = 32,
    import_timeout_s: float = IMPORT_TIMEOUT_S,
) -> list[Finding]:
    """Look at everything that a capture needs.

    Parameters:
        python: the Python that serves; default: that of the ``vllm`` command, else this one.
        nsys: an nsys that has to work; default: one that is found, of which what is wrong is a note unless the mode
            needs it.
        model: a config.json, or its folder, to estimate the bytes of ``steps`` steps of ``tokens`` tokens.
        import_timeout_s: how long importing torch and vLLM may take.

    Raises:
        NvtxmoeError: the Python is not there or does not run.
    """
    settings, about_settings = configuration.settings(environ)
    found = installed(search_python(python), environ)
    said = imported(found.path, environ, import_timeout_s)
    needs_nsys = nsys is not None or settings.mode in ("nsys", "both")
    under = profiler.profiler(found, nsys, settings.payload, needs_nsys, environ)
    encoding = under.encoding or WORDS
    estimated = None
    if model is not None and (shape := model_shape(model)) is not None:
        estimated = estimate(
            shape,
            tokens=tokens,
            steps=steps,
            log_interval=settings.log_interval,
            layers=None if settings.layers is None else len(settings.layers),
            emit=settings.emit,
        )
    return [
        *vllm.vllm(found, said),
        *machine.torch(found, said),
        *vllm.adapter(found, said),
        *entry_points.ways_in(found, environ),
        *entry_points.nvtx(found),
        *under.findings,
        *machine.gpu(under.version),
        *about_settings,
        *_disk(settings, under, estimated, encoding),
        *vllm.hidden(found),
        *_estimate(model, estimated, encoding),
    ]


def _disk(
    settings: Settings, under: profiler.UnderNsys, estimated: Estimate | None, encoding: str
) -> Iterator[Finding]:
    """The folder of sessions, and the one of `nvtxmoe profile`, each where it would be used."""

    def wanted(sink: str) -> int:
        return 0 if estimated is None else estimated.disk((sink,), encoding)[0]

    direct = settings.mode in ("moe", "both") or under.encoding is None
    if settings.mode != "nsys":
        yield from machine.disk(settings.output_dir, direct, wanted("moe"))
    if settings.mode != "moe" and under.encoding is not None:
        yield from machine.disk(PROFILE_FOLDER.absolute(), False, wanted("nsys"))


def _estimate(model: Path | None, estimated: Estimate | None, encoding: str) -> list[Finding]:
    if model is None:
        return []
    if estimated is None:
        return [
            Finding(
                "estimate",
                NOTE,
                f"{model}: no config.json of a mixture of experts that is known here",
                "Give the folder of a local model",
            )
        ]
    return [machine.size(estimated, encoding, model)]


def can_capture(findings: list[Finding]) -> bool:
    """Whether nothing stands in the way of a capture."""
    return all(one.level != PROBLEM for one in findings)
