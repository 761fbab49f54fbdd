"""Find the config.json of a model: a folder, a file, or a name on the hub that is in the local cache. No download."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

CONFIG = "config.json"


def config_file(model: Path, environ: Mapping[str, str]) -> Path | None:
    """The config.json that ``model`` names; None where there is none on this machine.

    Parameters:
        model: a folder, a config.json, or ``organisation/name`` on the Hugging Face hub.
        environ: variables that say where the hub's cache is.
    """
    if model.is_file():
        return model
    if model.is_dir():
        return model / CONFIG if (model / CONFIG).is_file() else None
    if model.is_absolute() or len(model.parts) > 2 or ".." in model.parts:
        return None
    return next(_cached(model, environ), None)


def _cached(model: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """Config files of a model in the hub's cache: the main revision's first, then the newest."""
    folder = hub_cache(environ) / ("models--" + "--".join(model.parts))
    named = folder / "refs" / "main"
    try:
        main = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
    except (OSError, ValueError):
        main = ""
    files = [file for file in folder.glob(f"snapshots/*/{CONFIG}") if file.is_file()]
    yield from sorted(files, key=lambda file: (file.parent.name != main, -file.stat().st_mtime))


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The folder in which the hub's client keeps models."""
    if named := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".cache")
    return Path(environ.get("HF_HOME") or Path(base) / "huggingface").expanduser() / "hub"
