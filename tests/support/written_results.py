"""Analysing exports in a test, and reading back what was written."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import polars as pl

from nvtxmoe_analysis.analyze import Analysis, analyze
from tests.support.export_builder import Export

TABLES = (
    "moe_expert_activations",
    "moe_expert_coselection",
    "moe_routing_weights_hist",
    "moe_load_imbalance",
    "moe_balance_metrics",
    "moe_capacity",
    "moe_cross_layer",
    "moe_cross_layer_paths",
    "moe_layer_timings",
    "moe_kernel_timings",
    "moe_layer_correlation",
    "moe_layer_model",
    "moe_roofline",
    "moe_roofline_summary",
    "moe_waterfall",
    "moe_straggler",
    "moe_collectives",
)
#: Always Parquet: their cells hold lists.
PARQUET_ONLY = ("moe_step_activations",)
DOCUMENTS = ("moe_summary", "moe_layer_model", "moe_roofline", "moe_straggler", "moe_capture_validation")


def file_set(*formats: str) -> set[str]:
    """Names of all files that ``analyze`` of exports writes."""
    return {
        *(f"{stem}.{form}" for stem in TABLES for form in formats),
        *(f"{stem}.parquet" for stem in PARQUET_ONLY),
        *(f"{stem}.json" for stem in DOCUMENTS),
    }


@dataclass(frozen=True)
class Written:
    """The files of one analysis."""

    analysis: Analysis

    @property
    def folder(self) -> Path:
        return self.analysis.folder

    def text(self, stem: str) -> str:
        """A table's CSV, or with its suffix any file."""
        return (self.folder / (stem if "." in stem else f"{stem}.csv")).read_text()

    def frame(self, stem: str) -> pl.DataFrame:
        """A Parquet table."""
        return pl.read_parquet(self.folder / f"{stem}.parquet")

    def rows(self, stem: str, *columns: str) -> list[tuple[str, ...]]:
        """The cells of some columns of a table as they are written."""
        return [tuple(row[c] for c in columns) for row in csv.DictReader(io.StringIO(self.text(stem)))]

    def json(self, stem: str) -> Any:
        return json.loads(self.text(f"{stem}.json"))

    @property
    def validation(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json("moe_capture_validation")
        return found

    @property
    def verdict(self) -> str:
        return str(self.validation["verdict"])

    @property
    def statuses(self) -> dict[str, str]:
        """Status by check, of those that did not pass and had something to look at."""
        checks = self.validation["checks"]
        return {c["name"]: c["status"] for c in checks if c["status"] not in ("pass", "not_applicable")}

    def check(self, name: str) -> tuple[str, str, dict[str, Any]]:
        """Status, message and figures of a check."""
        (found,) = [c for c in self.validation["checks"] if c["name"] == name]
        return found["status"], found["message"], found["figures"]


def written(folder: Path, *exports: Export | Path, **options: Any) -> Written:
    """Analyse constructed exports (saved as built0.sqlite, built1.sqlite, ...) or files."""
    paths = []
    for i, export in enumerate(exports):
        if isinstance(export, Export):
            path = folder / f"built{i}.sqlite"
            path.unlink(missing_ok=True)
            paths.append(export.save(path))
        else:
            paths.append(export)
    return Written(analyze(paths, folder / "out", **options))


def literal(text: str) -> str:
    """CSV written by hand in a test."""
    return dedent(text).lstrip("\n")
