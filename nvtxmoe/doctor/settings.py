"""The settings in force, where each comes from, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from nvtxmoe.capture.startup import settings as config
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.errors import NvtxmoeError

#: Variables of ours that are no settings of capture.
OTHERS = (config.CONFIG, config.SESSION_DIR, "NVTXMOE_NSYS", "NVTXMOE_RUN_ID", "NVTXMOE_TEST_NSYS")


def settings(environ: Mapping[str, str]) -> tuple[config.Settings, list[Finding]]:
    """The settings (the defaults where they can't be read) and the findings."""
    try:
        loaded = config.load(environ)
    except NvtxmoeError as error:
        return config.Settings(), [Finding("settings", PROBLEM, error_text(error), error.remedy), *_unknown(environ)]
    findings = [Finding("settings", OK, _shown(loaded, environ), None, sources(loaded, environ))]
    if not loaded.enable:
        findings.append(
            Finding("settings", NOTE, "capture is off", "export NVTXMOE_ENABLE=1 (`nvtxmoe profile` does it itself)")
        )
    if environ.get(config.SESSION_DIR):
        findings.append(
            Finding(
                "settings",
                NOTE,
                f"{config.SESSION_DIR} is set: runs write into {environ[config.SESSION_DIR]}",
                f"unset {config.SESSION_DIR}, unless that is meant",
            )
        )
    return loaded, [*findings, *_unknown(environ)]


def error_text(error: NvtxmoeError) -> str:
    """Where and what, without the remedy."""
    return f"{error.where}: {error.what}" if error.where else error.what


def sources(loaded: config.Settings, environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Of every setting its value, as text, and where it comes from."""
    path = environ.get(config.CONFIG)
    from_file = config.load({config.CONFIG: path}) if path else config.Settings()
    out = {}
    for name in config.FIELDS:
        variable = config.PREFIX + name.upper()
        if name == "verbose" and environ.get(config.OTHER_VERBOSE) == "1":
            source = config.OTHER_VERBOSE
        elif variable in environ:
            source = variable
        elif getattr(from_file, name) != getattr(config.Settings(), name):
            source = str(path)
        else:
            source = "default"
        out[name] = {"value": value_text(getattr(loaded, name)), "source": source}
    return out


def value_text(value: object) -> str:
    """A setting as the variable would spell it."""
    if value is None:
        return "all"
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, frozenset):
        return ",".join(str(item) for item in sorted(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(loaded: config.Settings, environ: Mapping[str, str]) -> str:
    changed = [
        f"{name}={setting['value']} ({setting['source']})"
        for name, setting in sources(loaded, environ).items()
        if setting["source"] != "default"
    ]
    return ", ".join(changed) + "; the rest by default" if changed else "all by default"


def _unknown(environ: Mapping[str, str]) -> Iterator[Finding]:
    known = [*(config.PREFIX + name.upper() for name in config.FIELDS), *OTHERS]
    for name in sorted(environ):
        if name.startswith(config.PREFIX) and name not in known:
            near = get_close_matches(name, known, 1)
            yield Finding(
                "settings",
                NOTE,
                f"{name} is no setting and is ignored",
                f"Set {near[0]} instead" if near else f"Known are {', '.join(known[: len(config.FIELDS)])}",
            )


def existing_parent(path: Path) -> Path:
    """The nearest folder above (or at) a path that is there."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
