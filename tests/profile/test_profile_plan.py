"""What `nvtxmoe profile` decides before it runs anything: the command line, the environment, nsys and nvtx."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import nvtxmoe
from nvtxmoe.profile import nsys_command
from nvtxmoe.profile.secrets import without_secrets
from tests.support.cli import everything, refused, run
from tests.support.profile_plans import (
    dry_run,
    executable,
    forget_settings,
    install_nvtx,
    no_run,
    shown_command,
    variables,
)

SITE = str(Path(nvtxmoe.__file__).parent / "site")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture
def nvtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return partial(install_nvtx, tmp_path, monkeypatch)


# The command line


def test_the_command_line_of_nsys(nsys: Callable[..., Path], tmp_path: Path) -> None:
    ran = dry_run("--nsys", nsys(), "-o", tmp_path / "out", "--", sys.executable, "-c", "print(1)")
    command = shown_command(ran)
    session = command.pop(8)
    assert session.startswith("--session-new=nvtxmoe-")
    assert command == [
        str(nsys()), "profile", "-t", "cuda,nvtx", "--cuda-graph-trace=node", "-s", "none", "--cpuctxsw=none",
        "-o", str(tmp_path / "out" / "report"), sys.executable, "-c", "print(1)",
    ]  # fmt: skip


def test_other_traces_and_options(tmp_path: Path) -> None:
    command = nsys_command.profile_command(
        Path("/n/nsys"), ["a", "--", "b"], tmp_path, session="s", trace="nvtx", more=["--delay=3", "--gpu-metrics"]
    )
    assert command == [
        "/n/nsys", "profile", "-t", "nvtx", "-s", "none", "--cpuctxsw=none", "--session-new=s", "--delay=3",
        "--gpu-metrics", "-o", str(tmp_path / "report"), "a", "--", "b",
    ]  # fmt: skip


def test_a_dry_run_leaves_nothing(nsys: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "here"
    there.mkdir()
    monkeypatch.chdir(there)
    ran = dry_run("--nsys", nsys(), "--num-requests", 5, "--", sys.executable, "-c", "open('made', 'w')")
    assert f"{there}/profiling_results_2" in ran.out
    assert everything(there) == {}


def test_a_dry_run_where_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = dry_run("vllm", "serve", "M", "--port", "9")
    notes = [line for line in ran.out.splitlines() if line.startswith("# ")]
    assert len(notes) == 3
    assert notes[0].startswith("# no such command: vllm. ")
    assert notes[1].startswith("# no nsys was found. ")
    assert notes[2].startswith("# --shutdown-timeout 90 is added: ")
    assert shown_command(ran)[0] == "nsys"
    assert shown_command(ran)[-6:] == ["serve", "M", "--port", "9", "--shutdown-timeout", "90"]


# The environment


def test_capture_is_switched_on(nsys: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/first:/second")
    monkeypatch.setenv("NVTXMOE_SESSION_DIR", "/of/someone/else")
    ran = dry_run("--nsys", nsys(), "--", sys.executable)
    assert ran.out.startswith("env -u NVTXMOE_SESSION_DIR NVTXMOE_ENABLE=1 ")
    assert variables(ran) == {
        "NVTXMOE_ENABLE": "1",
        "NVTXMOE_MODE": "nsys",
        "NVTXMOE_PAYLOAD": "words",
        "PYTHONPATH": f"{SITE}:/first:/second",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "60",
    }


def test_settings_are_handed_on(nsys: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "7")
    options = ["--log-interval", 5, "--emit", "ranges,counts", "--layers", "0-3", "--verbose", "--mode", "both"]
    found = variables(dry_run("--nsys", nsys(), "-o", "/o", *options, "--", sys.executable))
    assert found == {
        "NVTXMOE_ENABLE": "1",
        "NVTXMOE_MODE": "both",
        "NVTXMOE_PAYLOAD": "words",
        "NVTXMOE_LOG_INTERVAL": "5",
        "NVTXMOE_EMIT": "ranges,counts",
        "NVTXMOE_LAYERS": "0-3",
        "NVTXMOE_VERBOSE": "1",
        "NVTXMOE_SESSION_DIR": "/o/session",
        "PYTHONPATH": SITE,
    }


@pytest.mark.parametrize(
    ("plugins", "let_in"), [("", "nvtxmoe"), ("lora", "lora,nvtxmoe"), ("nvtxmoe,lora", None), (None, None)]
)
def test_the_plugin_is_let_in(
    plugins: str | None, let_in: str | None, nsys: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher's sitecustomize may hide nvtxmoe's: then vLLM's plugins are the only way in."""
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    assert variables(dry_run("--nsys", nsys(), "--", sys.executable)).get("VLLM_PLUGINS") == let_in


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "x"], "NVTXMOE_LAYERS: 'x' is not accepted. Give all, or a list as 0,3,8-11"),
        (["--emit", "all"], "NVTXMOE_EMIT: 'all' is not accepted. Give a list of ranges, counts"),
        (["--log-interval", "-1"], "NVTXMOE_LOG_INTERVAL: '-1' is not accepted. Give a whole number"),
    ],
)
def test_wrong_settings_are_errors_at_the_start(options: list[str], said: str, tmp_path: Path) -> None:
    ran = run("profile", "--mode", "moe", "-o", tmp_path / "out", *options, "--", sys.executable, "-c", "")
    refused(ran, said)
    assert not (tmp_path / "out").exists()


def test_without_nsys_only_files_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTXMOE_NSYS", "/nonexistent")
    ran = dry_run("--mode", "moe", "-o", "/o", "--", sys.executable, "x.py")
    assert shown_command(ran) == [sys.executable, "x.py"]
    found = variables(ran)
    assert (found["NVTXMOE_MODE"], found["NVTXMOE_SESSION_DIR"]) == ("moe", "/o")
    assert "NVTXMOE_PAYLOAD" not in found


# nsys and nvtx


@pytest.mark.parametrize(
    ("version", "blobs", "nsys_version", "payload"),
    [
        ("0.2.15", True, "2025.3.1.90-x", "binary"),
        ("0.2.15", False, "2024.5.1.113-x", "words"),
        ("0.2.11", True, "2025.3.1.90-x", "words"),
        ("0.2.11", False, "2023.4.4.54-x", "words"),
    ],
)
def test_payloads_are_what_nvtx_and_nsys_carry(
    version: str, blobs: bool, nsys_version: str, payload: str, nsys: Callable[..., Path], nvtx: Callable[[str], None]
) -> None:
    nvtx(version)
    found = variables(dry_run("--nsys", nsys(nsys_version, blobs), "--", sys.executable))
    assert found["NVTXMOE_PAYLOAD"] == payload


def test_the_payload_asked_for(
    nsys: Callable[..., Path], nvtx: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvtx("0.2.15")
    monkeypatch.setenv("NVTXMOE_PAYLOAD", "words")
    assert variables(dry_run("--nsys", nsys(), "--", sys.executable))["NVTXMOE_PAYLOAD"] == "words"


def test_nvtx_too_new_for_nsys(nsys: Callable[..., Path], nvtx: Callable[[str], None], tmp_path: Path) -> None:
    nvtx("0.2.15")
    refused(
        no_run(tmp_path, "--nsys", nsys("2023.4.4.54-x", False)),
        f"nsys 2023.4.4.54-x records nothing of what nvtx 0.2.15 emits ({sys.executable}). ",
        f"Run {sys.executable} -m pip install nvtx==0.2.11, or use an nsys of 2025",
    )


def test_nvtx_too_new_for_the_real_nsys(nsys_path: Path, nvtx: Callable[[str], None], tmp_path: Path) -> None:
    nvtx("0.2.17")
    refused(no_run(tmp_path, "--nsys", nsys_path), "records nothing of what nvtx 0.2.17 emits")


def test_no_nvtx(nsys: Callable[..., Path], tmp_path: Path) -> None:
    python = executable(tmp_path / "bare" / "python3", "#!/bin/sh", f'exec "{sys.executable}" -I -S "$@"')
    refused(
        no_run(tmp_path, "--nsys", nsys(), python=str(python)),
        f"the command's Python has no nvtx ({python}). Run {python} -m pip install nvtx",
    )


def test_a_python_that_does_not_run(nsys: Callable[..., Path], tmp_path: Path) -> None:
    broken = executable(tmp_path / "python3", "#!/bin/sh", "exit 3")
    refused(no_run(tmp_path, "--nsys", nsys(), "--python", broken), f"does not run: {broken}. Give the right one")


def test_no_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(
        no_run(tmp_path),
        "no nsys was found. Install Nsight Systems, name one with --nsys or NVTXMOE_NSYS, or use --mode moe",
    )


def test_the_nsys_named_is_not_there(tmp_path: Path) -> None:
    refused(no_run(tmp_path, "--nsys", tmp_path / "none"), f"nsys cannot be run ({tmp_path / 'none'}): no such file")


def test_nsys_too_old(nsys: Callable[..., Path], tmp_path: Path) -> None:
    old = nsys("2022.4.2.18-32044700v0", False)
    refused(
        no_run(tmp_path, "--nsys", old),
        f"nsys 2022.4.2.18-32044700v0 is too old ({old}): 2023.4 is the oldest known",
        "Install a newer Nsight Systems",
    )


def test_not_an_nsys(tmp_path: Path) -> None:
    other = executable(tmp_path / "nsys", "#!/bin/sh", "echo hello")
    refused(no_run(tmp_path, "--nsys", other), f"{other} --version does not name its version, it printed: hello")


@pytest.mark.parametrize(
    "options", [[], ["--num-requests", "0", "--", "x"], ["--port", "0", "--", "x"], ["--mode", "x", "y"]]
)
def test_wrong_usage(options: list[str]) -> None:
    refused(run("profile", *options), "nvtxmoe profile --help")


def test_a_word_that_is_no_command() -> None:
    refused(run("profile", "--", "--port", "1"), "no command: --port. Put -- and the command after the options")


def test_keys_are_not_shown() -> None:
    argv = ["vllm", "serve", "M", "--max-tokens", "64", "--api-key", "one", "two", "--port", "80", "--hf-token=three"]
    shown = ["vllm", "serve", "M", "--max-tokens", "64", "--api-key", "***", "***", "--port", "80", "--hf-token=***"]
    assert without_secrets(argv) == shown


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("HF_TOKEN=planted", "HF_TOKEN=***"),
        ("AWS_SECRET_ACCESS_KEY=planted", "AWS_SECRET_ACCESS_KEY=***"),
        ("--token=planted", "--token=***"),
        ("--otlp-headers=x-honeycomb-team=planted", "--otlp-headers=***"),
        ("Authorization: Bearer planted", "Authorization: ***"),
        ("HF_TOKEN='planted' vllm serve M --api-key planted -O2", "HF_TOKEN=*** vllm serve M --api-key *** -O2"),
        ('{"hf_token": "planted", "max_tokens": 7}', '{"hf_token": "***", "max_tokens": 7}'),
        ("https://me:planted@host/x", "https://me:***@host/x"),
        ("hf_plantedplantedplanted", "***"),
        ("MAX_TOKENS=64", "MAX_TOKENS=64"),
        ("--tokenizer=mine", "--tokenizer=mine"),
        ("python -m x --max-num-batched-tokens 64", "python -m x --max-num-batched-tokens 64"),
    ],
)
def test_keys_in_any_form_are_not_shown(word: str, shown: str) -> None:
    assert without_secrets(["env", word, "vllm"]) == ["env", shown, "vllm"]
    assert without_secrets(["curl", "--token", "planted", "-H", "Cookie: planted"])[2:] == ["***", "-H", "Cookie: ***"]


def test_a_percent_sign_in_the_folder_is_one_for_nsys_too() -> None:
    line = nsys_command.profile_command(Path("nsys"), ["python"], Path("/o %p"), session="s")
    assert line[line.index("-o") + 1] == "/o %%p/report"
