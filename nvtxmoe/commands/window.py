"""Record a span of time of a running server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvtxmoe.commands._common import PATH, command, ending, json_option
from nvtxmoe.errors import BAD_INPUT
from nvtxmoe.printing.console import print_json, progress_bar, stdout

if TYPE_CHECKING:
    from nvtxmoe.window_client import Answers


@command(
    "window",
    "nvtxmoe window start /tmp/vllm_profiling/session_20251125_083000\n"
    "nvtxmoe window status /tmp/vllm_profiling/session_20251125_083000\n"
    "nvtxmoe window stop /tmp/vllm_profiling/session_20251125_083000",
)
@click.argument("action", type=click.Choice(["start", "stop", "status"]))
@click.argument("session", metavar="SESSION", type=PATH)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Time that a rank may take to answer.",
)
@click.option("--no-merge", is_flag=True, help="stop: leave the window's journals as they are.")
@click.option("--strict", is_flag=True, help="stop: exit with 3 when the window is incomplete.")
@json_option
def window(action: str, session: Path, timeout: float, no_merge: bool, strict: bool, as_json: bool) -> int:
    """Record a span of time of a running server: start, then stop. The server goes on.

    SESSION is the folder that the server prints when it starts with NVTXMOE_WINDOW=closed. start opens a window on all
    ranks of this machine, or on none. stop closes it and writes the standard set of its steps into SESSION/windows/N.
    status prints whether a window is open, and what it has recorded. Exits with 2 when a rank does not answer.
    """
    from nvtxmoe import window_client  # noqa: PLC0415  only when it runs
    from nvtxmoe.printing.window import show_window  # noqa: PLC0415  rich is not for JSON

    if action == "stop":
        return _stop(session, timeout, merges=not no_merge, strict=strict, as_json=as_json)
    answers = window_client.start(session, timeout) if action == "start" else window_client.status(session, timeout)
    if as_json:
        print_json(_described(answers))
    else:
        show_window(stdout(), _described(answers), session)
    return BAD_INPUT if answers.silent else 0


def _stop(session: Path, timeout: float, *, merges: bool, strict: bool, as_json: bool) -> int:
    from nvtxmoe import window_client  # noqa: PLC0415  only when it runs
    from nvtxmoe.printing.window import show_window  # noqa: PLC0415  rich is not for JSON

    answers = window_client.stop(session, timeout)
    assert answers.window is not None
    folder = window_client.window_folder(session, answers.window["number"])
    fields: dict[str, Any] = _described(answers)
    if not as_json:
        show_window(stdout(), fields, session)
    status = BAD_INPUT if answers.silent else 0
    if not answers.window["steps"] or not folder.is_dir() or not merges:
        if as_json:
            print_json(fields)
        elif not answers.window["steps"]:
            stdout().print("No step ran in the window: there are no results.")
        return status
    from nvtxmoe_analysis.analyze import analyze  # noqa: PLC0415  polars when needed
    from nvtxmoe_analysis.overview import overview  # noqa: PLC0415

    with progress_bar() as report_progress:
        done = analyze([folder], folder, tell=report_progress)
    if as_json:
        print_json({**fields, **overview(done)})
    else:
        from nvtxmoe.printing.analysis import show_analysis  # noqa: PLC0415

        show_analysis(stdout(), overview(done))
    return status or ending(done, strict=strict, partial_ok=False)


def _described(answers: Answers) -> dict[str, Any]:
    failed = {rank: answer["failure"] for rank, answer in answers.by_rank.items() if answer.get("failure")}
    return {
        "window": answers.window,
        "silent": dict(answers.silent),
        "absent": list(answers.absent),
        "failed": failed,
        "ranks": [{"rank": rank, **_rank_fields(answer)} for rank, answer in sorted(answers.by_rank.items())],
    }


def _rank_fields(answer: Mapping[str, Any]) -> dict[str, Any]:
    window = answer.get("window") or {}
    return {"next_step": answer["next_step"], "steps": window.get("steps", 0), "tokens": window.get("tokens", 0)}
