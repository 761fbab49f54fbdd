"""Settings of capture: names, precedence, and errors that say what is accepted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe.capture.startup import start
from nvtxmoe.capture.startup.settings import EMITS, FIELDS, MODES, PAYLOADS, PREFIX, Settings, load
from nvtxmoe.errors import NvtxmoeError
from tests.support.paths import ROOT


def test_nothing_set() -> None:
    assert load({}) == Settings()
    assert (Settings().enable, Settings().log_interval, Settings().mode) == (False, 100, "auto")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ENABLE", "1", True),
        ("ENABLE", "off", False),
        ("ENABLE", "", False),
        ("MODE", "Both", "both"),
        ("LOG_INTERVAL", "0", 0),
        ("LOG_INTERVAL", "25", 25),
        ("LAYERS", "all", None),
        ("LAYERS", "0, 3,8-11", frozenset({0, 3, 8, 9, 10, 11})),
        ("EMIT", "counts, topk", frozenset({"counts", "topk"})),
        ("VERBOSE", "yes", True),
        ("OUTPUT_DIR", "/tmp/x", Path("/tmp/x")),
        ("FLUSH_INTERVAL", "0.5", 0.5),
        ("PAYLOAD", "words", "words"),
        ("WINDOW", "Closed", "closed"),
    ],
)
def test_a_variable_and_the_file_mean_the_same(name: str, text: str, value: object, tmp_path: Path) -> None:
    assert getattr(load({PREFIX + name: text}), name.lower()) == value
    file = tmp_path / "nvtxmoe.toml"
    for key in (name.lower(), PREFIX + name):
        file.write_text(f'{key} = "{text}"\n')
        assert getattr(load({PREFIX + "CONFIG": str(file)}), name.lower()) == value


def test_toml_has_types_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "nvtxmoe.toml"
    file.write_text('enable = true\nlog_interval = 7\nlayers = [1, "4-5"]\nemit = ["counts"]\nflush_interval = 2\n')
    settings = load({PREFIX + "CONFIG": str(file)})
    assert settings == Settings(
        enable=True, log_interval=7, layers=frozenset({1, 4, 5}), emit=frozenset({"counts"}), flush_interval=2.0
    )


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "nvtxmoe.toml"
    file.write_text("log_interval = 7\nenable = true\n")
    settings = load({PREFIX + "CONFIG": str(file), PREFIX + "LOG_INTERVAL": "9"})
    assert (settings.log_interval, settings.enable) == (9, True)


def test_the_other_tools_switch_for_verbose() -> None:
    assert load({"VLLM_PROFILING_VERBOSE": "1"}).verbose
    assert not load({"VLLM_PROFILING_VERBOSE": "0"}).verbose


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("ENABLE", "perhaps", "one of 1, true, yes, on, 0, false, no, off"),
        ("MODE", "fast", "one of " + ", ".join(MODES)),
        ("LOG_INTERVAL", "-1", "a whole number from 0"),
        ("LOG_INTERVAL", "1.5", "a whole number from 0"),
        ("LAYERS", "3-1", "all, or a list as 0,3,8-11"),
        ("LAYERS", " ", "all, or a list as 0,3,8-11"),
        ("OUTPUT_DIR", "~nosuchuser/x", "the path of a folder"),
        ("LAYERS", "0-99999999999", "all, or a list as 0,3,8-11"),
        ("EMIT", "counts,tokens", "a list of " + ", ".join(EMITS)),
        ("FLUSH_INTERVAL", "0", "seconds from 0.01 to 3600"),
        ("FLUSH_INTERVAL", "nan", "seconds from 0.01 to 3600"),
        ("OUTPUT_DIR", " ", "the path of a folder"),
        ("PAYLOAD", "json", "one of " + ", ".join(PAYLOADS)),
    ],
)
def test_a_wrong_value_says_what_is_accepted(name: str, text: str, accepted: str) -> None:
    with pytest.raises(NvtxmoeError) as caught:
        load({PREFIX + name: text})
    assert str(caught.value).startswith(f"{PREFIX}{name}: {text!r}".replace("  ", " ")[:30])
    assert accepted in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("nonsense = 1\n", "unknown setting 'nonsense'"), ("= 1", "no TOML"), ("mode = 'x'\n", "one of auto")],
)
def test_a_wrong_file(text: str, wanted: str, tmp_path: Path) -> None:
    file = tmp_path / "nvtxmoe.toml"
    file.write_text(text)
    with pytest.raises(NvtxmoeError, match=wanted) as caught:
        load({PREFIX + "CONFIG": str(file)})
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NvtxmoeError, match="can't be read"):
        load({PREFIX + "CONFIG": str(tmp_path / "none.toml")})


@pytest.mark.slow
@given(st.sampled_from([n for n in FIELDS if n != "output_dir"]), st.text(max_size=20))
def test_any_text_is_a_value_or_an_error_that_names_the_variable(name: str, text: str) -> None:
    try:
        load({PREFIX + name.upper(): text})
    except NvtxmoeError as error:
        assert error.where == PREFIX + name.upper()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_an_empty_variable_is_as_one_that_is_not_set(name: str) -> None:
    assert load({PREFIX + name.upper(): ""}) == Settings()


@pytest.mark.parametrize("more", [{"NVTXMOE_MODE": "cuda"}, {"NVTXMOE_LAYERS": "x"}])
def test_wrong_values_stop_nobody_while_capture_is_off(more: dict[str, str]) -> None:
    program = "from nvtxmoe.capture.startup.start import start; start(); print('serving')"
    env = {**os.environ, "NVTXMOE_ENABLE": "0", **more}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "serving\n", "")


#: Starts capture as vLLM's plugin does, in this process and a child of it.
REGISTERS = "from nvtxmoe.capture.startup.plugin import register; register(); print('serving', flush=True)"
SERVES = f"{REGISTERS}; import subprocess, sys; subprocess.run([sys.executable, '-c', {REGISTERS!r}], check=True)"


@pytest.mark.parametrize(
    ("setting", "text", "said"),
    [
        ("NVTXMOE_LOG_INTERVAL", "often", "NVTXMOE_LOG_INTERVAL: 'often' is not accepted. Give a whole number"),
        ("NVTXMOE_LAYERS", "abc", "NVTXMOE_LAYERS: 'abc' is not accepted. Give all, or a list as 0,3,8-11"),
        ("NVTXMOE_OUTPUT_DIR", "/proc/nothing", "/proc/nothing: no folder can be made in it"),
        ("NVTXMOE_CONFIG", "/nowhere/x.toml", "/nowhere/x.toml: NVTXMOE_CONFIG names a file that can't be read"),
        ("toml", "layers = " + "[" * 5000 + "]" * 5000, "no TOML"),
        ("toml", "log_interval = " + "9" * 5000, "no TOML"),
        ("toml", "log_interval = 0x" + "f" * 5000, "log_interval: not accepted"),
    ],
)
def test_wrong_settings_are_one_warning_and_vllm_serves(setting: str, text: str, said: str, tmp_path: Path) -> None:
    """The children are silent: capture is off there too."""
    env = {**os.environ, "NVTXMOE_ENABLE": "1", "NVTXMOE_MODE": "moe", "PYTHONPATH": str(ROOT)}
    if setting == "toml":
        (tmp_path / "x.toml").write_text(text + "\n")
        setting, text = "NVTXMOE_CONFIG", str(tmp_path / "x.toml")
    env[setting] = text
    done = subprocess.run([sys.executable, "-c", SERVES], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "serving\nserving\n"), done.stderr
    assert done.stderr.count("\n") == 1
    assert "WARNING: nothing is recorded: " in done.stderr
    assert said in done.stderr
    assert len(done.stderr) < 1000


def test_a_failure_that_nobody_thought_of_switches_capture_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_started", False)
    monkeypatch.setenv("NVTXMOE_ENABLE", "1")

    def broken() -> None:
        raise LookupError("nobody thought of it")

    monkeypatch.setattr("nvtxmoe.capture.startup.settings.load", broken)
    start.start()
    assert os.environ["NVTXMOE_ENABLE"] == "0"
