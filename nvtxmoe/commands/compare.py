"""Results side by side: what differs, and whether that is more than noise."""

from __future__ import annotations

from pathlib import Path

import click

from nvtxmoe.commands._common import PATH, command, json_option
from nvtxmoe.errors import GATE_FAILED, NvtxmoeError
from nvtxmoe.printing.console import print_json, stdout, waiting


@command(
    "compare",
    "nvtxmoe compare results-before results-after\n"
    "nvtxmoe compare results-before results-after --fail-if 'kernel_time>5%' --fail-if 'layer_js@decode>0.05'\n"
    "nvtxmoe compare tp1 tp2 tp4 --baseline tp2 --html comparison.html",
)
@click.argument("results", metavar="A B...", type=PATH, nargs=-1, required=True)
@click.option("--baseline", metavar="NAME", help="The result that the others are compared with. Default: the first.")
@click.option(
    "--fail-if",
    "fail_if",
    metavar="METRIC>NUMBER",
    multiple=True,
    help="Exit with 4 when B's METRIC is more above A's. May be given several times. See below.",
)
@click.option(
    "--gate",
    "rule",
    type=click.Choice(["significant", "interval", "estimate"]),
    default="significant",
    show_default=True,
    help="What must be beyond NUMBER: the estimate of a significant difference, the whole confidence interval, or the "
    "estimate alone.",
)
@click.option("-o", "--output", type=PATH, help="Also write tables and JSON into DIR/moe_comparison.")
@click.option("--html", "page", metavar="FILE", type=PATH, help="Also write figures, charts and notes as one page.")
@click.option(
    "--confidence",
    metavar="PERCENT",
    type=click.FloatRange(50, 99.9),
    default=95.0,
    show_default=True,
    help="Of the intervals; what is left is the probability of calling noise a difference.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the draws behind the noise of js.",
)
@json_option
def compare(
    results: tuple[Path, ...],
    baseline: str | None,
    fail_if: tuple[str, ...],
    rule: str,
    output: Path | None,
    page: Path | None,
    confidence: float,
    seed: int,
    as_json: bool,
) -> int:
    """Compare the results of two or more runs: routing policies, placements, versions of a model, loads.

    A and B are folders that `nvtxmoe analyze -o` or `nvtxmoe merge` wrote. Like steps are compared: prefill with
    prefill, decode with decode, at equal numbers of tokens. Differences are B's less A's.

    Of more than two results, each is compared with the baseline, under the names of their folders. Significance then
    takes into account how many there are.

    \b
    Metrics of --fail-if:
      kernel_time            kernel time of MoE layers a step on a rank
      kernel_time_per_token  the same over tokens
      own_time               kernel_time without collective kernels
      step_time              GPU time of whole steps on a rank
      imbalance              max/mean of a step's counts over experts
      js                     divergence of experts' shares, less noise (bits)

    NUMBER is in percent of A (5%), in ns, us or ms (3us), or for imbalance and js a plain number (0.2). With layer_
    before the metric, any single layer fails it; with @decode, @prefill or @mixed behind, only such steps count:
    layer_imbalance@decode>0.2. METRIC<-5% is against a fall. A condition that can't be decided is an error (2).

    Significance is against the scatter of steps within the two runs. How far runs of the same thing scatter is not in
    it: compare two of them first, and set NUMBER above that.
    """
    if len(results) < 2:
        raise click.UsageError("Missing argument 'B...'")
    from nvtxmoe_analysis.compare import compare as pair  # noqa: PLC0415  polars only when needed
    from nvtxmoe_analysis.compare import many  # noqa: PLC0415

    with waiting("comparing"):
        done: pair.Comparison | many.Comparisons
        if len(results) == 2:
            runs = many.baseline_first(results, baseline)
            done = pair.compare(*runs, fail_if=fail_if, rule=rule, confidence=confidence / 100.0, seed=seed)
            shown, several = pair.document(done), many.as_comparisons(done)
            files = [] if output is None else pair.write(done, output)
        else:
            done = several = many.compare_many(
                results, baseline=baseline, fail_if=fail_if, rule=rule, confidence=confidence / 100.0, seed=seed
            )
            shown = many.document(done)
            files = [] if output is None else many.write(done, output)
        if page is not None:
            from nvtxmoe_analysis.compare.page import write_page  # noqa: PLC0415  altair only where it is asked for

            files.append(write_page(several, page))
    shown["files"] = [str(file) for file in files]
    if as_json:
        print_json(shown)
    elif len(results) == 2:
        from nvtxmoe.printing.comparison import show_comparison  # noqa: PLC0415

        show_comparison(stdout(), shown)
    else:
        from nvtxmoe.printing.comparisons import show_comparisons  # noqa: PLC0415

        show_comparisons(stdout(), shown)
    if done.failed:
        return GATE_FAILED
    if done.undecided:
        first = done.undecided[0]
        raise NvtxmoeError(
            f"--fail-if {first.gate.text!r} can't be decided: {first.reason}",
            remedy="Capture more steps of the same load, or leave the condition out",
        )
    return 0
