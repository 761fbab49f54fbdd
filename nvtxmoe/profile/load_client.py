"""A load on an OpenAI-compatible endpoint: requests sent asynchronously, and how they fared.

The prompts are made of common words, about one token each in the vocabularies of large models. They follow from the
seed alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.extras import require
from nvtxmoe.profile.load_report import LoadReport

if TYPE_CHECKING:
    import aiohttp

#: An optional key for the endpoint, named as its other clients name it.
KEY_ENV = "OPENAI_API_KEY"
#: Longest line of a streamed answer.
_LINE_BYTES = 1 << 20
_UNREACHABLE = "Start the server first, or name another with --base-url"
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face level office door health person art war history party result change morning "
    "reason research girl guy moment air teacher force education think see come want look use find tell ask seem "
    "feel try leave call good new first last long great little own other old big high different small large next "
    "early young important few public bad same able"
)


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        base_url: the endpoint, with or without /v1.
        num_requests: how many requests.
        model: name of the model; None: the first that the endpoint names.
        concurrency: requests under way at a time.
        max_tokens: most tokens of an answer.
        prompt_tokens: words of a prompt.
        seed: of the prompts.
        chat: chat completions instead of completions.
        stream: ask for the answer token by token, which tells the time to the first.
        timeout_s: how long an answer may take.
    """

    base_url: str
    num_requests: int
    model: str | None = None
    concurrency: int = 16
    max_tokens: int = 64
    prompt_tokens: int = 64
    seed: int = 0
    chat: bool = False
    stream: bool = True
    timeout_s: float = 600.0

    @property
    def api(self) -> str:
        """The address below which the OpenAI endpoints are."""
        url = self.base_url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"


class _RequestError(Exception):
    """A request failed; the message is the reason to count it under."""


def prompts(load: Load) -> Iterator[str]:
    """The prompts of a load, each its own."""
    chance, words = random.Random(load.seed), _TEXT.split()  # noqa: S311  # nosec B311  no secret
    for _ in range(load.num_requests):
        yield " ".join(chance.choices(words, k=load.prompt_tokens))


async def drive(load: Load, done: Callable[[LoadReport], None] | None = None) -> LoadReport:
    """Send the load and wait for all answers.

    Parameters:
        done: called after every answer with the report so far.

    Returns:
        The report; requests that failed are counted in it by reason.

    Raises:
        NvtxmoeError: the endpoint can't be reached, it names no model, or aiohttp is not installed.
    """
    require("aiohttp")
    import aiohttp  # noqa: PLC0415  only where a load is driven

    report = LoadReport()
    timeout = aiohttp.ClientTimeout(total=load.timeout_s)
    limit = aiohttp.TCPConnector(limit=load.concurrency)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=limit, headers=_headers(), read_bufsize=_LINE_BYTES
    ) as session:
        model = load.model or (await _models(session, load))[0]["id"]
        texts = prompts(load)
        began = time.perf_counter()

        async def work() -> None:
            for text in texts:
                await _send_request(session, load, model, text, report)
                report.seconds = time.perf_counter() - began
                if done:
                    done(report)

        await asyncio.gather(*(work() for _ in range(min(load.concurrency, load.num_requests))))
    return report


async def models(load: Load) -> list[dict[str, Any]]:
    """What the endpoint serves, as its /v1/models says; at least one.

    Raises:
        NvtxmoeError: the endpoint can't be reached, or it names no model.
    """
    require("aiohttp")
    import aiohttp  # noqa: PLC0415

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), headers=_headers()) as session:
        return await _models(session, load)


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_ENV)
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _models(session: aiohttp.ClientSession, load: Load) -> list[dict[str, Any]]:
    import aiohttp  # noqa: PLC0415

    where = f"{load.api}/models"
    try:
        async with session.get(where) as answer:
            if answer.status != 200:
                raise NvtxmoeError(f"it answered HTTP {answer.status}", where=where, remedy=_UNREACHABLE)
            models = (await answer.json(content_type=None))["data"]
            if isinstance(models[0]["id"], str):
                return list(models)
    except (aiohttp.ClientConnectionError, asyncio.TimeoutError, OSError) as error:
        raise NvtxmoeError(
            f"the endpoint can't be reached: {_reason(error)}", where=load.base_url, remedy=_UNREACHABLE
        ) from error
    except (aiohttp.ClientError, ValueError, LookupError, TypeError) as error:
        raise NvtxmoeError(
            "the endpoint names no model", where=where, remedy="Name one with --model, or another --base-url"
        ) from error
    raise NvtxmoeError("the endpoint names no model", where=where, remedy="Name one with --model")


async def _send_request(session: aiohttp.ClientSession, load: Load, model: str, text: str, report: LoadReport) -> None:
    import aiohttp  # noqa: PLC0415

    began = time.perf_counter()
    first: float | None = None
    body: dict[str, Any] = {"model": model, "max_tokens": load.max_tokens, "temperature": 0, "stream": load.stream}
    body |= {"messages": [{"role": "user", "content": text}]} if load.chat else {"prompt": text}
    path = "/chat/completions" if load.chat else "/completions"
    try:
        async with session.post(load.api + path, json=body) as answer:
            if answer.status != 200:
                raise _RequestError(f"HTTP {answer.status}{_detail(await answer.text())}")
            if load.stream:
                async for _ in _events(answer):
                    first = first or time.perf_counter()
                if first is None:
                    raise _RequestError("an answer without tokens")
            elif not _choices(await answer.json(content_type=None)):
                raise _RequestError("an answer without choices")
    except _RequestError as error:
        report.add_failure(str(error))
    except asyncio.TimeoutError:
        report.add_failure(f"no answer within {load.timeout_s:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        report.add_failure(_reason(error))
    else:
        report.add(time.perf_counter() - began, None if first is None else first - began)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[None]:
    """Yield once for every streamed piece of an answer."""
    async for line in answer.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        piece = json.loads(data)
        if "error" in piece:
            raise _RequestError(f"an error in the stream{_detail(data.decode('utf-8', 'replace'))}")
        if _choices(piece):
            yield
    raise _RequestError("a stream that was cut off")


def _choices(answer: Any) -> bool:
    return isinstance(answer, Mapping) and bool(answer.get("choices"))


def _detail(text: str) -> str:
    """The server's message in its answer, in short."""
    try:
        content = json.loads(text)
        content = content.get("error", content)
        content = content.get("message", content) if isinstance(content, dict) else content
    except (ValueError, AttributeError):
        content = text
    message = " ".join(str(content).split())
    return f": {message[:100]}" if message else ""


def _reason(error: BaseException) -> str:
    """An error in a few words that are the same each time it comes."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, ConnectionRefusedError):
        return "connection refused"
    if isinstance(inner, ConnectionResetError) or type(error).__name__ == "ServerDisconnectedError":
        return "connection lost"
    if isinstance(inner, asyncio.TimeoutError):
        return "no answer in time"
    text = " ".join(str(inner).split())[:100]
    return f"{type(inner).__name__}: {text}" if text else type(inner).__name__
