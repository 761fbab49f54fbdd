"""`nvtxmoe doctor --model`: how each layer of a model will be recorded, by its config.json and the GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.cli import run
from nvtxmoe.doctor import kernel_choice
from nvtxmoe.doctor.diagnosis import Finding
from nvtxmoe.doctor.examinations.recording_ways import ranges, recording_ways
from nvtxmoe.sizing.model_config import expert_blocks
from nvtxmoe.sizing.model_source import config_file
from scripts.gpu.made_up_models import FAMILIES, QUANTISATIONS, model_folder
from tests.support import fakes

QWEN3 = {
    "model_type": "qwen3_moe", "num_hidden_layers": 48, "num_experts": 128, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": True, "num_nextn_predict_layers": 1,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.47*"]}


def ways(config: dict[str, Any], gpu: str, vllm: str = "0.33.0") -> list[tuple[list[int], str | None]]:
    """Layers and how they are recorded."""
    findings = list(recording_ways(config, gpu, vllm))
    return [(one.details["layers"], one.details["recording"]) for one in findings if "recording" in one.details]


def texts(findings: list[Finding]) -> list[str]:
    return [one.what for one in findings]


@pytest.mark.parametrize(
    ("config", "hopper", "blackwell"),
    [
        (QWEN3, "references", "sink"),
        (QWEN3 | {"norm_topk_prob": False}, "references", "references"),
        (QWEN3 | {"quantization_config": {"quant_method": "fp8"}}, "references", "references"),
        (QWEN3 | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "references", "references"),
        (QWEN3 | {"quantization_config": {"quant_method": "gptq", "bits": 3}}, None, None),
        (QWEN3 | {"quantization_config": {"quant_method": "quark"}}, None, None),
        (QWEN3 | {"quantization_config": {"quant_method": "mxfp4"}}, None, None),
        (GPT_OSS, "recomputed", "sink"),
        ({**GPT_OSS, "quantization_config": None}, "references", "references"),
    ],
)  # fmt: skip
def test_one_way_for_all_layers(config: dict[str, Any], hopper: str | None, blackwell: str | None) -> None:
    layers = list(range(config["num_hidden_layers"]))
    assert ways(config, "NVIDIA H200") == [(layers, hopper)]
    assert ways(config, "NVIDIA GB200") == [(layers, blackwell)]


def test_dense_layers_and_drafts_are_apart() -> None:
    findings = list(recording_ways(DEEPSEEK, "b200", "0.33.0"))
    assert texts(findings) == [
        "layers 0-2: no experts, nothing to record",
        "layers 3-60: sink (the ids that the kernel writes, exact; routing weights are unknown): fp8 in blocks on b200 "
        "(Blackwell) runs TrtLlmFp8ExpertsMonolithic; references with EPLB or DeepEP",
        "layer 61: a draft's (multi-token prediction), not of the model itself",
    ]
    assert [one.level for one in findings] == ["ok", "ok", "note"]


def test_layers_that_the_checkpoint_leaves_unquantised() -> None:
    found = list(recording_ways(QWEN3 | {"quantization_config": NVFP4}, "H100 80GB HBM3", "0.33.1"))
    assert [(one.details["layers"], one.details["weights"]) for one in found] == [
        (list(range(47)), "nvfp4"),
        ([47], "bf16"),
    ]


@pytest.mark.parametrize("pattern", ["model.layers.5.mlp", "model.layers.5", "re:.*layers\\.5\\..*", "*.5.mlp.experts"])
def test_patterns_of_modules_left_out(pattern: str) -> None:
    config = {"quantization_config": {"modules_to_not_convert": [pattern, "re:("]}}
    assert [block for block in range(12) if kernel_choice.left_out(config, block)] == [5]


def test_modules_left_out_that_are_no_experts() -> None:
    names = ["lm_head", "model.layers.*.self_attn", "model.layers.*.mlp.router", "re:.*mlp.gate$", "*.mlp.gate"]
    config = {"quantization_config": {"ignore": names}}
    assert not any(kernel_choice.left_out(config, block) for block in range(4))


@pytest.mark.parametrize(
    ("weights", "activations", "known"),
    [
        ({"type": "int", "num_bits": 4}, None, "int4"),
        ({"type": "float", "num_bits": 4, "group_size": 16}, {"num_bits": 4}, "nvfp4"),
        ({"type": "float", "num_bits": 8, "strategy": "block"}, {"dynamic": True}, "fp8 in blocks"),
        ({"type": "float", "num_bits": 8, "strategy": "channel"}, {"dynamic": True}, "fp8"),
        ({"type": "float", "num_bits": 8, "strategy": "tensor"}, {"dynamic": False}, "fp8 with static scales"),
        ({"type": "int", "num_bits": 8}, {"num_bits": 8}, None),
    ],
)
def test_formats_of_compressed_tensors(
    weights: dict[str, Any], activations: dict[str, Any] | None, known: str | None
) -> None:
    groups = {"group_0": {"weights": weights, "input_activations": activations}}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    assert kernel_choice.weights_format(config) == known


def test_what_is_not_known_is_not_guessed() -> None:
    (model,) = recording_ways({"model_type": "llama4"}, "h200", "0.33.0")
    assert (model.level, model.what) == ("note", "not known: nothing is known here of model_type 'llama4'")
    (no_gpu,) = recording_ways(QWEN3, None, "0.33.0")
    assert (no_gpu.level, no_gpu.remedy) == ("note", "Name the GPU that will serve with --gpu")
    (other,) = recording_ways(QWEN3, "NVIDIA A100-SXM4-80GB", "0.33.0")
    assert other.what.startswith("not known on NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize(
    ("vllm", "said"),
    [
        ("0.34.0", "what follows is true of vLLM 0.33; for 0.34.0 it is not known"),
        ("0.32.0", "what follows is true of vLLM 0.33; for 0.32.0 it is not known"),
        ("dev", "what follows is true of vLLM 0.33; for dev it is not known"),
        (None, "no vLLM is installed here: what follows is true of vLLM 0.33"),
    ],
)
def test_another_vllm(vllm: str | None, said: str) -> None:
    first, second = recording_ways(QWEN3, "h200", vllm)
    assert (first.level, first.what) == ("note", said)
    assert second.details["recording"] == "references"


@pytest.mark.parametrize(
    ("layers", "text"), [([4], "layer 4"), ([0, 1, 2], "layers 0-2"), ([0, 2, 3, 4, 9], "layers 0, 2-4, 9")]
)
def test_ranges(layers: list[int], text: str) -> None:
    assert ranges(layers) == text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_models_of_the_gpu_checks_are_known(family: str, quantisation: str) -> None:
    """The configurations that scripts/gpu runs are read as what they are."""
    config = json.loads((model_folder(family, 3, 8, 2, quantisation=quantisation) / "config.json").read_text())
    expected = {"fp8_block": "fp8 in blocks", "int4": "int4", "nvfp4": "nvfp4", "mxfp4": "MXFP4"}
    assert kernel_choice.weights_format(config) == expected.get(quantisation, "bf16")
    dense = 1 if family in ("qwen2_moe", "deepseek_v3") else 0
    assert expert_blocks(config) == tuple(range(dense, 3))


# The model that is named ---------------------------------------------------------------------------------------------


def cached(home: Path, name: str, revisions: dict[str, dict[str, Any]], main: str | None) -> None:
    """A model in the hub's cache, as its client keeps it."""
    folder = home / "hub" / ("models--" + name.replace("/", "--"))
    for revision, config in revisions.items():
        (folder / "snapshots" / revision).mkdir(parents=True)
        (folder / "snapshots" / revision / "config.json").write_text(json.dumps(config))
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)


def test_a_hub_name_is_looked_up_in_the_local_cache(tmp_path: Path) -> None:
    cached(tmp_path, "Qwen/Qwen3-30B-A3B", {"aaa": QWEN3, "bbb": GPT_OSS}, main="aaa")
    environ = {"HF_HOME": str(tmp_path)}
    found = config_file(Path("Qwen/Qwen3-30B-A3B"), environ)
    assert found is not None
    assert found.parent.name == "aaa"
    assert config_file(Path("Qwen/Qwen3-30B-A3B"), {"HF_HUB_CACHE": str(tmp_path / "hub")}) == found
    assert config_file(Path("Qwen/other"), environ) is None
    assert config_file(Path("/Qwen/Qwen3-30B-A3B"), environ) is None
    assert config_file(tmp_path, environ) is None


def test_the_command_with_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(tmp_path, "deepseek-ai/DeepSeek-V3", {"aaa": DEEPSEEK}, main=None)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")

    def asked(*words: str) -> list[dict[str, Any]]:
        run(["doctor", "--json", *words])
        return list(json.loads(capsys.readouterr().out)["findings"])

    found = asked("--model", "deepseek-ai/DeepSeek-V3", "--gpu", "h200")
    (way,) = [one for one in found if one["topic"] == "recording of layers" and "recording" in one["details"]]
    assert way["details"]["recording"] == "references"
    assert way["details"]["layers"] == list(range(3, 61))
    (estimate,) = [one for one in found if one["topic"] == "estimate"]
    assert "58 MoE layers" in estimate["what"]
    (missing,) = [one for one in asked("--model", "deepseek-ai/other") if one["topic"] == "estimate"]
    assert "nor a model in the local Hugging Face cache" in missing["what"]


def test_the_gpu_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    fakes.executable(tmp_path / "bin" / "nvidia-smi", 'echo "GPU 0: NVIDIA B200 (UUID: GPU-1)"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    run(["doctor", "--json", "--model", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)["findings"]
    recordings = [one["details"]["recording"] for one in found if "recording" in one["details"]]
    assert recordings == ["sink"]
