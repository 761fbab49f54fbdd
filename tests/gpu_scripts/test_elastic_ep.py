"""scripts/gpu/elastic_ep.py with a stand-in for vLLM's servers, and its comparison on journals made by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import JournalWriter, record
from scripts.gpu import elastic_ep
from scripts.gpu.elastic_compare import first_of_another_size, judged, until
from scripts.gpu.oracle import Steps
from tests.support import fakes

EXPERTS, SLOTS, TOP_K = 4, 8, 2
TWO, ONE = (2, 2), (1, 1)
BUSY = np.array([[[0, 1]], [[2, 3]]])
IDLE = np.zeros((0, 1, 1), dtype=np.int64)


def oracle(steps: list[tuple[np.ndarray[Any, Any], tuple[int, int]]]) -> Steps:
    """One layer with the number 0; slots are experts + 4. Each step is its experts and the sizes of the groups."""
    busy = [ids for ids, _ in steps if len(ids)]
    return Steps(
        layers=[0],
        ids=[ids for ids, _ in steps],
        physical=[ids + EXPERTS for ids, _ in steps],
        weights=[np.full(ids.shape, 0.5, dtype=np.float32) for ids, _ in steps],
        replays=[0 for _ in busy],
        micro_batches=[[] for _ in busy],
        sizes=[size for _, size in steps],
        idle=len(steps) - len(busy),
    )


def written(
    folder: Path,
    steps: list[np.ndarray[Any, Any]],
    lost: dict[str, int],
    place: dict[str, int] | None = None,
    ends: bool = True,
    slots: int = SLOTS,
) -> Path:
    """A journal that recorded these steps, in a place of two ranks; its last moe.meta names the losses."""
    layer = {
        "layer": 0,
        "num_experts": EXPERTS,
        "top_k": TOP_K,
        "recording": "references",
        **({"num_physical_experts": slots} if slots > EXPERTS else {}),
    }
    meta = {"rank": 0, "dp_size": 2, "ep_size": 2, "layers": [layer], **(place or {})}
    out = [("meta", json.dumps(meta).encode())]
    for number, ids in enumerate(steps):
        if not len(ids):
            continue
        row = np.zeros(1, schema.STEP_DTYPE)
        row["step"], row["num_tokens"] = number, len(ids)
        out.append(("step", row.tobytes()))
        for event, chosen, many in (("counts", ids, EXPERTS), ("physical", ids + slots - EXPERTS, slots)):
            counts = np.zeros(1, schema.counts_dtype(many))
            counts["step"], counts["counts"] = number, np.bincount(chosen.ravel(), minlength=many)
            out.append((event, counts.tobytes()))
        topk = np.zeros(len(ids), schema.topk_dtype(TOP_K))
        topk["step"], topk["experts"], topk["weights"] = number, ids[:, 0], 0.5
        out.append(("topk", topk.tobytes()))
    file = folder / "rank0-1.journal"
    writer = JournalWriter(file)
    out.append(("meta", json.dumps({**meta, "capture": {"lost": dict.fromkeys(lost, 1)}}).encode()))
    if ends:
        out.append(("end", json.dumps({"lost": lost}).encode()))
    for event, payload in out:
        writer.append(record(event, 0, payload))
    writer.close()
    return file


CHANGE = f"{schema.RANKS_CHANGED} (data_parallel_size 2 -> 1)"
SCALED = [(BUSY, TWO), (IDLE, TWO), (BUSY, TWO), (BUSY, ONE), (IDLE, ONE), (BUSY, TWO)]
BEFORE = [BUSY, IDLE, BUSY]


def test_exact_before_the_change_and_told_after(tmp_path: Path) -> None:
    found = judged(written(tmp_path, BEFORE, {CHANGE: 2}), oracle(SCALED))
    assert found["exact"] is True
    assert (found["steps_after"], found["told_after"], found["recorded_after"]) == (2, 2, 0)
    assert found["sizes"] == [TWO, ONE, TWO]
    assert (found["cells"], found["tokens"], found["physical"]) == (2, 4, 2)
    assert found["told_as"] == CHANGE


def test_a_place_without_redundant_experts(tmp_path: Path) -> None:
    """moe.meta has no number of physical experts then: it is that of the logical ones."""
    steps = oracle(SCALED)
    steps.physical = steps.ids
    found = judged(written(tmp_path, BEFORE, {CHANGE: 2}, slots=EXPERTS), steps)
    assert (found["exact"], found["physical_equal"], found["mapped"]) == (True, 2, 0)
    assert judged(written(tmp_path / "b", BEFORE, {CHANGE: 2}, slots=EXPERTS), oracle(SCALED))["exact"] is False


@pytest.mark.parametrize("lost", [{}, {CHANGE: 1}, {"steps left out": 2}])
def test_steps_after_the_change_that_are_not_told(lost: dict[str, int], tmp_path: Path) -> None:
    assert judged(written(tmp_path, BEFORE, lost), oracle(SCALED))["exact"] is False


def test_a_step_after_the_change_that_was_recorded(tmp_path: Path) -> None:
    found = judged(written(tmp_path, [*BEFORE, BUSY], {CHANGE: 2}), oracle(SCALED))
    assert (found["exact"], found["recorded_after"]) == (False, 1)


@pytest.mark.parametrize(("lost", "exact"), [({CHANGE: 2}, True), ({}, False)])
def test_a_process_that_was_killed_has_told_the_change_in_its_last_meta(
    lost: dict[str, int], exact: bool, tmp_path: Path
) -> None:
    found = judged(written(tmp_path, BEFORE, lost, ends=False), oracle(SCALED))
    assert (found["exact"], found["has_end"]) == (exact, False)


def test_a_wrong_count_before_the_change(tmp_path: Path) -> None:
    other = np.array([[[0, 1]], [[2, 1]]])
    assert judged(written(tmp_path, [BUSY, IDLE, other], {CHANGE: 2}), oracle(SCALED))["exact"] is False


def test_a_rank_that_joins_is_exact_to_its_end(tmp_path: Path) -> None:
    steps = oracle([(BUSY, TWO), (IDLE, TWO)])
    assert judged(written(tmp_path / "good", [BUSY], {}), steps)["exact"] is True
    assert judged(written(tmp_path / "told", [BUSY], {CHANGE: 1}), steps)["exact"] is False


@pytest.mark.parametrize("place", [{"dp_size": 1}, {"ep_size": 1}])
def test_a_place_that_is_not_the_one_of_vllms_groups(place: dict[str, int], tmp_path: Path) -> None:
    assert judged(written(tmp_path, BEFORE, {CHANGE: 2}, place), oracle(SCALED))["exact"] is False


def test_the_oracle_before_the_change() -> None:
    steps = oracle(SCALED)
    before = until(steps, first_of_another_size(steps))
    assert (len(before.ids), len(before.replays), before.idle) == (3, 2, 1)
    assert first_of_another_size(oracle([(BUSY, TWO)])) == 1


#: Answers as `vllm serve` does, and writes down what it is asked. Scaling waits for the rank that joins.
STAND_IN = """
import http.server, json, os, signal, sys
words = sys.argv
rank, port = words[words.index("--data-parallel-rank") + 1], int(words[words.index("--port") + 1])
folder = os.environ["ORACLE_FOLDER"]
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self, path, body):
        with open(os.path.join(folder, "asked"), "a") as file:
            file.write(json.dumps([rank, path, body, os.environ.get("VLLM_ELASTIC_EP_SCALE_UP_LAUNCH")]) + "\\n")
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def do_GET(self): self.send_response(200); self.end_headers()
    def do_POST(self): self.answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


def test_ranks_are_asked_to_scale_together_and_serve_in_between(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    fakes.executable(tmp_path / "python", f'exec "{sys.executable}" "{program}" "$@"')
    out = tmp_path / "out"
    words = [str(out), "--sizes", "2", "1", "2", "--python", str(tmp_path / "python"), "--budget-s", "60"]
    assert elastic_ep.main(words) == 1
    asked = [json.loads(line) for line in (out / "asked").read_text().splitlines()]
    scaled = [(rank, body["new_data_parallel_size"]) for rank, path, body, _ in asked if path == "/scale_elastic_ep"]
    assert sorted(scaled[:2]) == [("0", 1), ("1", 1)]  # both ranks are asked to leave one
    assert scaled[2:] == [("0", 2)]
    answered = [(rank, joined) for rank, path, _, joined in asked if path == "/v1/completions"]
    assert answered.count(("0", None)) == 3 * elastic_ep.REQUESTS
    assert answered.count(("1", None)) == answered.count(("1", "1")) == elastic_ep.REQUESTS
    document = json.loads((out / "elastic.json").read_text())
    assert document["error"] is None
    assert [what for what, _ in document["parts"]] == [
        "start 2", "requests", "scale to 1", "requests", "scale to 2", "requests",
    ]  # fmt: skip
    assert document["workers"] == [{"exact": False, "error": "0 of 3 workers left an oracle"}]
    assert "0 of 3 workers" in capsys.readouterr().out


def test_a_server_that_ends_is_an_error_with_its_log(tmp_path: Path) -> None:
    fakes.executable(tmp_path / "python", "exit 3")
    out = tmp_path / "out"
    assert elastic_ep.main([str(out), "--python", str(tmp_path / "python"), "--budget-s", "60"]) == 1
    assert "rank 0 did not come up" in json.loads((out / "elastic.json").read_text())["error"]


def test_redundant_experts_let_the_fewest_ranks_hold_all(tmp_path: Path) -> None:
    server = object.__new__(elastic_ep.Server)
    server.rank, server.port = 1, 4711
    for sizes, size, redundant in ((["2", "1"], 2, 16), (["1", "2"], 1, 0), (["2", "4"], 4, 16)):
        options = elastic_ep.parser().parse_args([str(tmp_path), "--sizes", *sizes])
        options.rpc_port = 4712
        words = server.command(size, options, tmp_path)
        assert json.loads(words[words.index("--eplb-config") + 1])["num_redundant_experts"] == redundant
        assert words[words.index("--elastic-ep-max-dp-size") + 1] == max(sizes)


@pytest.mark.parametrize(
    ("words", "of_rank", "shared"),
    [
        ([], ["0", "0", "0"], True),
        (["--gpus", "1"], ["1", "1", "1"], True),
        (["--gpus", "0", "1"], ["0", "1", "0"], True),
        (["--gpus", "0", "1", "2"], ["0", "1", "2"], False),
    ],
)
def test_nccl_lets_ranks_share_a_gpu_where_they_do(
    tmp_path: Path, words: list[str], of_rank: list[str], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(elastic_ep.SHARED_GPU, raising=False)
    options = elastic_ep.parser().parse_args([str(tmp_path), *words])
    assert options.sizes == [2, 3, 2]
    found = [elastic_ep.environment(rank, options, joins=rank == 2) for rank in range(3)]
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables in found] == of_rank
    assert [variables.get("NCCL_MULTI_RANK_GPU_ENABLE") for variables in found] == [("1" if shared else None)] * 3


def test_help_names_what_vllm_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        elastic_ep.parser().parse_args(["--help"])
    assert "vLLM 0.33 fails at a change to 1" in " ".join(capsys.readouterr().out.split())
