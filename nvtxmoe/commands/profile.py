"""Run a server or a script under capture, end it without loss, and analyze it."""

from __future__ import annotations

from pathlib import Path

import click

from nvtxmoe.commands._common import PATH, command


@command(
    "profile",
    "nvtxmoe profile --num-requests 100 -- vllm serve Qwen/Qwen3-30B-A3B\n"
    "nvtxmoe profile -o results -- python offline.py\n"
    "nvtxmoe profile --mode moe -- vllm serve Qwen/Qwen3-30B-A3B",
)
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-o", "--output", type=PATH, help="New folder for all results. [default: profiling_results_TIME]")
@click.option(
    "--mode",
    type=click.Choice(["nsys", "moe", "both"]),
    default="nsys",
    show_default=True,
    help="nsys: routing and GPU time, with Nsight Systems. moe: routing alone, without it. both.",
)
@click.option("--nsys", type=PATH, help="The nsys to use. Default: $NVTXMOE_NSYS, then nsys on the PATH.")
@click.option("--python", type=PATH, help="The Python that COMMAND runs. Default: what COMMAND says.")
@click.option("--trace", default="cuda,nvtx", show_default=True, help="What nsys traces.")
@click.option(
    "--nsys-option", "nsys_options", multiple=True, metavar="OPTION", help="One more option for nsys profile."
)
@click.option("--log-interval", metavar="N", help="Token-level rows every N steps; 0: never.")
@click.option("--emit", metavar="LIST", help="What to record: a list of ranges, counts, topk, physical, pairs.")
@click.option("--layers", metavar="LIST", help="Only these layers, as 0,3,8-11.")
@click.option("--verbose", is_flag=True, help="Let the hooks say what they do, and show all of COMMAND's output.")
@click.option(
    "--num-requests", type=click.IntRange(min=1), metavar="N", help="COMMAND is a server: send N requests, then end it."
)
@click.option("--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="Requests at a time.")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Words of a request's prompt: about its tokens, more with a small vocabulary.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of an answer.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the requests' prompts.")
@click.option(
    "--client",
    type=click.Choice(["auto", "vllm", "nvtxmoe"]),
    default="auto",
    show_default=True,
    help="Who sends the requests: `vllm bench serve` or nvtxmoe. auto: the first where it is there.",
)
@click.option("--host", help="Where the server listens. Default: what COMMAND says, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port. Default: what COMMAND says, else 8000.")
@click.option(
    "--ready-timeout", type=click.FloatRange(min=0), default=1800.0, show_default=True, metavar="SECONDS",
    help="How long the server may take to load.",
)  # fmt: skip
@click.option(
    "--stop-timeout", type=click.FloatRange(min=0), default=120.0, show_default=True, metavar="SECONDS",
    help="How long COMMAND may take to end when asked, before force is used.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit with 3 when the capture is incomplete.")
@click.option("--no-analyze", is_flag=True, help="Keep the report, export and analyse nothing.")
@click.option("--dry-run", is_flag=True, help="Print the command and its environment; run nothing, write nothing.")
def profile(
    words: tuple[str, ...],
    output: Path | None,
    mode: str,
    nsys: Path | None,
    python: Path | None,
    trace: str,
    nsys_options: tuple[str, ...],
    log_interval: str | None,
    emit: str | None,
    layers: str | None,
    verbose: bool,
    num_requests: int | None,
    concurrency: int,
    prompt_tokens: int,
    max_tokens: int,
    seed: int,
    client: str,
    host: str | None,
    port: int | None,
    ready_timeout: float,
    stop_timeout: float,
    strict: bool,
    no_analyze: bool,
    dry_run: bool,
) -> int:
    """Run COMMAND under capture, and analyse what was recorded.

    COMMAND is a server or an offline script, unchanged. A server runs until Ctrl-C, or until the requests of
    --num-requests are answered; then it is asked to end by itself, since what it has recorded is written as it ends.

    Exit codes: 0; 1 when COMMAND or a request failed; 2 when the run could not be made or read; 3 for an incomplete
    capture with --strict.
    """
    from nvtxmoe.profile.capture_size import LoadSize  # noqa: PLC0415
    from nvtxmoe.profile.conduct_run import RunOptions, run_profile  # noqa: PLC0415  rich only when needed
    from nvtxmoe.profile.plan import Request, make_plan  # noqa: PLC0415

    load = None if num_requests is None else LoadSize(num_requests, concurrency, prompt_tokens, max_tokens)
    request = Request(
        command=words,
        mode=mode,
        folder=output,
        nsys=nsys,
        python=python,
        trace=trace,
        nsys_options=nsys_options,
        settings={"log_interval": log_interval, "emit": emit, "layers": layers, "verbose": "1" if verbose else None},
        load=load,
        host=host,
        port=port,
        stop_timeout_s=stop_timeout,
    )
    plan = make_plan(request, tolerant=dry_run)
    if dry_run:
        for note in plan.notes:
            click.echo(f"# {note}")
        click.echo(plan.shown())
        return 0
    return run_profile(
        plan,
        RunOptions(
            load=load,
            seed=seed,
            client=client,
            ready_timeout_s=ready_timeout,
            stop_timeout_s=stop_timeout,
            analyze=not no_analyze,
            strict=strict,
            verbose=verbose,
        ),
    )


# Options end where COMMAND begins, also without a --.
profile.context_settings["allow_interspersed_args"] = False
