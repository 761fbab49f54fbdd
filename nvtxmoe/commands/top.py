"""Show the expert load of a running server, live in the terminal."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import click

from nvtxmoe.commands._common import command, json_option
from nvtxmoe.printing.console import is_terminal, print_json, stdout

#: A process that a signal ended has this exit code plus the signal's number.
SIGNALLED = 128


class _Seconds(click.FloatRange):
    """Seconds between two bounds; not-a-number is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


@command("top", "nvtxmoe top\nnvtxmoe top http://127.0.0.1:9476/metrics\nnvtxmoe top localhost:8000 --once --json")
@click.argument("url", required=False)
@click.option("--once", is_flag=True, help="Print one table and end. Rates need two scrapes: it takes --interval.")
@json_option
@click.option(
    "--interval",
    type=_Seconds(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two scrapes. Ranks publish once per second.",
)
@click.option(
    "--timeout",
    type=_Seconds(0.1, 600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Time that a scrape may take.",
)
@click.option(
    "--sort",
    type=click.Choice(["imbalance", "ranks", "active", "lost", "layer"]),
    default="imbalance",
    show_default=True,
    help="Order of the layers at the start.",
)
def top(url: str | None, once: bool, as_json: bool, interval: float, timeout: float, sort: str) -> int:
    """Show expert load of a running server, live: uneven layers, hot experts, tokens per second.

    URL is the server's /metrics; by default vLLM's on port 8000, else nvtxmoe's own on port 9476. The server needs
    NVTXMOE_METRICS=1. Up and down pick a layer, i r a t l sort, q quits. If the output is no terminal, a table is
    printed per interval. Exits with 2 when no page with nvtxmoe's series answers.
    Needs the extra [metrics].
    """
    if as_json and not once:
        raise click.UsageError("--json needs --once")
    from nvtxmoe.live_view.scrape import DEFAULT_URLS, find, full_url, scrape  # noqa: PLC0415  only when it runs

    live_url, first = find(DEFAULT_URLS if url is None else [full_url(url)], timeout)
    if as_json:
        from nvtxmoe.live_view.model import ordered, view_of  # noqa: PLC0415

        time.sleep(interval)
        view = view_of(scrape(live_url, timeout), first)
        print_json({"url": live_url, **view.as_dict(), "layers": [row.as_dict() for row in ordered(view.layers, sort)]})
        return 0
    from nvtxmoe.live_view.watch import follow, watch  # noqa: PLC0415  rich is not for JSON

    if once or not is_terminal(sys.stdout):
        follow(stdout(), lambda: scrape(live_url, timeout), first, interval, sort, times=1 if once else None)
        return 0
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    number = watch(stdout(), lambda: scrape(live_url, timeout), first, interval, sort, keyboard)
    return SIGNALLED + number if number else 0
