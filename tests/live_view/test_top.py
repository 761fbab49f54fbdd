"""``nvtxmoe top`` as a user has it: in a pseudo terminal, against nvtxmoe's own server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from tests.support.cli import run
from tests.support.live_pages import Served, answering, http, serving, text_of
from tests.support.paths import ROOT
from tests.support.terminals import terminal

ALTERNATE, BACK, SHOWN = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server whose ranks go on."""
    served, over = Served(tmp_path), threading.Event()
    served.steps(10)

    def go_on() -> None:
        while not over.wait(0.05):
            served.steps(1)

    thread = threading.Thread(target=go_on)
    thread.start()
    with serving(served.collector) as address:
        yield address
    over.set()
    thread.join()


def layers(frame: str) -> list[int]:
    """Numbers of the layers, from the top."""
    return [int(found[1]) for found in re.finditer(r"^[> ] +(\d+) +\d+\.\d\d ", frame, re.MULTILINE)]


def picked(frame: str) -> int | None:
    found = re.search(r"^> +(\d+) ", frame, re.MULTILINE)
    return int(found[1]) if found else None


def test_keys_in_a_terminal(url: str) -> None:
    """Look, sort, pick a layer, make the window wider, quit: the terminal is as before."""
    with terminal("top", url, "--interval", "0.2") as screen:
        before = screen.mode()
        frame = screen.until(lambda frame: re.search(r"tokens [\d,]+/s", frame) and "q quit" in frame)
        assert ALTERNATE in screen.raw and not screen.echoes()
        assert (layers(frame), picked(frame)) == ([3, 2, 1], 3)
        lines = frame.split("\n")
        assert max(map(cell_len, lines)) <= 80 and len(lines) <= 24
        assert "made-up  2 ranks  vLLM 0.33.0" in lines[0]
        assert re.search(r"layer 3 hottest:  expert 0 56\.25 %  expert 4 43\.75 %", frame)
        assert COLOUR.search(screen.raw)
        screen.press("\x1b[B")
        screen.until(lambda frame: picked(frame) == 2 and "layer 2 hottest:" in frame)
        screen.press("l")
        screen.until(lambda frame: (layers(frame), picked(frame)) == ([1, 2, 3], 2))
        screen.press("\x1b[A\x1b[A")
        screen.until(lambda frame: picked(frame) == 1)
        screen.press("t")
        screen.until(lambda frame: layers(frame) == [2, 3, 1])
        screen.resize(120, 40)
        screen.until(lambda frame: len(frame.split("\n")) == 40)
        screen.press("q")
        assert screen.ended() == 0
        assert screen.mode() == before
        assert screen.raw.index(BACK) > screen.raw.rindex(ALTERNATE)
        assert SHOWN in screen.raw[screen.raw.rindex("\x1b[?25l") :]


@pytest.mark.parametrize(
    ("how", "code"),
    [("ctrl-c", 128 + signal.SIGINT), ("SIGTERM", 128 + signal.SIGTERM), ("SIGHUP", 128 + signal.SIGHUP)],
)
def test_signals_give_the_terminal_back(url: str, how: str, code: int) -> None:
    with terminal("top", url) as screen:
        before = screen.mode()
        screen.until(lambda frame: "q quit" in frame)
        assert screen.mode() != before
        if how == "ctrl-c":
            screen.press("\x03")
        else:
            screen.process.send_signal(signal.Signals[how])
        assert screen.ended() == code
        assert screen.mode() == before
        assert BACK in screen.raw and SHOWN in screen.raw[screen.raw.rindex("\x1b[?25l") :]
        assert "Traceback" not in screen.raw


def test_q_works_while_the_server_hangs(tmp_path: Path) -> None:
    """One page, then silence: keys go on, and the process ends at once."""
    served, over, asked = Served(tmp_path), threading.Event(), threading.Event()
    served.steps(3)
    pages = [http(text_of(served.collector))]

    def answer(client: Any) -> None:
        if pages:
            client.sendall(pages.pop())
        else:
            asked.set()
            over.wait(600)

    with answering(answer) as url, terminal("top", url, "--interval", "0.1", "--timeout", "600") as screen:
        screen.until(lambda frame: "q quit" in frame)
        assert asked.wait(120)
        screen.press("l")
        screen.until(lambda frame: layers(frame) == [1, 2, 3])
        screen.press("q")
        assert screen.ended() == 0
        over.set()


def test_a_server_that_ends_and_comes_back(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.steps(3)
    good, answers = http(text_of(served.collector)), {"now": b""}
    answers["now"] = good
    with (
        answering(lambda client: client.sendall(answers["now"])) as url,
        terminal("top", url, "--interval", "0.1") as screen,
    ):
        screen.until(lambda frame: "q quit" in frame)
        answers["now"] = http("no", "503 Service Unavailable")
        words = "the server answers 503 Service Unavailable"
        frame = screen.until(lambda frame: words in " ".join(frame.split()) and "q quit" in frame)
        assert layers(frame) == [3, 2, 1]
        answers["now"] = good
        screen.until(lambda frame: "503" not in frame and "q quit" in frame)
        screen.press("q")
        assert screen.ended() == 0


def test_no_colours(url: str) -> None:
    with terminal("top", url, NO_COLOR="1") as screen:
        screen.until(lambda frame: "q quit" in frame)
        screen.press("q")
        assert screen.ended() == 0
        assert not COLOUR.search(screen.raw)


def test_without_a_keyboard(url: str) -> None:
    """Standard input is no terminal: it is drawn, without keys, until a signal comes."""
    with terminal("top", url, "--interval", "0.1", keys=False) as screen:
        frame = screen.until(lambda frame: re.search(r"tokens [\d,]+/s", frame) and "█ is" in frame)
        assert "q quit" not in frame and picked(frame) is None and layers(frame) == [3, 2, 1]
        screen.process.send_signal(signal.SIGTERM)
        assert screen.ended() == 128 + signal.SIGTERM
        assert BACK in screen.raw


def test_the_first_error_leaves_the_terminal_alone() -> None:
    with terminal("top", "127.0.0.1:1") as screen:
        assert screen.ended() == 2
        assert "\x1b" not in screen.raw
        assert screen.raw.startswith("nvtxmoe: http://127.0.0.1:1/metrics: Connection refused. ")


def test_into_a_pipe(url: str) -> None:
    """A table per interval, for logs."""
    command = [sys.executable, "-m", "nvtxmoe", "top", url, "--interval", "0.1"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None and process.stderr is not None
        found = 0
        for line in process.stdout:
            assert "\x1b" not in line
            found += line.startswith("made-up  2 ranks")
            if found == 3:
                break
        process.stdout.close()
        assert process.stderr.read() == ""


def test_once(url: str) -> None:
    ran = run("top", url, "--once", "--interval", "0.2", "--sort", "lost")
    assert (ran.code, ran.err) == (0, "")
    assert layers(ran.out) == [2, 3, 1]
    assert re.search(r"tokens [\d,]+/s  prefill 0/s  decode [\d,]+/s  steps [\d.]+/s", ran.out)
    assert ran.out.count("made-up") == 1 and "q quit" not in ran.out and "\x1b" not in ran.out


def test_once_as_json(url: str) -> None:
    found = run("top", url, "--once", "--json", "--interval", "2").json
    assert set(found) == {
        "url", "model", "vllm", "nvtxmoe", "ranks", "tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s",
        "steps_per_s", "rates_over_s", "dropped_steps", "hidden_layers", "failed_hooks", "own_cpu_ratio",
        "own_cpu_us_per_step", "collect_us", "rank_balancedness", "estimated_lost_us_per_step", "estimated_coverage",
        "heat", "layers",
    }  # fmt: skip
    assert found["url"] == url
    assert (found["model"], found["ranks"]) == ("made-up", 2)
    assert found["rates_over_s"] >= 2
    assert found["steps_per_s"] > 0
    # Ranks publish one after the other: a scrape between two of them sees a step less of the second.
    assert found["tokens_per_s"] == pytest.approx(4 * found["steps_per_s"], abs=4 / found["rates_over_s"] + 1e-6)
    assert [row["layer"] for row in found["layers"]] == [3, 2, 1]
    assert set(found["layers"][0]) == {
        "layer", "expert_max_over_mean", "active_experts", "experts_never_hit", "rank_balancedness",
        "estimated_lost_us_per_step", "assignments_per_s", "hottest", "coldest", "heat",
    }  # fmt: skip
    assert found["layers"][0]["hottest"][0] == {"expert": 0, "share": 0.5625}
