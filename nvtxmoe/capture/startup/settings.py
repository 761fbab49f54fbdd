"""Settings of capture, from NVTXMOE_* variables and, under the same names, from a TOML file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import refuse_special

PREFIX = "NVTXMOE_"
CONFIG = PREFIX + "CONFIG"
ENABLE = PREFIX + "ENABLE"
#: Set by the process that begins a session of direct mode, for its children.
SESSION_DIR = PREFIX + "SESSION_DIR"
#: The known name of another tool's switch, honoured for verbose.
OTHER_VERBOSE = "VLLM_PROFILING_VERBOSE"

MODES = ("auto", "nsys", "moe", "both", "live")
PAYLOADS = ("auto", "binary", "words")
EMITS = ("ranges", "counts", "topk", "physical", "pairs")
#: Whether windows are opened and closed while the process runs (``nvtxmoe window``), and how the first one begins.
WINDOWS_OFF, WINDOW_CLOSED, WINDOW_OPEN = "off", "closed", "open"
DEFAULT_OUTPUT_DIR = Path("/tmp/vllm_profiling")  # noqa: S108  # nosec B108  where people look; its owner is checked
DEFAULT_EMITS = frozenset({"ranges", "counts", "topk", "physical"})
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
#: Layers that a list may name.
_MOST_LAYER = 100_000
#: Experts of a layer that live metrics may show.
_MOST_TOP_K = 64


def _switch(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("one of 1, true, yes, on, 0, false, no, off")


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ValueError("a whole number from 0, as 100; 0 turns token-level rows off")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value <= 3600:
        raise ValueError("seconds from 0.01 to 3600")
    return value


def _one_of(*accepted: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in accepted:
            raise ValueError(f"one of {', '.join(accepted)}")
        return text.lower()

    return parse


def _emits(text: str) -> frozenset[str]:
    names = frozenset(part.strip().lower() for part in text.split(",") if part.strip())
    if not names or not names <= set(EMITS):
        raise ValueError(f"a list of {', '.join(EMITS)}")
    return names


def _layers(text: str) -> frozenset[int] | None:
    expected_form = "all, or a list as 0,3,8-11"
    if text.strip().lower() == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isascii() or not first.isdigit() or (dash and not (last.isascii() and last.isdigit())):
            raise ValueError(expected_form)
        low, high = int(first), int(last if dash else first)
        if high < low or high > _MOST_LAYER:
            raise ValueError(expected_form)
        layers.update(range(low, high + 1))
    return frozenset(layers)


def _folder(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise ValueError("the path of a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody whom this machine does not know
        raise ValueError(f"the path of a folder: {error}") from None


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise ValueError("a port from 1 to 65535")
    return int(text)


def _host(text: str) -> str:
    if not text.strip() or not text.isascii() or not text.isprintable():
        raise ValueError("an address or a name of this machine, as 127.0.0.1 or 0.0.0.0")
    return text.strip()


def _top_k(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3 or int(text) > _MOST_TOP_K:
        raise ValueError(f"a whole number from 0 to {_MOST_TOP_K}")
    return int(text)


def _file(text: str) -> str:
    try:
        return str(_folder(text))
    except ValueError:
        raise ValueError("the path of a file") from None


def _setting(parse: Callable[[str], Any], default: Any, what: str) -> Any:
    return field(default=default, metadata={"parse": parse, "what": what})


@dataclass(frozen=True)
class Settings:
    """How to capture. Each field is the variable ``NVTXMOE_<FIELD>`` in capitals, or that key of the TOML file."""

    enable: bool = _setting(_switch, False, "record at all")
    mode: str = _setting(
        _one_of(*MODES),
        "auto",
        "nsys: NVTX events; moe: files, without nsys; both; live: metrics alone; auto: nsys under nsys, else moe",
    )
    log_interval: int = _setting(
        _whole_number, 100, "token-level rows (experts and weights) every so many steps; 0: never"
    )
    layers: frozenset[int] | None = _setting(_layers, None, "all, or a list of layers as 0,3,8-11")
    emit: frozenset[str] = _setting(_emits, DEFAULT_EMITS, f"a list of {', '.join(EMITS)}")
    verbose: bool = _setting(_switch, False, f"say what is hooked and written (also {OTHER_VERBOSE}=1)")
    output_dir: Path = _setting(  # noqa: RUF009  a field, as the others
        _folder, DEFAULT_OUTPUT_DIR, "base folder of sessions of mode moe"
    )
    flush_interval: float = _setting(_seconds, 1.0, "seconds after which mode moe has written what was counted")
    keep_router: bool = _setting(
        _switch, False, "keep vLLM from replacing a router by a fused kernel; this changes the program that runs"
    )
    payload: str = _setting(_one_of(*PAYLOADS), "auto", "NVTX payloads: binary, words, or what the stack can carry")
    window: str = _setting(
        _one_of(WINDOWS_OFF, WINDOW_CLOSED, WINDOW_OPEN),
        WINDOWS_OFF,
        "closed: record only [in windows](../how-to/record-windows.md) that `nvtxmoe window` opens and closes while "
        "the server runs; open: the same, the first one open from the start; off: record everything",
    )
    metrics: bool = _setting(_switch, False, "live metrics for Prometheus: [live metrics](../how-to/live-metrics.md)")
    metrics_port: int = _setting(_port, 9476, "port of their own server, where vLLM serves no /metrics")
    metrics_host: str = _setting(_host, "127.0.0.1", "address that this server listens on")
    metrics_top_k: int = _setting(_top_k, 3, "hottest and coldest experts of each layer that have a series")
    metrics_experts: bool = _setting(_switch, False, "a series for each expert of each layer; many")
    metrics_model: str = _setting(
        _file, "", "moe_layer_model.json of an earlier analysis, for the estimate of the time lost to imbalance"
    )

    @property
    def shows_metrics(self) -> bool:
        """Whether there are live metrics."""
        return self.metrics or self.mode == "live"


FIELDS = {f.name: f for f in fields(Settings)}


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings: the environment wins over the file that NVTXMOE_CONFIG names.

    Raises:
        NvtxmoeError: a wrong value or an unknown name, with what is accepted.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    path = environ.get(CONFIG)
    if path:
        values |= _from_file(Path(os.path.expanduser(path)))  # noqa: PTH111  an unknown ~user stays as it is
    for name in FIELDS:
        text = environ.get(PREFIX + name.upper())
        if text:  # an empty variable is as one that is not set
            values[name] = _parsed(name, text, PREFIX + name.upper())
    if environ.get(OTHER_VERBOSE) == "1":
        values["verbose"] = True
    return Settings(**values)


def may_be_on(environ: Mapping[str, str] | None = None) -> bool:
    """Whether capture is asked for, as far as NVTXMOE_ENABLE tells; a settings file may still say."""
    environ = os.environ if environ is None else environ
    text = environ.get(ENABLE)
    return bool(environ.get(CONFIG)) if not text else text.lower() not in _FALSE


def _parsed(name: str, text: str, where: str) -> Any:
    try:
        return FIELDS[name].metadata["parse"](text)
    except ValueError as error:
        raise NvtxmoeError(f"{text!r} is not accepted", where=where, remedy=f"Give {error}") from None


def _from_file(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415  only where a file is given
    else:
        import tomli as tomllib  # noqa: PLC0415
    try:
        refuse_special(path)
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NvtxmoeError(
            f"{CONFIG} names a file that can't be read: {error.strerror}", where=path, remedy="Name one that is there"
        ) from error
    except (ValueError, RecursionError) as error:  # also of numbers and lists that Python does not take
        raise NvtxmoeError(f"no TOML: {error}", where=path, remedy="Write lines as log_interval = 100") from error
    settings = {}
    for key, value in table.items():
        name = key.lower().removeprefix(PREFIX.lower())
        if name not in FIELDS:
            known = ", ".join(FIELDS)
            raise NvtxmoeError(f"unknown setting {key!r}", where=path, remedy=f"Known are {known}")
        where = f"{path}, {key}"
        try:
            text = _as_text(value)
        except (ValueError, RecursionError) as error:
            raise NvtxmoeError(f"not accepted: {error}", where=where, remedy="Give a shorter value") from error
        settings[name] = _parsed(name, text, where)
    return settings


def _as_text(value: object) -> str:
    """A TOML value as the variable would spell it."""
    if isinstance(value, list):
        return ",".join(_as_text(item) for item in value)
    return str(value)
