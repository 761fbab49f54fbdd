"""For the tests of plans: stand-ins for nsys and nvtx, dry runs, and runs that don't come about."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.cli import Ran, run


def executable(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests see what they set themselves."""
    for name in [name for name in os.environ if name.startswith(("NVTXMOE_", "VLLM_"))]:
        monkeypatch.delenv(name)


def make_nsys(folder: Path, version: str = "2025.3.1.90-253135822126v0", blobs: bool = True) -> Path:
    """An nsys that names a version, and maybe --include-blobs, and fails at anything else."""
    return executable(
        folder / "nsys-of-a-kind" / "nsys", "#!/bin/sh", 'case "$1 $2" in',
        f'"--version ") echo "NVIDIA Nsight Systems version {version}" ;;',
        f'"export --help") echo "usage: nsys export {"--include-blobs=" if blobs else ""}" ;;',
        "*) exit 9 ;;", "esac",
    )  # fmt: skip


def install_nvtx(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Every Python started from here sees an nvtx of that version."""
    packages = folder / "packages"
    (packages / f"nvtx-{version}.dist-info").mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: nvtx\nVersion: {version}\n"
    (packages / f"nvtx-{version}.dist-info" / "METADATA").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(packages))


def dry_run(*arguments: object) -> Ran:
    ran = run("profile", "--dry-run", *arguments)
    assert (ran.code, ran.err) == (0, ""), ran
    return ran


def variables(ran: Ran) -> dict[str, str]:
    """The environment that a dry run shows."""
    words = shlex.split(ran.out.replace("\\\n", " "), comments=True)
    return dict(word.split("=", 1) for word in words[1:] if word.split("=")[0].isupper() and "=" in word)


def shown_command(ran: Ran) -> list[str]:
    """The command line that a dry run shows."""
    words = shlex.split(ran.out.replace("\\\n", " "), comments=True)
    assert words[0] == "env"
    first = next(
        place
        for place, word in enumerate(words)
        if place and "=" not in word and "NVTXMOE" not in word and word != "-u"
    )
    return words[first:]


def no_run(tmp_path: Path, *options: object, python: str = sys.executable) -> Ran:
    """A run that must not come about."""
    ran = run("profile", "-o", tmp_path / "out", *options, "--", python, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()
    return ran


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int
