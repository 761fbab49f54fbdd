"""Measures the bytes of captures: nvtxmoe/sizing/estimate.py, docs/development/benchmarks-capture-size.md.

``python scripts/bench/capture_size.py [--nsys NSYS] [--repeats 5] [--capture EXPORT.sqlite ...]`` emits payloads of
skewed routing in the word form under a real nsys and weighs the .nsys-rep and its SQLite export (the slope between two
lengths, so that what a report holds anyway drops out), packs the same payloads into journal blocks, weighs the rows
of exports of real GPU captures, and those of the results of analysing captures. By default the exports are the golden
captures, trimmed to the columns that the analysis reads: their rows of CUDA activity are a floor. Prints Markdown.
"""

from __future__ import annotations

import argparse
import lzma
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nvtxmoe.formats import journal, schema, word_payloads  # noqa: E402
from scripts.bench.capture_rows import TABLES, activity, row_bytes  # noqa: E402
from scripts.bench.result_rows import GROWING, LONG_STEPS, csv_row_bytes, parquet_bytes  # noqa: E402
from scripts.bench.result_rows import LAYERS as RESULT_LAYERS  # noqa: E402

GOLDEN = [ROOT / "tests" / "golden" / f"h100-{name}.sqlite.xz" for name in ("1gpu-graphs", "2gpu-ep2-graphs")]
#: Captured by nvtxmoe itself: their moe.meta tells all that the results have columns for.
CAPTURED = [
    ROOT / "tests" / "golden" / f"h100-{name}-capture.sqlite.xz"
    for name in ("vllm", "2gpu-vllm-tp2", "2gpu-vllm-eplb", "2gpu-vllm-dp2")
]
EXPERTS, TOP_K, TOKENS, LAYERS = 128, 8, 32, 48
#: Steps between flushes of the journal: 1 s of 20 ms.
STEPS_A_BLOCK = 50
#: Of a journal record, whatever it holds: what makes small and large counts fit one curve.
RECORD_BYTES = 8.0
#: Of a step and layer, drawn one by one.
MOST_ASSIGNMENTS = 65_536
SHORT, LONG = 20_000, 120_000
KINDS = ("marks of counts", "marks of top-k", "ranges")


def routing(
    rng: np.random.Generator, tokens: int, experts: int, top_k: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
    """Experts and weights [tokens, top_k] of softmax routing whose expert popularity falls as rank**-0.5."""
    popular = -0.5 * np.log1p(rng.permutation(experts))
    logits = popular + rng.gumbel(size=(tokens, experts))
    chosen = np.argsort(-logits, axis=1)[:, :top_k]
    exponentials = np.exp(np.take_along_axis(logits, chosen, axis=1))
    return chosen.astype(np.uint16), (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def counts_payload(step: int, layer: int, ids: npt.NDArray[np.uint16], experts: int) -> bytes:
    """Bytes of moe.counts."""
    counts = np.bincount(ids.ravel(), minlength=experts)
    return np.array((step, layer, 0, len(ids), ids.shape[1], counts), schema.counts_dtype(experts)).tobytes()


def topk_payload(step: int, layer: int, ids: npt.NDArray[np.uint16], weights: npt.NDArray[np.float32]) -> bytes:
    """Bytes of moe.topk."""
    rows = np.zeros(len(ids), schema.topk_dtype(ids.shape[1]))
    rows["step"], rows["layer"], rows["token"] = step, layer, np.arange(len(ids))
    rows["experts"], rows["weights"] = ids, weights
    return rows.tobytes()


# Under nsys ----------------------------------------------------------------------------------------------------------


def payload_words(kind: str) -> Iterator[tuple[str, int]]:
    """Endless marks of the word form."""
    rng = np.random.default_rng(1)
    step = 0
    while True:
        for layer in range(LAYERS):
            ids, weights = routing(rng, TOKENS, EXPERTS, TOP_K)
            if kind == "marks of counts":
                yield from word_payloads.marks("counts", counts_payload(step, layer, ids, EXPERTS))
            else:
                yield from word_payloads.marks("topk", topk_payload(step, layer, ids, weights))
        step += 1


def emit(kind: str, count: int) -> None:
    """Emit that many marks or ranges, as capture does."""
    import nvtx  # noqa: PLC0415  in the process under nsys only

    if kind != "ranges":
        for (message, word), _ in zip(payload_words(kind), range(count), strict=False):
            nvtx.mark(message, domain=schema.DOMAIN, payload=word)
        return
    done = 0
    while done < count:
        for layer in range(LAYERS):
            nvtx.push_range(f"{schema.LAYER_PREFIX}{layer}", domain=schema.DOMAIN, category="layer", payload=layer)
            for phase in schema.PHASES:
                nvtx.push_range(schema.PHASE_PREFIX + phase, domain=schema.DOMAIN, category="phase", payload=layer)
                nvtx.pop_range(domain=schema.DOMAIN)
            nvtx.pop_range(domain=schema.DOMAIN)
            done += 1 + len(schema.PHASES)


def capture(nsys: Path, folder: Path, kind: str, count: int) -> tuple[int, int]:
    """Bytes of the report and of its SQLite export."""
    report, export = folder / "size.nsys-rep", folder / "size.sqlite"
    options = ["-t", "nvtx", "-s", "none", "--cpuctxsw=none", "--force-overwrite=true", "-o", str(report)]
    program = [sys.executable, str(Path(__file__).resolve()), "--emit", kind, str(count)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    exporting = ["export", "--type", "sqlite", "--force-overwrite=true", "-o", str(export), str(report)]
    for command in ([str(nsys), "profile", *options, *program], [str(nsys), *exporting]):
        subprocess.run(command, env=environ, check=True, capture_output=True)
    with closing(sqlite3.connect(export)) as database:
        rows = database.execute("SELECT count(*) FROM NVTX_EVENTS WHERE eventType IN (34, 59)").fetchone()[0]
    if rows < count:
        raise SystemExit(f"{kind}: {count:,} emitted, {rows:,} recorded")
    sizes = report.stat().st_size, export.stat().st_size
    report.unlink()
    export.unlink()
    return sizes


def slopes(nsys: Path, folder: Path, kind: str) -> tuple[float, float]:
    """Bytes an event in the report and in the export."""
    short, long = (capture(nsys, folder, kind, count) for count in (SHORT, LONG))
    count = LONG - SHORT
    if kind == "ranges":  # a whole round of layers is emitted at the end
        a_round = LAYERS * (1 + len(schema.PHASES))
        count = (-(-LONG // a_round) + SHORT // -a_round) * a_round
    return (long[0] - short[0]) / count, (long[1] - short[1]) / count


# The journal ---------------------------------------------------------------------------------------------------------


def journal_bytes(
    event: str, tokens: int, experts: int, top_k: int, seed: int, layers: int = LAYERS, steps: int = STEPS_A_BLOCK
) -> float:
    """Bytes a (step, layer) of one event in a journal's block."""
    rng = np.random.default_rng(seed)
    records = bytearray()
    for step in range(steps):
        for layer in range(layers):
            ids, weights = routing(rng, tokens, experts, top_k)
            payload = (
                counts_payload(step, layer, ids, experts)
                if event == "counts"
                else topk_payload(step, layer, ids, weights)
            )
            records += journal.record(event, 1_700_000_000_000_000_000 + step * 20_000_000, payload)
    return len(journal.block(bytes(records))) / (steps * layers)


def counts_fit(mean: float, experts: int, repeats: int) -> list[float]:
    """Bytes an expert, beyond those of any record, where the mean expert gets ``mean`` assignments."""
    tokens = round(mean * experts / TOP_K)
    sizes = [journal_bytes("counts", tokens, experts, TOP_K, seed, layers=8) for seed in range(repeats)]
    return [(size - RECORD_BYTES) / experts for size in sizes]


def parquet_fit(mean: float, experts: int, repeats: int) -> list[float]:
    """Bytes an expert in moe_step_activations.parquet, where the mean expert gets ``mean`` assignments."""
    tokens, sizes = round(mean * experts / TOP_K), []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        drawn = (routing(rng, tokens, experts, TOP_K)[0] for _ in range(LONG_STEPS * RESULT_LAYERS))
        sizes.append(parquet_bytes(drawn, experts) / experts)
    return sizes


# The page ------------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int = 1) -> str:
    """Median, lowest and highest as cells of a table."""
    return f"{statistics.median(values):.{digits}f} | {min(values):.{digits}f} to {max(values):.{digits}f}"


def nvtx_table(nsys: Path, repeats: int) -> None:
    """Bytes an event of the word form."""
    print("| event, int payload | .nsys-rep, bytes | range | SQLite export, bytes | range |\n" + "| --- " * 5 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            fits = [slopes(nsys, Path(folder), kind) for _ in range(repeats)]
            print(f"| {kind} | {spread([r for r, _ in fits])} | {spread([e for _, e in fits])} |")
    print("| binary payloads, CUDA activity | not measured yet | | below | |\n")


def journal_table(repeats: int) -> None:
    """Bytes of the journal's records."""
    counts_table("journal", counts_fit, repeats)
    print("| top-k of | journal, bytes a token | range |\n" + "| --- " * 3 + "|")
    for top_k in (2, 4, 8):
        token_bytes = [
            journal_bytes("topk", 512, EXPERTS, top_k, seed, layers=8, steps=1) / 512 for seed in range(repeats)
        ]
        print(f"| {top_k} of {EXPERTS} | {spread(token_bytes)} |")
    sizes = [journal_bytes("topk", 1, EXPERTS, 2, seed, layers=8, steps=1) for seed in range(repeats)]
    print(f"\nA top-k record of one token, 2 of {EXPERTS}: {statistics.median(sizes):.0f} bytes.\n")


def counts_table(what: str, fit: Callable[[float, int, int], list[float]], repeats: int) -> None:
    """Bytes an expert by how much the mean expert gets."""
    print(f"| assignments a mean expert | {what}, bytes an expert | range |\n" + "| --- " * 3 + "|")
    for mean in (1 / 16, 1 / 4, 1, 4, 16, 64, 256, 1024):
        of_experts = [experts for experts in (64, 128, 256) if TOP_K <= mean * experts <= MOST_ASSIGNMENTS]
        sizes = [size for experts in of_experts for size in fit(mean, experts, repeats)]
        print(f"| {mean:g} | {spread(sizes, 2)} |")
    print()


def results_table(captures: list[Path]) -> None:
    """Bytes a row of the results of real captures, with the number of rows."""
    print(f"| capture | {' | '.join(GROWING)} |\n" + "| --- " * (1 + len(GROWING)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for capture in captures:
            sizes = csv_row_bytes(unpacked(capture, Path(folder)))
            cells = [f"{sizes[stem][1]:.1f} ({sizes[stem][0]:,} rows)" if stem in sizes else "" for stem in GROWING]
            print(f"| {capture.name.partition('.')[0]} | {' | '.join(cells)} |")
    print()


def unpacked(capture: Path, folder: Path) -> Path:
    """An export as it is, or out of its .xz."""
    if capture.suffix != ".xz":
        return capture
    export = folder / capture.stem
    with lzma.open(capture) as packed, export.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return export


def capture_table(captures: list[Path]) -> None:
    """Bytes a row of real exports, with the number of columns."""
    heads = [*TABLES.values(), "operations a (step, layer)", "calls a kernel in steps"]
    print(f"| capture | {' | '.join(heads)} |\n" + "| --- " * (1 + len(heads)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for capture in captures:
            export = unpacked(capture, Path(folder))
            sizes = row_bytes(export)
            cells = [f"{sizes[t][2]:.1f} ({sizes[t][0]} columns)" if t in sizes else "-" for t in TABLES]
            operations, calls = activity(export)
            print(f"| {export.stem} | {' | '.join(cells)} | {operations:.1f} | {calls:.2f} |")
    print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Bytes of a capture, measured.")
    parser.add_argument("--nsys", type=Path, default=ROOT / ".cache" / "nsys" / "bin" / "nsys")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--capture", type=Path, nargs="+", default=GOLDEN, help="SQLite exports of GPU captures")
    parser.add_argument("--results", type=Path, nargs="+", default=CAPTURED, help="exports whose results are weighed")
    arguments = parser.parse_args()
    nvtx_table(arguments.nsys, arguments.repeats)
    journal_table(arguments.repeats)
    capture_table(arguments.capture)
    results_table(arguments.results)
    counts_table("moe_step_activations", parquet_fit, arguments.repeats)
    text = subprocess.run([arguments.nsys, "--version"], capture_output=True, text=True, check=True).stdout
    print(
        f"nsys {text.split()[-1]}, nvtx {version('nvtx')}, Python {platform.python_version()}, numpy {np.__version__}; "
        f"{arguments.repeats} repetitions."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--emit"]:
        emit(sys.argv[2], int(sys.argv[3]))
    else:
        main()
