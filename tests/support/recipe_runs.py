"""Running nsys recipes: reports for them, and what one run left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nvtxmoe_analysis.readers import nsys_export as exporter
from tests.support.nsys_runs import profile_nvtx
from tests.support.paths import ROOT

RECIPES = ROOT / "recipes"
EMIT = "import sys; from tests.programs.emit_words import emit_rank; emit_rank(int(sys.argv[1]))"


@dataclass(frozen=True)
class Ran:
    """One call of nsys recipe."""

    status: int
    said: str
    folder: Path

    @property
    def files(self) -> set[str]:
        """Names of what it left; none where there is no folder."""
        return {file.name for file in self.folder.iterdir()} if self.folder.exists() else set()


def capture(nsys: Path, rank: int, report: Path) -> None:
    """Profile one rank of programs/emit_words.py."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    program = [sys.executable, "-c", EMIT, rank]
    profile_nvtx(nsys, report, program, env={**os.environ, "PYTHONPATH": path}, cwd=report.parent)


def with_kept_export(export: Path, report: Path) -> None:
    """A report whose export is kept already, as of an earlier analyze: this is how captures of a GPU get here."""
    report.write_bytes(b"in the place of a report")
    kept = report.with_name(report.stem + exporter.CACHE_SUFFIX)
    kept.write_bytes(export.read_bytes())
    exporter._write_stamp(kept, exporter._fingerprint(report), blobs=True)


def packages(nsys: Path) -> Path:
    """The folder that holds nsys_recipe."""
    return nsys.resolve().parent / "python" / "packages"


def nsys_recipe(nsys: Path, name: str, *arguments: str, output: Path, **environment: str) -> Ran:
    """Run a recipe as docs/how-to/recipes.md says, with the python3 of the environment in which the tests run."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    said = {"PATH": path, "NSYS_RECIPE_PATH": str(RECIPES), **environment}
    kept = {key: value for key, value in os.environ.items() if key not in {"NVTXMOE_NSYS", "NSYS_RECIPE_PATH"}}
    done = subprocess.run(
        [str(nsys), "recipe", name, *arguments, "--output", str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**kept, **said}, cwd=output.parent,
        check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, output)
