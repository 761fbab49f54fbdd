#!/usr/bin/env python3
"""Sends requests to an OpenAI-compatible endpoint, asynchronously, and tells how they fared.

    scripts/send_test_requests.py --num-requests 100 --base-url http://127.0.0.1:8000

Exit codes: 0; 1 when requests failed; 2 when the endpoint can't be reached. A key, where the endpoint wants one, is
taken from OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
_python = ROOT / ".venv" / "bin" / "python"
if find_spec("aiohttp") is None and _python.is_file() and not sys.prefix.startswith(str(ROOT)):
    os.execv(_python, [str(_python), *sys.argv])  # as scripts/profile_vllm.sh: what the quick start set up

from nvtxmoe.errors import NvtxmoeError  # noqa: E402  after the right Python runs
from nvtxmoe.profile.load_client import Load  # noqa: E402
from nvtxmoe.profile.load_drive import drive_with_bar  # noqa: E402


def positive(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parse(argv: Sequence[str] | None) -> Load:
    """The load that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="with or without /v1")
    parser.add_argument("--model", help="default: the first that the endpoint names")
    parser.add_argument("--num-requests", type=positive, default=100)
    parser.add_argument("--concurrency", type=positive, default=16, help="requests at a time")
    parser.add_argument("--max-tokens", type=positive, default=64, help="of an answer")
    parser.add_argument("--prompt-tokens", type=positive, default=64, help="words of a prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--chat", action="store_true", help="chat completions instead of completions")
    parser.add_argument("--no-stream", action="store_true", help="whole answers, without the time to the first token")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of a request")
    arguments = parser.parse_args(argv)
    return Load(
        base_url=arguments.base_url,
        num_requests=arguments.num_requests,
        model=arguments.model,
        concurrency=arguments.concurrency,
        max_tokens=arguments.max_tokens,
        prompt_tokens=arguments.prompt_tokens,
        seed=arguments.seed,
        chat=arguments.chat,
        stream=not arguments.no_stream,
        timeout_s=arguments.timeout,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Send the load; the exit code."""
    try:
        report = drive_with_bar(parse(argv))
    except NvtxmoeError as error:
        print(f"send_test_requests.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(report.line())
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
