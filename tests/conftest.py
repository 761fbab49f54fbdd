"""What tests of all folders share: golden captures unpacked once per process, nsys and vLLM, and markers by fixture."""

from __future__ import annotations

import gc
import inspect
import lzma
import os

# Before numpy is imported: several test processes share the cores, and threads of OpenBLAS would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Likewise polars, whose threads wait for work in a loop (outputs/test_number_of_threads.py has several).
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import shutil
import sys
import tarfile
import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings

from tests.support.nsys_runs import again, nsys_alone
from tests.support.paths import GOLDEN, INSTALLED_NSYS, INSTALLED_PROMETHEUS, INSTALLED_VLLM, ROOT
from tests.support.vllm_forks import Forks

#: Fixtures, and the marker that each puts on the tests which use it.
MARKERS = {"nsys_path": "nsys", "vllm_python": "vllm", "browser": "browser", "prometheus_bin": "prometheus"}

# Neither examples nor their making have a time limit: how long they take depends on what else runs on the machine.
settings.register_profile("nvtxmoe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("nvtxmoe"), max_examples=20)
settings.load_profile("nvtxmoe")

# Settings of the developer's shell are none of the tests' business.
for _name in [name for name in os.environ if name.startswith("NVTXMOE_") and not name.startswith("NVTXMOE_TEST_")]:
    del os.environ[_name]

# What nvtxmoe keeps in the user's cache: a folder of the tests, not the developer's.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache" / "tests")


def _unpacked(name: str, folder: Path) -> Path:
    out = folder / name
    with lzma.open(GOLDEN / f"{name}.xz") as packed, out.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return out


@pytest.fixture(scope="session")
def golden_1gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One GPU, CUDA graphs: SQLite. See tests/golden/README.md for its figures."""
    return _unpacked("h100-1gpu-graphs.sqlite", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_1gpu_parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder of Parquet files."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN / "h100-1gpu-graphs.parquetdir.tar.xz") as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    return folder / "h100-1gpu-graphs"


@pytest.fixture(scope="session")
def golden_2gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two GPUs, tensor and expert parallel, CUDA graphs: SQLite."""
    return _unpacked("h100-2gpu-ep2-graphs.sqlite", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """programs/emit_graph.py on an H200: SQLite. What it counted itself stands beside it."""
    return _unpacked("h200-graph-program.sqlite", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_vllm_033(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """vLLM 0.33 on an H200, captured by nvtxmoe itself: ``gpt-oss`` (recomputed) and ``fp8``, SQLite."""
    folder = tmp_path_factory.mktemp("golden")
    return {kind: _unpacked(f"h200-vllm-{kind}-capture.sqlite", folder) for kind in ("gpt-oss", "fp8")}


@pytest.fixture(scope="session")
def golden_windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Windows of a vLLM 0.33 server under nsys on an H200: ``attached``, ``eager`` and ``whole``, SQLite."""
    folder = tmp_path_factory.mktemp("golden")
    return {way: _unpacked(f"h200-window-{way}.sqlite", folder) for way in ("attached", "eager", "whole")}


@pytest.fixture(scope="session")
def golden_h200_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM 0.33 on two H200s with tensor and expert parallelism, captured by nvtxmoe itself: SQLite."""
    return _unpacked("h200-2gpu-ep-capture.sqlite", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_vllm_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two ranks captured by nvtxmoe itself: ``tp2``, ``eplb`` and ``dp2``, SQLite."""
    folder = tmp_path_factory.mktemp("golden")
    return {kind: _unpacked(f"h100-2gpu-vllm-{kind}-capture.sqlite", folder) for kind in ("tp2", "eplb", "dp2")}


@pytest.fixture(scope="session")
def golden_two_reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two ranks captured by nvtxmoe itself, each by an nsys of its own: ``tp2`` and ``dp2``, two SQLite files each."""
    folder = tmp_path_factory.mktemp("golden")
    names = {"tp2": "h100-2reports-vllm-tp2-node{}", "dp2": "h100-2reports-vllm-dp2-rank{}"}
    return {
        kind: [_unpacked(f"{name.format(rank)}.sqlite", folder) for rank in range(2)] for kind, name in names.items()
    }


@pytest.fixture(scope="session")
def golden_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real vLLM captured by nvtxmoe itself on an H100: SQLite."""
    return _unpacked("h100-vllm-capture.sqlite", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def payload_encodings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One event a numpy payload type, in the domain `pt`: SQLite."""
    return _unpacked("payload-encodings.sqlite", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_elastic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Elastic expert parallelism on an H200, 2 -> 3 -> 2 ranks: a session, an npz per worker with vLLM's routing."""
    folder = tmp_path_factory.mktemp("elastic")
    with tarfile.open(GOLDEN / "h200-elastic-ep-2-3-2.tar.xz") as archive:
        for member in archive.getmembers():
            file = folder / member.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(cast("Any", archive.extractfile(member)).read())
    return folder


@pytest.fixture(scope="session")
def statsmodels() -> Any:
    """statsmodels.api. Not imported by modules: it takes two seconds, in each process and to choose tests too."""
    return import_module("statsmodels.api")


@pytest.fixture(scope="session")
def nsys_path() -> Path:
    """A real nsys: the one NVTXMOE_TEST_NSYS names, else the one scripts/test.sh installs. Never skipped."""
    path = Path(os.environ.get("NVTXMOE_TEST_NSYS") or INSTALLED_NSYS)
    if not os.access(path, os.X_OK):
        pytest.fail(f"no nsys at {path}: scripts/test.sh installs it (scripts/install_nsys.sh .cache/nsys)")
    return path


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python that has vLLM: the one NVTXMOE_TEST_VLLM_PYTHON names, else .venv-vllm's. Never skipped."""
    path = Path(os.environ.get("NVTXMOE_TEST_VLLM_PYTHON") or INSTALLED_VLLM)
    if not os.access(path, os.X_OK):
        pytest.fail(f"no Python with vLLM at {path}: scripts/test.sh installs it (scripts/setup_vllm.sh)")
    return path


@pytest.fixture(scope="session")
def forks(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A process that has imported vLLM, for all runs and servers that can be forks of it."""
    forks = Forks(vllm_python, tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def prometheus_bin() -> Path:
    """The folder of prometheus and promtool: NVTXMOE_TEST_PROMETHEUS, else what scripts/test.sh installs."""
    path = Path(os.environ.get("NVTXMOE_TEST_PROMETHEUS") or INSTALLED_PROMETHEUS)
    if not os.access(path / "promtool", os.X_OK):
        pytest.fail(f"no promtool in {path}: scripts/test.sh installs it (scripts/install_prometheus.sh)")
    return path


@pytest.fixture(scope="session", autouse=True)
def disk_in_its_own_time() -> Iterator[None]:
    """Commands that run in this process do not wait for the disk: a set of results forces 20 files there, at 5 ms each.

    What is forced there survives a loss of power, which no test brings about. Commands in processes of their own do it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # it refuses what is not open, too
        yield


@pytest.fixture(autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """What a test leaves in the environment, such as the session that a run hands to its children, ends with it."""
    before = dict(os.environ)
    yield
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    os.environ.update(before)


def shares_fixtures(item: pytest.Item) -> bool:
    """Whether a test uses a fixture that is made once for the tests of its module."""
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009  pytest has no public way
    return any(one[-1].scope == "module" for one in fixtures)


def starts_nsys(item: pytest.Item) -> bool:
    """Whether a test starts nsys itself, not by a run of vLLM."""
    return "nsys_path" in getattr(item, "fixturenames", ()) and item.get_closest_marker("vllm_runs") is None


def place_in_order(item: pytest.Item) -> int:
    """What takes longest begins first: the chain of nsys, that of vLLM, what computes, what waits for tools.

    Modules that share fixtures and single tests come last.
    """
    fixtures = set(getattr(item, "fixturenames", ()))
    if starts_nsys(item):
        return 1 if "vllm_python" in fixtures else 0  # vLLM is set up last
    if any(mark.args == ("vllm",) for mark in item.iter_markers("xdist_group")):
        return 1
    if any(map(item.get_closest_marker, ("slow", "dask"))):
        return 2
    if fixtures & MARKERS.keys():
        return 3
    return 4 if shares_fixtures(item) else 5


def pytest_collection_finish() -> None:
    """Thousands of collected tests live to the end: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Mark tests by the fixtures that they use; keep those that share some in one process, which makes them once."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])
            if fixture.startswith("golden_"):
                item.add_marker("golden")
        grouped = any(map(item.get_closest_marker, ("xdist_group", "vllm_runs")))
        if starts_nsys(item) and not grouped:
            item.add_marker(pytest.mark.xdist_group("nsys"))  # one at a time
        elif shares_fixtures(item) and not grouped:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=place_in_order)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the time limit of pytest-timeout begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait until the tools of a test are set up, which scripts/test.sh does beside the tests; the fixtures check.

    No run of vLLM starts nsys during a test that does.
    """
    folder = item.config.getoption("--setting-up")
    for tool in MARKERS.values():
        if folder is not None and item.get_closest_marker(tool) is not None:
            while not Path(folder, f"{tool}.status").exists():
                time.sleep(0.1)
    with nsys_alone() if starts_nsys(item) else nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call a test that is marked tried_again once more when nsys failed by itself, with an empty tmp_path."""
    if pyfuncitem.get_closest_marker("tried_again") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    again(partial(pyfuncitem.obj, **arguments), cast("Path | None", pyfuncitem.funcargs.get("tmp_path")))
    return True


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where scripts/test.sh sets up tools; the flag that rewrites golden files and the README's blocks."""
    parser.addoption("--setting-up", metavar="FOLDER", help="wait for TOOL.status here before the tests of a tool")
    parser.addoption("--update-golden", action="store_true", help="rewrite expected files with what is computed now")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether --update-golden was given."""
    return bool(request.config.getoption("--update-golden"))
