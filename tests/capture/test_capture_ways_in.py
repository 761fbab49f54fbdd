"""Both ways in, on an invented vllm package: when capture starts, and what it leaves alone."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import copy as shallow_copy
from copy import deepcopy
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.capture.startup import import_watch
from tests.support.paths import ROOT

SITE = ROOT / "nvtxmoe" / "site"


@pytest.fixture
def invented(tmp_path: Path) -> Path:
    """A folder with a package ``vllm`` of a shape that no adapter fits."""
    worker = tmp_path / "vllm" / "v1" / "worker"
    worker.mkdir(parents=True)
    for folder in (tmp_path / "vllm", tmp_path / "vllm" / "v1", worker):
        (folder / "__init__.py").write_text("__version__ = '9.9'\n")
    (worker / "gpu_worker.py").write_text("import json\nclass Worker:\n    def load_model(self): return 'loaded'\n")
    return tmp_path


def python(program: str, *path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program with folders on PYTHONPATH."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NVTXMOE", "PYTHON", "NVTX_", "NSYS"))}
    full = {**clean, "PYTHONPATH": os.pathsep.join(map(str, path)), **env}
    return subprocess.run([sys.executable, "-c", program], env=full, capture_output=True, text=True, check=False)


USE = "from vllm.v1.worker.gpu_worker import Worker; print(Worker().load_model())"


def test_no_adapter_fits_one_warning_and_vllm_runs_on(invented: Path) -> None:
    done = python(USE, SITE, invented, NVTXMOE_ENABLE="1")
    assert (done.returncode, done.stdout) == (0, "loaded\n")
    warnings = [line for line in done.stderr.splitlines() if "nvtxmoe" in line]
    assert len(warnings) == 1
    assert "no adapter fits vLLM 9.9" in warnings[0]
    assert "vllm.v1.worker.gpu_worker.Worker.execute_model" in warnings[0]
    assert "runner_is_layer: " in warnings[0]
    assert "layer_owns_runner: " in warnings[0]


def test_both_ways_together_are_one(invented: Path) -> None:
    program = f"from nvtxmoe.capture.startup.plugin import register; register(); register(); {USE}"
    done = python(program, SITE, invented, NVTXMOE_ENABLE="1")
    assert done.stdout == "loaded\n"
    assert done.stderr.count("no adapter fits") == 1


def test_the_plugin_after_the_worker_was_imported(invented: Path) -> None:
    program = f"{USE}; from nvtxmoe.capture.startup.plugin import register; register()"
    assert python(program, ROOT, invented, NVTXMOE_ENABLE="1").stderr.count("no adapter fits") == 1


@pytest.mark.parametrize("value", ["0", "", "off"])
def test_not_enabled_is_silent_and_imports_nothing(value: str, invented: Path) -> None:
    program = f"from nvtxmoe.capture.startup.plugin import register; register(); {USE}"
    program += "; import sys; print('numpy' in sys.modules)"
    done = python(program, SITE, invented, NVTXMOE_ENABLE=value)
    assert (done.stdout, done.stderr) == ("loaded\nFalse\n", "")


def test_a_program_without_vllm_notices_nothing(tmp_path: Path) -> None:
    program = "import sys, sitecustomize; print(sorted(m for m in sys.modules if m.startswith(('numpy', 'nvtx.'))))"
    done = python(program, SITE, NVTXMOE_ENABLE="1", NVTXMOE_OUTPUT_DIR=str(tmp_path))
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_a_warning_where_vllm_is_imported_and_nowhere_else(invented: Path) -> None:
    wrong = {"NVTXMOE_ENABLE": "1", "NVTXMOE_MODE": "fast"}
    done = python(USE, SITE, invented, **wrong)
    assert (done.returncode, done.stdout) == (0, "loaded\n")
    (line,) = done.stderr.splitlines()
    said = "nothing is recorded: NVTXMOE_MODE: 'fast' is not accepted. Give one of auto, nsys, moe, both, live"
    assert line.endswith(said)
    assert python("print(1)", SITE, **wrong).stderr == ""


def test_the_sitecustomize_behind_ours_runs_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.behind = 7\nNAME = __name__\n")
    for enable in ("0", "1"):
        done = python("import sitecustomize; print(behind, sitecustomize.NAME)", SITE, tmp_path, NVTXMOE_ENABLE=enable)
        assert (done.stdout, done.stderr) == ("7 sitecustomize\n", "")


def test_one_that_fails_is_reported_as_python_does_and_ours_works(tmp_path: Path, invented: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise RuntimeError('theirs')\n")
    done = python(USE, SITE, tmp_path, invented, NVTXMOE_ENABLE="1")
    assert done.stdout == "loaded\n"
    assert "theirs" in done.stderr
    assert done.stderr.count("no adapter fits") == 1


def test_the_installed_package_wins_over_the_folder_beside_site(tmp_path: Path) -> None:
    other = tmp_path / "nvtxmoe"
    other.mkdir()
    (other / "__init__.py").write_text("")
    startup = other / "capture" / "startup"
    startup.mkdir(parents=True)
    for package in (startup.parent, startup):
        (package / "__init__.py").write_text("")
    (startup / "import_watch.py").write_text("def watch(*_): print('the installed one')\n")
    (startup / "plugin.py").write_text("register = None\n")
    assert python("pass", SITE, tmp_path, NVTXMOE_ENABLE="1").stdout == "the installed one\n"


def test_nothing_else_of_the_folder_becomes_importable(tmp_path: Path) -> None:
    """As when nvtxmoe lies in the site-packages of another environment, and is in none of this one's."""
    packages = tmp_path / "other" / "site-packages"
    shutil.copytree(ROOT / "nvtxmoe", packages / "nvtxmoe", ignore=shutil.ignore_patterns("__pycache__", "data"))
    (packages / "optional_dependency.py").write_text("")
    program = (
        "import importlib.util as u, nvtxmoe, nvtxmoe.capture.startup.settings as c\n"
        "print(u.find_spec('optional_dependency'), nvtxmoe.__file__, c.__file__)"
    )
    base = Path(sys.base_prefix) / "bin" / "python3"
    env = {"PYTHONPATH": str(packages / "nvtxmoe" / "site"), "NVTXMOE_ENABLE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run([str(base), "-c", program], env=env, capture_output=True, text=True, check=True)
    package = packages / "nvtxmoe"
    assert done.stdout == f"None {package / '__init__.py'} {package / 'capture' / 'startup' / 'settings.py'}\n"
    assert done.stderr == ""


def test_copies_of_the_folder_on_the_path_are_run_once_each(tmp_path: Path, invented: Path) -> None:
    copies = [tmp_path / "a", tmp_path / "b"]
    for copy in copies:
        shutil.copytree(ROOT / "nvtxmoe", copy / "nvtxmoe", ignore=shutil.ignore_patterns("__pycache__", "data"))
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "sitecustomize.py").write_text("import builtins\nbuiltins.behind = 7\n")
    path = [copy / "nvtxmoe" / "site" for copy in copies]
    for enable in ("0", "1"):
        done = python(f"{USE}; print(behind)", *path, SITE, invented, tmp_path / "last", NVTXMOE_ENABLE=enable)
        assert done.stdout == "loaded\n7\n"
        assert done.stderr.count("nvtxmoe") == (0 if enable == "0" else done.stderr.count("\n"))
        assert done.stderr.count("no adapter fits") == int(enable)


@pytest.mark.parametrize("module", ["vllm", "vllm.v1.worker.gpu_worker"])
def test_looking_for_a_spec_is_no_import(module: str, invented: Path) -> None:
    done = python(f"import importlib.util as u; u.find_spec('{module}'); {USE}", SITE, invented, NVTXMOE_ENABLE="1")
    assert done.stdout == "loaded\n"
    assert done.stderr.count("no adapter fits") == 1


def test_an_import_that_raised_is_no_import(invented: Path) -> None:
    worker = invented / "vllm" / "v1" / "worker" / "gpu_worker.py"
    worker.write_text(
        "import builtins\nif not hasattr(builtins, 'again'):\n    raise ImportError\n" + worker.read_text()
    )
    program = "import builtins\ntry:\n    import vllm.v1.worker.gpu_worker\nexcept ImportError:\n    pass\n"
    done = python(f"{program}builtins.again = 1\n{USE}", SITE, invented, NVTXMOE_ENABLE="1")
    assert done.stdout == "loaded\n"
    assert done.stderr.count("no adapter fits") == 1


def test_a_watched_module_is_as_if_nobody_had_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "watched_module.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls: list[int] = []
    import_watch.watch("watched_module", lambda: calls.append(1))
    try:
        import watched_module  # type: ignore[import-not-found]  # noqa: PLC0415

        assert (calls, watched_module.X) == ([1], 1)
        assert type(watched_module.__loader__).__name__ == "SourceFileLoader"
        assert watched_module.__spec__.loader is watched_module.__loader__
        import_watch.watch("watched_module", lambda: calls.append(2))
        assert calls == [1, 2]
    finally:
        import_watch.unwatch()
        sys.modules.pop("watched_module", None)
    assert not any(type(one).__name__ == "_Finder" for one in sys.meta_path)


def test_a_callback_that_raises_does_not_break_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "watched_too.py").write_text("X = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_watch.watch("watched_too", lambda: 1 // 0)  # type: ignore[arg-type]
    try:
        import watched_too  # type: ignore[import-not-found]  # noqa: PLC0415

        assert watched_too.X == 2
    finally:
        import_watch.unwatch()
        sys.modules.pop("watched_too", None)


#: What vLLM does with the entry points of its group, and the launcher's sitecustomize that runs no other.
LOADS_PLUGINS = """
from importlib.metadata import entry_points
found = {point.name: point.load() for point in entry_points(group="vllm.general_plugins")}
for register in found.values():
    register()
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    """A folder as opentelemetry-instrument puts it first on PYTHONPATH."""
    folder = tmp_path / "launcher"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import builtins\nbuiltins.launched = True\n")
    return folder


def test_vllm_finds_the_plugin_behind_another_sitecustomize(launcher: Path, invented: Path) -> None:
    program = f"assert launched\n{LOADS_PLUGINS}\n{USE}"
    done = python(program, launcher, SITE, invented, NVTXMOE_ENABLE="1")
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr
    assert done.stderr.count("no adapter fits") == 1
    assert python(USE, launcher, SITE, invented, NVTXMOE_ENABLE="1").stderr == ""  # vLLM's plugins are the way in


def test_the_plugin_by_path_and_the_sitecustomize_are_one(invented: Path) -> None:
    done = python(f"{LOADS_PLUGINS}\n{USE}", SITE, invented, NVTXMOE_ENABLE="1")
    assert done.stderr.count("no adapter fits") == 1


def test_the_plugin_by_path_needs_no_installed_nvtxmoe_and_is_silent_when_off(launcher: Path, invented: Path) -> None:
    base = Path(sys.base_prefix) / "bin" / "python3"  # has no nvtxmoe
    program = f"import sys\n{LOADS_PLUGINS}\nprint('nvtxmoe' in sys.modules)"
    path = os.pathsep.join(map(str, (launcher, SITE, invented)))
    for enable, loaded in (("0", True), ("", False), ("1", True)):
        env = {"PYTHONPATH": path, "NVTXMOE_ENABLE": enable, "PATH": os.environ["PATH"]}
        done = subprocess.run([str(base), "-c", program], env=env, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (f"{loaded}\n", "")


@pytest.mark.parametrize("way", [shallow_copy, deepcopy])
def test_a_copied_loader_of_a_watched_module_loads_and_calls_back_once(
    way: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watched_copy.py").write_text("X = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls: list[int] = []
    import_watch.watch("watched_copy", lambda: calls.append(1))
    try:
        spec = find_spec("watched_copy")
        assert spec is not None
        assert spec.loader is not None
        spec.loader = way(spec.loader)
        assert getattr(spec.loader, "path", None) == str(tmp_path / "watched_copy.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        assert (module.X, calls) == (3, [1])
        import watched_copy  # type: ignore[import-not-found]  # noqa: PLC0415

        assert (watched_copy.X, calls) == (3, [1])
    finally:
        import_watch.unwatch()
        sys.modules.pop("watched_copy", None)


def test_a_pickled_loader_is_the_modules_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "watched_pickle.py").write_text("X = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_watch.watch("watched_pickle", lambda: None)
    try:
        spec = find_spec("watched_pickle")
        assert spec is not None
        loader = pickle.loads(pickle.dumps(spec.loader))
        assert type(loader).__name__ == "SourceFileLoader"
        assert loader.path == str(tmp_path / "watched_pickle.py")
    finally:
        import_watch.unwatch()
