"""Publishes live metrics of made-up steps and serves them, as eight expert-parallel ranks with a layer model would.

python tests/programs/publish_live.py FOLDER PORT MODEL.json SECONDS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from nvtxmoe.capture.live.collector import Collector
from nvtxmoe.capture.live.imbalance_time import load
from nvtxmoe.capture.live.own_server import serve
from nvtxmoe.capture.live.samples import Options
from tests.support.live_ranks import Model, Rank

MODEL = Model(layers=4, experts=16, top_k=2, tp_size=8, expert_parallel=True)
STEP_S = 0.05


def main(folder: str, port: str, model: str, seconds: str) -> None:
    """Publish until the time is over."""
    options = Options(experts=True)
    ranks = [Rank(Path(folder), MODEL, number, options) for number in range(MODEL.ranks)]
    serve("127.0.0.1", int(port), Collector(Path(folder), options, load(Path(model))))
    chance = np.random.default_rng(5)
    until, number = time.monotonic() + float(seconds), 0
    while time.monotonic() < until:
        counts = chance.poisson(2.0, (MODEL.layers, MODEL.experts))
        for rank in ranks:
            rank.step(number, counts, tokens=16, prefill=4)
            if number % 10 == 0:
                rank.publish()
        number += 1
        time.sleep(STEP_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
