"""Every query of the dashboard and every rule against a real Prometheus that scrapes live metrics."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.programs.publish_live import MODEL
from tests.support.dashboard import RULES, queries
from tests.support.paths import ROOT
from tests.support.prometheus import PATIENCE_S, free_port, running


def test_every_query_returns_data(prometheus_bin: Path, vllm_python: Path, tmp_path: Path) -> None:
    """Expert-parallel ranks with a layer model, and detail by expert: nothing is left out."""
    row = {
        "feature": "local_activations", "status": "explains", "slope_ns_per_unit": 900.0, "slope_ci_low": 700.0,
        "slope_ci_high": 1100.0, "alternatives": [],
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps({"layers": {"all": {"mixed": row}}}))
    (tmp_path / "live").mkdir()
    port = free_port()
    program = [str(vllm_python), str(ROOT / "tests" / "programs" / "publish_live.py")]
    arguments = [str(tmp_path / "live"), str(port), str(tmp_path / "model.json"), str(2 * PATIENCE_S)]
    with subprocess.Popen([*program, *arguments], cwd=tmp_path) as process:
        try:
            with running(prometheus_bin, tmp_path / "prometheus", [port], RULES) as prometheus:
                until = time.monotonic() + PATIENCE_S
                # a rate needs two scrapes, and a rule its own evaluation
                wanted = [*(query for _, query in queries()), "nvtxmoe:tokens:rate1m"]
                while empty := [query for query in wanted if not prometheus.ask(query)]:
                    assert process.poll() is None
                    assert time.monotonic() < until, empty
                    time.sleep(1)
                assert len(queries()) == 23
                shares = prometheus.ask("nvtxmoe_hottest_expert_share")
                assert len(shares) == 3 * MODEL.layers
                both = prometheus.ask("sum(nvtxmoe_ep_rank_assignments_total) == sum(nvtxmoe_layer_assignments_total)")
                assert len(both) == 1
                assert not prometheus.ask('ALERTS{alertstate="firing"}')
        finally:
            process.kill()
