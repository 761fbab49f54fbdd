"""Write a copy of an export with only what the analysis needs, fit for sharing."""

from __future__ import annotations

from pathlib import Path

import click

from nvtxmoe.commands._common import PATH, command, json_option, opening_options
from nvtxmoe.commands._selection import step_range
from nvtxmoe.printing.console import print_json, stdout, waiting


@command(
    "trim", "nvtxmoe trim report1.nsys-rep shared.sqlite\nnvtxmoe trim report1.sqlite shared_parquet --steps 100:149"
)
@click.argument("source", metavar="IN", type=PATH)
@click.argument("out", metavar="OUT", type=PATH)
@click.option(
    "--steps",
    metavar="FIRST:LAST",
    help="Keep only the steps FIRST to LAST of all ranks, both inclusive; either may be left out.",
)
@json_option
@opening_options
def trim(source: Path, out: Path, steps: str | None, as_json: bool, nsys: Path | None, cache_dir: Path | None) -> None:
    """Write the export IN to OUT with only what the analysis reads.

    Environment, commands, users, hosts and paths stay behind; every figure of `nvtxmoe analyze` stays the same. With
    --steps, so does every figure of those steps, with two exceptions: `timestamp_sec` counts from the first of them,
    and several reports of one run may lack waiting and transfer, as fewer collectives are left to align their clocks.
    IN is a .nsys-rep, a SQLite export, or a folder of Parquet files. OUT becomes a SQLite file when its name ends
    in .sqlite or .db, else a folder of Parquet files; an export of that name is replaced.
    """
    from nvtxmoe_analysis.core.text import number  # noqa: PLC0415  only when it prints
    from nvtxmoe_analysis.readers.open import open_export  # noqa: PLC0415  polars only when needed
    from nvtxmoe_analysis.trimming.trim import trim as run  # noqa: PLC0415
    from nvtxmoe_analysis.trimming.write_export import check_target, is_sqlite  # noqa: PLC0415

    first, last = step_range(steps)
    check_target(out, source)
    with waiting(f"reading {source.name}"):
        done = run(open_export(source, cache_dir=cache_dir, nsys=nsys), out, first_step=first, last_step=last)
    if as_json:
        print_json(
            {
                "source": str(done.source),
                "out": str(done.out),
                "bytes_before": done.bytes_before,
                "bytes_after": done.bytes_after,
                "rows_before": done.rows_before,
                "rows_after": done.rows_after,
                "tables": {name: {"before": b, "after": a} for name, (b, a) in done.rows.items()},
            }
        )
        return
    grown = is_sqlite(out) and done.bytes_after > done.bytes_before
    stdout().print(
        f"{done.out}: {_size(done.bytes_before)} -> {_size(done.bytes_after)}, "
        f"{done.rows_after:,} of {number(done.rows_before, 'row')} kept"
        + (": there was nothing to trim" if done.rows_after == done.rows_before else "")
        + (". SQLite files are not compressed: name a folder for Parquet files, which are" if grown else ""),
        markup=False,
        soft_wrap=True,
    )


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1000:.1f} kB"
