"""Addresses and servers that do not answer as they should: one line, exit code 2."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.live_view import scrape as scraping
from nvtxmoe.live_view.scrape import full_url, parse
from tests.support.cli import refused, run
from tests.support.live_pages import Served, answering, http, serving
from tests.support.prometheus import free_port


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000/metrics"),
        ("http://10.0.0.1:9476", "http://10.0.0.1:9476/metrics"),
        ("https://host/", "https://host/metrics"),
        ("http://[::1]:9476/metrics", "http://[::1]:9476/metrics"),
        ("http://host/prefix/metrics?a=b", "http://host/prefix/metrics?a=b"),
        ("host", "http://host/metrics"),
    ],
)
def test_addresses_are_completed(text: str, url: str) -> None:
    assert full_url(text) == url


@pytest.mark.parametrize(
    "text", ["", "file:///etc/passwd", "ftp://host/x", "http://", "host:port", "a b", "http://h:99999", "h\n"]
)
def test_what_is_no_address(text: str) -> None:
    refused(run("top", text, "--once"), "not an address of metrics. Give a URL such as http://127.0.0.1:8000/metrics")


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}/metrics"
    for more in ((), ("--once",), ("--once", "--json")):
        assert refused(run("top", url, *more)) == (
            f"nvtxmoe: {url}: Connection refused. Check that the server runs and that the address is right\n"
        )


def test_no_address_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first of the two usual ones that has the series."""
    urls = tuple(f"http://127.0.0.1:{free_port()}/metrics" for _ in range(2))
    monkeypatch.setattr(scraping, "DEFAULT_URLS", urls)
    refused(run("top", "--once"), f"{urls[0]}: Connection refused; {urls[1]}: Connection refused. Give the address")
    served = Served(tmp_path)
    served.steps(1)
    with answering(lambda client: client.sendall(http("vllm:x 1\n"))) as other, serving(served.collector) as url:
        monkeypatch.setattr(scraping, "DEFAULT_URLS", (other, url))
        assert run("top", "--once", "--json", "--interval", "0.1").json["url"] == url


@pytest.mark.parametrize("answer", [http("vllm:tokens 1.0\n# nvtxmoe_ 3\n"), http(""), http("<html>nvtxmoe_</html>")])
def test_a_page_without_series(answer: bytes) -> None:
    with answering(lambda client: client.sendall(answer)) as url:
        refused(run("top", url), f"{url}: the page has no nvtxmoe_ series. Start the server with NVTXMOE_ENABLE=1")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http("no", "404 Not Found"), "the server answers 404 Not Found. Check the address"),
        (http("no", "500 \x1b[2J"), "the server answers 500"),
        (http('nvtxmoe_ranks{rank="0" 1.0 x\n'), "the page's nvtxmoe_ series can't be read (ValueError"),
        (http("nvtxmoe_ranks one\n"), "the page's nvtxmoe_ series can't be read (ValueError"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0-OpenSSH"),
        (b"", "Remote end closed connection without response"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nnvtxmoe_", "Check that"),
        (b"HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "302"),
    ],
)
def test_answers_that_are_no_page(answer: bytes, words: str) -> None:
    with answering(lambda client: client.sendall(answer)) as url:
        assert "\x1b" not in refused(run("top", url, "--once"), url, words)


def test_a_server_that_hangs() -> None:
    over = threading.Event()
    with answering(lambda _: over.wait(60)) as url:
        began = time.monotonic()
        refused(run("top", url, "--timeout", "0.3"), f"{url}: no answer within 0.3 seconds. Try a longer --timeout")
        assert time.monotonic() - began < 30
        over.set()


def test_a_server_that_never_ends() -> None:
    """Each byte comes in time, the page does not."""
    over = threading.Event()

    def trickle(client: socket.socket) -> Any:
        client.sendall(http("nvtxmoe_ranks 1.0\n"))
        while not over.wait(0.05):
            client.sendall(b"#")

    with answering(trickle) as url:
        refused(run("top", url, "--timeout", "0.3", "--once"), "no answer within 0.3 seconds")
        over.set()


def test_a_page_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "MOST_BYTES", 1 << 20)
    with answering(lambda client: client.sendall(http("#" * (3 << 20)))) as url:
        refused(run("top", url), "the page is larger than 1 MiB")


def test_proxies_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    served = Served(tmp_path)
    served.steps(1)
    with serving(served.collector) as url:
        assert run("top", url, "--once", "--json", "--interval", "0.1").json["ranks"] == 2


def test_the_second_scrape_may_fail(tmp_path: Path) -> None:
    """The server ends between the scrapes."""
    answers = [http("nvtxmoe_ranks 1.0\n"), b""]
    with answering(lambda client: client.sendall(answers.pop(0))) as url:
        refused(run("top", url, "--once", "--interval", "0.1"), "Remote end closed connection")


@pytest.mark.parametrize("words", [("--interval", "nan"), ("--interval", "0"), ("--timeout", "inf"), ("--json",)])
def test_options_that_mean_nothing(words: tuple[str, ...]) -> None:
    refused(run("top", "http://127.0.0.1:9", *words), words[0])


def test_other_series_are_not_read() -> None:
    text = 'vllm:broken{ 1\nnvtxmoe_ranks 3.0\n# TYPE nvtxmoe_steps counter\nnvtxmoe_steps_total{rank="0"} 5.0\n'
    page = parse(text, 7.0)
    assert (page.at_s, page.samples) == (
        7.0,
        {"nvtxmoe_ranks": [({}, 3.0)], "nvtxmoe_steps_total": [({"rank": "0"}, 5.0)]},
    )
    with pytest.raises(NvtxmoeError, match="no nvtxmoe_ series"):
        parse("vllm:x 1\n", 0.0)
