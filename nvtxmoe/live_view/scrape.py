"""Fetch the page of metrics of a running server, and read nvtxmoe's series from it."""

from __future__ import annotations

import http.client
import ipaddress
import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, ProxyHandler, build_opener

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.extras import require

PREFIX = "nvtxmoe_"
#: Addresses that are tried if the user gives none: vLLM's own server, and nvtxmoe's.
DEFAULT_URLS = ("http://127.0.0.1:8000/metrics", "http://127.0.0.1:9476/metrics")
#: Size of a page beyond which it is not read: detail by expert of a large model takes 2 MB.
MOST_BYTES = 64 << 20
_PART_BYTES = 64 << 10

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """Samples of one scrape.

    Attributes:
        at_s: monotonic time of the scrape, in seconds.
        samples: labels and finite values by full name, for example ``nvtxmoe_steps_total``.
    """

    at_s: float
    samples: Mapping[str, Sequence[tuple[Labels, float]]]

    def of(self, name: str) -> Sequence[tuple[Labels, float]]:
        """Return the samples of a name, given without the prefix; none if the page lacks it."""
        return self.samples.get(PREFIX + name, ())


def full_url(text: str) -> str:
    """Complete an address: ``host:port`` gets a scheme, an address without a path gets ``/metrics``.

    Raises:
        NvtxmoeError: it is no address of http or https.
    """
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise NvtxmoeError("not an address of metrics", where=text, remedy=f"Give a URL such as {DEFAULT_URLS[0]}")
    return parts._replace(path="/metrics").geturl() if parts.path in ("", "/") else url


def find(urls: Sequence[str], timeout_s: float) -> tuple[str, Page]:
    """Return the first address that has nvtxmoe's series, and its page.

    Raises:
        NvtxmoeError: none has, or prometheus_client is not installed.
    """
    require("prometheus_client")
    errors = []
    for url in urls:
        try:
            return url, scrape(url, timeout_s)
        except NvtxmoeError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    failures = "; ".join(f"{error.where}: {error.what}" if error.where else error.what for error in errors)
    remedy = "Give the address of the server's metrics, and start the server with NVTXMOE_ENABLE=1 NVTXMOE_METRICS=1"
    raise NvtxmoeError(failures, remedy=remedy)


def scrape(url: str, timeout_s: float) -> Page:
    """Fetch a page and read it.

    Parameters:
        url: as ``full_url`` returns it.
        timeout_s: seconds that the whole page may take.

    Raises:
        NvtxmoeError: no server, no answer in time, no page of metrics, or no series of nvtxmoe.
    """
    try:
        return parse(_fetch(url, timeout_s), time.monotonic())
    except NvtxmoeError as error:
        raise NvtxmoeError(error.what, where=url, remedy=error.remedy) from error


def parse(text: str, at_s: float) -> Page:
    """Read nvtxmoe's series from a page in Prometheus's text format.

    Raises:
        NvtxmoeError: the page has no such series, or they can't be read.
    """
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  an extra

    starts = (PREFIX, f"# TYPE {PREFIX}", f"# HELP {PREFIX}")
    own_lines = [line for line in text.split("\n") if line.startswith(starts)]
    samples: dict[str, list[tuple[Labels, float]]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(own_lines) + "\n"):
            for sample in family.samples:
                value = float(sample.value)
                if math.isfinite(value):
                    samples.setdefault(sample.name, []).append((sample.labels, value))
    except Exception as error:  # the parser raises many kinds on damaged pages
        what = f"the page's nvtxmoe_ series can't be read ({type(error).__name__}: {error})"
        raise NvtxmoeError(what, remedy="Check that the address is a page of Prometheus metrics") from error
    if not samples:
        raise NvtxmoeError(
            "the page has no nvtxmoe_ series",
            remedy="Start the server with NVTXMOE_ENABLE=1 NVTXMOE_METRICS=1, and look at the warnings in its log",
        )
    return Page(at_s, samples)


def _fetch(url: str, timeout_s: float) -> str:
    """Return the page as text. The deadline holds for servers too that send a byte now and then."""
    until = time.monotonic() + timeout_s
    handlers = [HTTPHandler(), HTTPSHandler(), *([ProxyHandler({})] if _is_local(url) else [])]
    late = NvtxmoeError(f"no answer within {timeout_s:g} seconds", remedy="Try a longer --timeout")
    try:
        with build_opener(*handlers).open(url, timeout=timeout_s) as answer:
            parts, size = [], 0
            while part := answer.read1(_PART_BYTES):
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    raise NvtxmoeError(f"the page is larger than {MOST_BYTES >> 20} MiB")
                if time.monotonic() > until:
                    raise late
    except HTTPError as error:
        remedy = "Check the address: vLLM and nvtxmoe serve /metrics"
        raise NvtxmoeError(f"the server answers {error.code} {error.reason}", remedy=remedy) from error
    except TimeoutError as error:
        raise late from error
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, (socket.timeout, TimeoutError)):
            raise late from error
        shown = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        remedy = "Check that the server runs and that the address is right"
        raise NvtxmoeError(shown or type(reason).__name__, remedy=remedy) from error
    return b"".join(parts).decode("utf-8", "replace")


def _is_local(url: str) -> bool:
    """Return whether an address is this machine's, which no proxy reaches."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
