"""The outputs: every module of this folder that declares one, found by being here.

A module of an output has

- ``TABLE = Table(...)`` and ``build(results: RunMetrics) -> pl.DataFrame`` with the table's columns in their order, or
- ``DOCUMENT = Document(...)`` and ``document(results: RunMetrics) -> value for JSON``, or both pairs.

``load``, the report and ``compare`` read the declarations and never build. So a module of an output imports nothing of
the pipeline at its top: only ``core``, ``outputs.spec``, numpy and polars. What ``build`` needs of metrics, facts and
checks it imports inside functions (``# noqa: PLC0415``), and types for annotations under ``TYPE_CHECKING``. A test
holds that the declarations load without the pipeline, which costs a second. Nor does this module import ``RunMetrics``
for a type, so that the import contract of report and compare holds through it too.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import polars as pl

from nvtxmoe_analysis import outputs
from nvtxmoe_analysis.outputs.spec import Document, Table


@cache
def _modules() -> tuple[ModuleType, ...]:
    return tuple(import_module(f"{outputs.__name__}.{info.name}") for info in pkgutil.iter_modules(outputs.__path__))


@cache
def tables() -> Mapping[str, Table]:
    """Every table by name, in the order in which they are listed to people."""
    declared: list[Table] = [module.TABLE for module in _modules() if hasattr(module, "TABLE")]
    return {table.name: table for table in sorted(declared, key=lambda table: (table.order, table.name))}


@cache
def documents() -> Mapping[str, Document]:
    """Every JSON document by name, in the order in which they are listed to people."""
    declared: list[Document] = [module.DOCUMENT for module in _modules() if hasattr(module, "DOCUMENT")]
    return {
        document.name: document for document in sorted(declared, key=lambda document: (document.order, document.name))
    }


def declarations() -> Mapping[str, Table | Document]:
    """Every table, then every document, by name."""
    return {**tables(), **documents()}


def table_builders() -> Mapping[str, Callable[[Any], pl.DataFrame]]:
    """What builds each table, by file stem, in the order of ``tables``."""
    built = {module.TABLE.stem: module.build for module in _modules() if hasattr(module, "TABLE")}
    return {table.stem: built[table.stem] for table in tables().values()}


def document_builders() -> Mapping[str, Callable[[Any], Any]]:
    """What builds each document, by file stem, in the order of ``documents``."""
    built = {module.DOCUMENT.stem: module.document for module in _modules() if hasattr(module, "DOCUMENT")}
    return {document.stem: built[document.stem] for document in documents().values()}


def parquet_only() -> tuple[str, ...]:
    """Stems of the tables with lists in their cells."""
    return tuple(table.stem for table in tables().values() if table.parquet_only)
