"""``nvtxmoe analyze --dask`` on a real scheduler with real workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.ingest import dask_pool
from nvtxmoe_analysis.ingest.task import Failure, Outcome
from tests.ingest.test_many_reports import validation
from tests.metrics.test_straggler_golden import taken_apart
from tests.support.cli import Ran, everything_but_its_path, refused, run
from tests.support.many_captures import Slow, deadly, reports, tasks
from tests.support.paths import ROOT

pytestmark = pytest.mark.dask

FORMATS = ("--format", "csv", "--format", "parquet")
#: How often workers may die at a task before it is given up: the scheduler's allowed-failures.
DEATHS = 1
PATIENCE_S = 600


class Cluster:
    """A scheduler and its workers, each a process of its own, in a folder that is not the caller's."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack, self._number = folder, stack, 0
        self._file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.logs: dict[subprocess.Popen[bytes], Path] = {}
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'analysis'}",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(DEATHS),
        }
        self.scheduler = self.start("dask_scheduler", "--port", "0", "--scheduler-file", str(self._file))
        self.address = self._address()

    def start(self, module: str, *options: str) -> subprocess.Popen[bytes]:
        self._number += 1
        path = self._folder / f"{self._number}.log"
        log = self._stack.enter_context(path.open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *options, "--no-dashboard"],
            cwd=self._folder,
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a worker's nanny and the worker end together
        )
        self.logs[process] = path
        self._stack.callback(self.stop, process)
        return process

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def add_workers(self, number: int, *more: str) -> None:
        for _ in range(number):
            self.workers.append(
                self.start(
                    "dask_worker", self.address, "--nthreads", "1", "--local-directory", str(self._folder), *more
                )
            )

    def wait_for_log(self, process: subprocess.Popen[bytes], *words: str) -> None:
        """Wait until a process has written all of these."""
        log = self.logs[process]
        until = time.monotonic() + PATIENCE_S
        while not all(word in log.read_text() for word in words):
            assert time.monotonic() < until and process.poll() is None, log.read_text()
            time.sleep(0.05)

    def _address(self) -> str:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(self._file.read_text())["address"])
            time.sleep(0.05)
        raise AssertionError("the scheduler did not start")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        made = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        made.add_workers(2)
        for worker in made.workers:
            made.wait_for_log(worker, "Registered to:")
        yield made


@pytest.fixture
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One that a test may ruin; it has no workers yet."""
    with contextlib.ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster"), stack)


def ignore(_: Outcome) -> None:
    pass


async def fill_memory(dask_worker: Any) -> None:
    """In a worker: a hundredth of its memory is all that it may use. Ends once it has paused for that."""
    dask_worker.memory_manager.memory_pause_fraction = 0.01
    while dask_worker.status.name != "paused":
        await asyncio.sleep(0.01)


def impatient(monkeypatch: pytest.MonkeyPatch, *, with_first_worker: bool = False) -> None:
    """Wait a second for workers, once the scheduler has answered and, unless told otherwise, the first worker too."""
    check = dask_pool._check_workers

    def checked(client: Any, address: str) -> int:
        if with_first_worker:
            monkeypatch.setattr(dask_pool, "CONNECT_S", 1)
        found = check(client, address)
        monkeypatch.setattr(dask_pool, "CONNECT_S", 1)
        return found

    monkeypatch.setattr(dask_pool, "CONNECT_S", PATIENCE_S)
    monkeypatch.setattr(dask_pool, "_check_workers", checked)


def analyzed(paths: list[Path], output: Path, *options: object) -> Ran:
    return run("analyze", *paths, "-o", output, *options)


def test_identical_files(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs named from a folder that is not the workers' are found, and named as they were."""
    monkeypatch.chdir(tmp_path)
    paths = [path.relative_to(tmp_path) for path in reports(tmp_path, 5)]
    assert analyzed(paths, tmp_path / "here", "-j", 1, *FORMATS).code == 0
    ran = analyzed(paths, tmp_path / "there", "--dask", cluster.address, *FORMATS)
    assert (ran.code, ran.err) == (0, "")
    assert everything_but_its_path(tmp_path / "here") == everything_but_its_path(tmp_path / "there")
    assert [one["path"] for one in validation(tmp_path / "there")["inputs"]] == [str(path) for path in paths]


@pytest.mark.parametrize("options", [(), ("--steps", "1:20", "--only", "decode", "-j", "1")])
def test_a_real_capture_taken_apart(
    cluster: Cluster, golden_2gpu: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    paths = taken_apart(golden_2gpu, tmp_path, 123_456_789, 2e-6, 123_456_000)
    for name, where in (("here", ()), ("there", ("--dask", cluster.address))):
        ran = analyzed(paths, tmp_path / name, *where, *FORMATS, *options)
        assert ran.code == 0, ran.err
    assert everything_but_its_path(tmp_path / "here") == everything_but_its_path(tmp_path / "there")


def test_a_single_report_goes_there_too(cluster: Cluster, tmp_path: Path) -> None:
    (path,) = reports(tmp_path, 1)
    assert analyzed([path], tmp_path / "out", "--dask", cluster.address, "--strict").code == 0
    refused(analyzed([tmp_path / "x"], tmp_path / "out", "--dask", cluster.address), "x: no such file or folder")


def test_a_failed_report_is_named_and_the_rest_is_there(cluster: Cluster, tmp_path: Path) -> None:
    paths = reports(tmp_path)
    paths[2].write_bytes(b"no database at all" * 100)
    for name, where in (("here", ()), ("there", ("--dask", cluster.address))):
        ran = analyzed(paths, tmp_path / name, *where)
        assert ran.code == 2 and f"lack a report that could not be read: {paths[2]}" in ran.err
        assert analyzed(paths, tmp_path / name, *where, "--partial-ok").code == 0
    assert everything_but_its_path(tmp_path / "here") == everything_but_its_path(tmp_path / "there")
    (failed,) = validation(tmp_path / "there")["failed_inputs"]
    assert (failed["path"], failed["attempts"]) == (str(paths[2]), 1)


def test_a_worker_that_dies_costs_nothing(cluster: Cluster, tmp_path: Path) -> None:
    paths: list[Path] = reports(tmp_path)
    paths[0] = deadly(paths[0], DEATHS)
    found = dask_pool.run(tasks(paths), cluster.address, None, ignore)
    assert all(isinstance(one, CaptureFacts) for one in found)
    assert Path(f"{paths[0]}.deaths").read_text() == "0"


def test_a_report_that_kills_each_worker_is_given_up(cluster: Cluster, tmp_path: Path) -> None:
    paths: list[Path] = reports(tmp_path)
    paths[3] = deadly(paths[3], 100)
    told: list[Outcome] = []
    found = dask_pool.run(tasks(paths), cluster.address, 1, told.append)
    assert [isinstance(one, Failure) for one in found] == [False, False, False, True]
    failure = found[3]
    assert isinstance(failure, Failure) and failure.attempts == DEATHS + 1
    assert failure.error.startswith(f"{paths[3]}: the worker that read it died each time, for want of memory")
    assert [one.source for one in told] == paths


def test_no_more_at_once_than_asked_for(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client  # noqa: PLC0415

    submit: Callable[..., object] = Client.submit
    running: list[int] = []
    paths = reports(tmp_path)

    def counted(client: Client, *arguments: object, **options: object) -> object:
        running.append(sum(future.status == "pending" for future in client.futures.values()) + 1)
        return submit(client, *arguments, **options)

    monkeypatch.setattr(Client, "submit", counted)
    assert len(dask_pool.run(tasks(paths), cluster.address, 1, ignore)) == 4
    assert running == [1, 1, 1, 1]


def test_a_scheduler_that_goes_away(own_cluster: Cluster, tmp_path: Path) -> None:
    """What has come by then is kept; the others are named."""
    own_cluster.add_workers(1)
    own_cluster.wait_for_log(own_cluster.workers[0], "Registered to:")
    paths: list[Path] = reports(tmp_path)
    paths[1] = Slow(paths[1])

    def kill(outcome: Outcome) -> None:
        assert outcome.source == paths[0]
        until = time.monotonic() + PATIENCE_S
        while not Path(f"{paths[1]}.pid").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        own_cluster.stop(own_cluster.scheduler)

    # Two at once, so that the slow one has begun when the first one ends.
    found = dask_pool.run(tasks(paths), own_cluster.address, 2, kill)
    assert isinstance(found[0], CaptureFacts)
    errors = [one.error for one in found[1:] if isinstance(one, Failure)]
    assert len(errors) == 3
    assert all("the Dask scheduler was lost before it was read" in error for error in errors), errors


def test_all_workers_go_away(own_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cluster.add_workers(1)
    own_cluster.wait_for_log(own_cluster.workers[0], "Registered to:")
    paths: list[Path] = reports(tmp_path)
    paths[1] = Slow(paths[1])

    def kill(outcome: Outcome) -> None:
        assert outcome.source == paths[0]
        monkeypatch.setattr(dask_pool, "CONNECT_S", 1)
        own_cluster.stop(own_cluster.workers[0])

    found = dask_pool.run(tasks(paths), own_cluster.address, 1, kill)
    assert isinstance(found[0], CaptureFacts)
    errors = [one.error for one in found[1:] if isinstance(one, Failure)]
    assert len(errors) == 3
    assert all("no Dask worker was left to read it" in error for error in errors)


def test_workers_that_are_paused(own_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is full before they have begun: nobody waits for ever."""
    own_cluster.add_workers(1, "--memory-limit", "2GiB")
    check = dask_pool._check_workers

    def checked(client: Any, address: str) -> int:
        found = check(client, address)
        client.run(fill_memory)
        return found

    monkeypatch.setattr(dask_pool, "_check_workers", checked)
    impatient(monkeypatch)
    found = dask_pool.run(tasks(reports(tmp_path)), own_cluster.address, None, ignore)
    errors = [one.error for one in found if isinstance(one, Failure)]
    assert len(errors) == 4
    assert all("all Dask workers are paused, for want of memory" in error for error in errors), errors


@pytest.mark.parametrize("more", [(), ("--jobs", "2")])
def test_no_worker(
    own_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    impatient(monkeypatch, with_first_worker=True)
    ran = analyzed(reports(tmp_path, 2), tmp_path / "out", "--dask", own_cluster.address, *more)
    refused(ran, f"{own_cluster.address}: the Dask cluster has no worker. Start some: `dask worker")


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:9", "nonsense:port", "no-such-host.invalid:8786", "", "tls://127.0.0.1:9"]
)
def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(dask_pool, "CONNECT_S", 1)
    ran = analyzed(reports(tmp_path, 2), tmp_path / "out", "--dask", address)
    refused(ran, "no Dask scheduler answers", "Give its address, as `dask scheduler` prints it: tcp://HOST:8786")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--jobs", "2")])
def test_workers_with_another_version(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(dask_pool, "__version__", "9.9.9")
    ran = analyzed(reports(tmp_path, 2), tmp_path / "out", "--dask", cluster.address, *more)
    refused(ran, "a worker has nvtxmoe 0.", "; here are 9.9.9 and ", "Install the same in both")


def test_workers_without_nvtxmoe(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> tuple[str, str]:
        raise ModuleNotFoundError("No module named 'nvtxmoe_analysis'")

    monkeypatch.setattr(dask_pool, "versions", fails)
    with pytest.raises(NvtxmoeError, match=r"can't run nvtxmoe: No module named 'nvtxmoe_analysis'\. Install nvtxmoe"):
        dask_pool.run(tasks(reports(tmp_path, 1)), cluster.address, None, ignore)


def test_without_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    ran = analyzed(reports(tmp_path, 2), tmp_path / "out", "--dask", "tcp://127.0.0.1:9")
    refused(ran, "--dask needs a package that is not installed", "Run `pip install distributed`")
