"""The environment of a profiled command: capture switched on, and a way into Pythons without nvtxmoe's plugin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nvtxmoe.capture.startup.settings import PREFIX, SESSION_DIR, load

#: Holds the sitecustomize.py that installs the hooks.
SITE = Path(__file__).parents[1] / "site"
#: How long vLLM's engine waits for its workers before it kills them, in seconds; by default 5.
WORKER_TIMEOUT = "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS"
_FRONT = "PYTHONPATH"
#: Names of the plugins that vLLM may load; all where it is not set.
PLUGINS, PLUGIN = "VLLM_PLUGINS", "nvtxmoe"


@dataclass(frozen=True)
class Environment:
    """What a run sets and takes away.

    Attributes:
        set: variables and their values.
        unset: variables that the command must not inherit.
    """

    set: Mapping[str, str]
    unset: tuple[str, ...] = ()

    def applied(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment that comes of ``base``."""
        return {name: value for name, value in base.items() if name not in self.unset} | dict(self.set)


def capture_environment(
    mode: str, settings: Mapping[str, str | None], *, payload: str | None, session: Path | None, stop_timeout_s: float,
    base: Mapping[str, str] | None = None,
) -> Environment:  # fmt: skip
    """Switch capture on for a command.

    Parameters:
        mode: nsys, moe or both.
        settings: settings as ``log_interval``; None leaves what the environment says.
        payload: encoding of payloads, None where nsys does not run.
        session: folder of direct mode, None without it.
        stop_timeout_s: how long the command may take to end.
        base: the environment that the command inherits; default: this process's.

    Raises:
        NvtxmoeError: a setting that is not accepted, with what is.
    """
    base = os.environ if base is None else base
    chosen = {"enable": "1", "mode": mode, "payload": payload, **settings}
    variables = {PREFIX + name.upper(): value for name, value in chosen.items() if value is not None}
    if session is not None:
        variables[SESSION_DIR] = str(session.absolute())
    variables[_FRONT] = os.pathsep.join(filter(None, (str(SITE), base.get(_FRONT))))
    if PLUGINS in base and PLUGIN not in base[PLUGINS].split(","):  # it works behind another sitecustomize too
        variables[PLUGINS] = ",".join(filter(None, (base[PLUGINS], PLUGIN)))
    if WORKER_TIMEOUT not in base:
        variables[WORKER_TIMEOUT] = str(max(5, int(stop_timeout_s / 2)))
    environment = Environment(variables, () if session else (SESSION_DIR,))
    load(environment.applied(base))  # an error now, not in every process of the engine
    return environment
