#!/usr/bin/env python3
"""Compares what capture recorded of a real vLLM on a GPU with an oracle in the same run, token by token.

    export NVTXMOE_ENABLE=1 NVTXMOE_MODE=moe NVTXMOE_LOG_INTERVAL=1
    python scripts/gpu/check_exact.py --mode full
    python scripts/gpu/check_exact.py --family gpt_oss --quantisation mxfp4
    torchrun --nproc-per-node 2 scripts/gpu/check_exact.py --tp 2 --eplb   # each rank compares its own

The oracle is vLLM's own routed-experts capturer (``--oracle vllm``), or copies of the ids and weights that
``scripts/gpu/oracle.py`` has the router make inside the graph (``--oracle copies``). It shares nothing with nvtxmoe's
hooks. Prints one line of JSON per compared process; exits with 1 when anything differs. Needs a GPU and vLLM; the model
is made up. ``scripts/gpu/check_all.py`` runs the whole matrix.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import pickle
import random
import sys
import tempfile
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu import stand_in_sink  # noqa: E402
from scripts.gpu.compare_journal import compare  # noqa: E402
from scripts.gpu.engine_settings import (  # noqa: E402
    DRAFTS,
    EXCHANGES,
    MODES,
    PLAIN_EXCHANGE,
    add_model_options,
    check_engine,
    plain_exchange_under_dbo,
)
from scripts.gpu.made_up_models import model_folder  # noqa: E402
from scripts.gpu.oracle import Oracle, Steps  # noqa: E402

MOST_TOKENS = 2048
#: Variable with the seconds after which every thread's stack is printed.
STACKS_S = "CHECK_EXACT_STACKS_S"


def drive(llm: Any, requests: int, longest: int, shared_prefix: bool, dp_rank: int | None) -> dict[str, list[int]]:
    """Staggered arrivals of prompts of very different lengths; token ids by request.

    Data-parallel ranks get other prompts at the same steps: they must call the engine equally often.
    """
    from vllm import SamplingParams  # noqa: PLC0415

    chance = random.Random(3 + (dp_rank or 0))
    arrivals = chance if dp_rank is None else random.Random(4)
    prefix = [chance.randrange(1, 250) for _ in range(64)] if shared_prefix else []
    waiting = []
    for number in range(requests):
        tokens = [chance.randrange(1, 250) for _ in range(chance.choice([2, 3, 5, 17, 40, 90, longest]))]
        params = SamplingParams(max_tokens=chance.randrange(4, 24), temperature=0, detokenize=False, ignore_eos=True)
        waiting.append((f"r{number}", (prefix if number % 2 else []) + tokens, params))
    engine = llm.llm_engine
    out: dict[str, list[int]] = {}
    while True:
        # Asked in every turn: data-parallel ranks answer together, and one that has no request makes a dummy batch.
        unfinished = engine.has_unfinished_requests()
        if not waiting and not unfinished:
            return out
        for _ in range(arrivals.randrange(0, 4)):
            if waiting:
                name, tokens, params = waiting.pop(0)
                engine.add_request(name, {"prompt_token_ids": tokens}, params)
        for done in engine.step():
            if done.finished:
                out[done.request_id] = list(done.outputs[0].token_ids)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Serve the made-up model and compare every process that has an oracle."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    scratch = Path(tempfile.mkdtemp())
    session = scratch / "session"
    os.environ["NVTXMOE_SESSION_DIR"] = str(session)
    by_stage = options.pp > 1
    if by_stage:
        os.environ |= {"ORACLE_FOLDER": str(scratch), "ORACLE_KIND": options.oracle, "ORACLE_TOKENS": str(MOST_TOKENS)}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    from vllm import LLM  # noqa: PLC0415

    oracle = Oracle(options.oracle, most_tokens=MOST_TOKENS)
    if not by_stage:
        oracle.install()
    if options.stand_in:
        stand_in_sink.install()
    model = model_folder(
        options.family, options.layers, options.experts, options.top_k,
        quantisation=options.quantisation, draft_layers=int(options.draft == "mtp"), changes=options.config,
    )  # fmt: skip
    with plain_exchange_under_dbo() if options.dbo and options.exchange == PLAIN_EXCHANGE else nullcontext():
        llm = LLM(model=str(model), **check_engine(options))
        dp_rank = int(os.environ["RANK"]) // options.tp if options.dp > 1 else None
        drive(llm, options.requests, options.longest, shared_prefix=True, dp_rank=dp_rank)
    llm.llm_engine.engine_core.shutdown()
    if not by_stage:
        journal = next(session.glob(f"ranks/*-{os.getpid()}.journal"))
        return [compare(journal, oracle.recorded, eplb=options.eplb, dbo=options.dbo)]
    results = []
    for file in sorted(scratch.glob("*.oracle")):
        steps: Steps = pickle.loads(file.read_bytes())
        results.append(compare(next(session.glob(f"ranks/*-{file.stem}.journal")), steps, eplb=options.eplb))
    if len(results) != options.pp:
        raise RuntimeError(f"{len(results)} of {options.pp} workers left an oracle")
    return results


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(made)
    made.add_argument("--mode", choices=MODES, default="full")
    made.add_argument("--oracle", choices=["vllm", "copies"], default="copies")
    made.add_argument("--requests", type=int, default=33)
    made.add_argument("--longest", type=int, default=300)
    made.add_argument("--tp", type=int, default=1, help="Ranks, started by torchrun; experts are shared out.")
    made.add_argument("--dp", type=int, default=1, help="Likewise, data-parallel ranks.")
    made.add_argument("--pp", type=int, default=1, help="Pipeline stages, in workers that vLLM starts.")
    made.add_argument("--eplb", action="store_true")
    made.add_argument("--draft", choices=DRAFTS, default="none", help="Speculative decoding.")
    made.add_argument("--dbo", action="store_true", help="Micro-batches.")
    made.add_argument(
        "--exchange", choices=(PLAIN_EXCHANGE, *EXCHANGES), default=PLAIN_EXCHANGE,
        help="Between data-parallel ranks. Default: the one that needs no package.",
    )  # fmt: skip
    made.add_argument("--stand-in", action="store_true", help="Kernels that route inside and fill vLLM's sink.")
    made.add_argument("--result", type=Path, metavar="FOLDER", help="Write the lines of JSON there too.")
    return made


def main() -> int:
    """Run one configuration."""
    options = parser().parse_args()
    if stacks_s := float(os.environ.get(STACKS_S, "0")):  # where it stands when it comes to a halt
        faulthandler.dump_traceback_later(stacks_s, exit=False)
    shown = {key: value for key, value in vars(options).items() if key != "result"}
    try:
        results = run(options)
    except BaseException as error:
        traceback.print_exc()
        results = [{"exact": False, "error": f"{type(error).__name__}: {error}"}]
    for number, result in enumerate(results):
        line = json.dumps({**shown, **result})
        if options.result is not None:
            options.result.mkdir(parents=True, exist_ok=True)
            (options.result / f"{os.getpid()}-{number}.json").write_text(line)
        print(line, flush=True)
    return 0 if all(result["exact"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
