"""Make the golden files again: python tests/golden/make.py CAPTURES, a folder of the unpacked captures."""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
import tempfile
from pathlib import Path

import polars as pl

from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.readers.sqlite import SqliteExport
from nvtxmoe_analysis.trimming.trim import EXPORT_NAMES, trim
from nvtxmoe_analysis.trimming.write_export import write_export

HERE = Path(__file__).parent


def make(captures: Path) -> None:
    """Write every golden file."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        for name in ("h100-1gpu-graphs", "h100-2gpu-ep2-graphs"):
            trim(open_export(captures / f"{name}.sqlite"), stage / f"{name}.sqlite")
            compress(stage / f"{name}.sqlite")
        trim(open_export(captures / "h100-1gpu-graphs_pqtdir"), stage / "h100-1gpu-graphs")
        pack(stage / "h100-1gpu-graphs", HERE / "h100-1gpu-graphs.parquetdir.tar.xz")
        reduce_encodings(captures / "payload-encodings.sqlite", stage / "payload-encodings.sqlite")
        compress(stage / "payload-encodings.sqlite")
    trim(open_export(captures / "h100-2gpu-ep2-graphs.sqlite"), HERE / "h100-2gpu-ep2-graphs")


def reduce_encodings(source: Path, out: Path) -> None:
    """Keep events, payloads and their schemas. `nvtxmoe trim` can't: the domain isn't ours."""
    export = SqliteExport(source)
    nvtx = export.read(nsys_tables.NVTX, row=True)
    blobs = export.read_blobs(nvtx["domainId"].unique().to_list()).rename({"blob": nsys_tables.NVTX_BLOB})
    versions = export.read(nsys_tables.EXPORT_META).filter(pl.col("name").str.contains(EXPORT_NAMES))
    frames = {
        nsys_tables.NVTX: nvtx.join(blobs, on="row", how="left", maintain_order="left").drop("row"),
        nsys_tables.PAYLOAD_SCHEMAS: export.read(nsys_tables.PAYLOAD_SCHEMAS),
        nsys_tables.PAYLOAD_ENTRIES: export.read(nsys_tables.PAYLOAD_ENTRIES),
        nsys_tables.STRINGS: export.read(nsys_tables.STRINGS, only=("id", nvtx["textId"].drop_nulls().to_list())),
        nsys_tables.EXPORT_META: versions,
    }
    write_export(frames, out)


def compress(file: Path) -> None:
    """Write file.xz beside this script."""
    packed = lzma.compress(file.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
    (HERE / f"{file.name}.xz").write_bytes(packed)


def pack(folder: Path, out: Path) -> None:
    """Write a folder's files as tar.xz, the same bytes each time."""
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for file in sorted(folder.iterdir()):
            member = tarfile.TarInfo(f"{folder.name}/{file.name}")
            member.size = file.stat().st_size
            archive.addfile(member, io.BytesIO(file.read_bytes()))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
