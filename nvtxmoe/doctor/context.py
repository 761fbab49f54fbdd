"""What examinations share: what was asked for, and facts that are found out when the first of them needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nvtxmoe.capture.startup.settings import Settings
from nvtxmoe.doctor import nsys as profiler
from nvtxmoe.doctor import settings as configuration
from nvtxmoe.doctor.diagnosis import Finding
from nvtxmoe.doctor.probe import IMPORT_TIMEOUT_S, Imported, Installed, imported, installed, search_python
from nvtxmoe.nsys_compatibility import WORDS
from nvtxmoe.sizing.estimate import Estimate, estimate
from nvtxmoe.sizing.model_config import model_shape
from nvtxmoe.sizing.model_source import config_file


@dataclass(frozen=True, kw_only=True)
class Context:
    """One run of the doctor. ``examine`` explains the parameters.

    Raises:
        NvtxmoeError: by ``installed`` and what needs it, when the Python is not there or does not run.
    """

    environ: Mapping[str, str]
    python: Path | None = None
    nsys: Path | None = None
    model: Path | None = None
    gpu: str | None = None
    steps: int = 1000
    tokens: int = 32
    import_timeout_s: float = IMPORT_TIMEOUT_S

    @cached_property
    def installed(self) -> Installed:
        """What the Python that serves has, without importing it."""
        return installed(search_python(self.python), self.environ)

    @cached_property
    def imported(self) -> Imported:
        """What importing torch and vLLM there told."""
        return imported(self.installed.path, self.environ, self.import_timeout_s)

    @cached_property
    def _settings(self) -> tuple[Settings, list[Finding]]:
        return configuration.settings(self.environ)

    @property
    def settings(self) -> Settings:
        """The settings of capture in force, the defaults where they can't be read."""
        return self._settings[0]

    @property
    def settings_findings(self) -> list[Finding]:
        """What reading the settings found."""
        return self._settings[1]

    @cached_property
    def under_nsys(self) -> profiler.UnderNsys:
        """What a capture under nsys would be; nsys is tried out."""
        needed = self.nsys is not None or self.settings.mode in ("nsys", "both")
        return profiler.profiler(self.installed, self.nsys, self.settings.payload, needed, self.environ)

    @cached_property
    def model_config(self) -> Path | None:
        """The config.json of the model that is named; None where none is named, or there is none on this machine."""
        return None if self.model is None else config_file(self.model, self.environ)

    @cached_property
    def estimate(self) -> Estimate | None:
        """The bytes of a capture of the model; None where none is named, or its configuration is not known."""
        shape = None if self.model_config is None else model_shape(self.model_config)
        if shape is None:
            return None
        return estimate(
            shape,
            tokens=self.tokens,
            steps=self.steps,
            log_interval=self.settings.log_interval,
            layers=None if self.settings.layers is None else len(self.settings.layers),
            emit=self.settings.emit,
        )

    @property
    def encoding(self) -> str:
        """The encoding of payloads that an estimate counts with."""
        return self.under_nsys.encoding or WORDS
