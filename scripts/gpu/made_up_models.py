"""Configurations of made-up models in sizes that GPU kernels take, and the quantisations that they can be run in.

There are no weights: ``load_format="dummy"`` makes them up, in the form that a quantisation's checkpoints have.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.make_tiny_model import write_model

#: Sizes that fused kernels like, in the place of the tiny ones.
SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "moe_intermediate_size": 256,
    "intermediate_size": 1024,
    "torch_dtype": "bfloat16",
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
#: Shared experts with a gate of their own, and a dense first layer.
QWEN2 = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 256,
    "mlp_only_layers": [0],
}
FAMILIES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "deepseek_v3", "gpt_oss")
#: Families whose ``intermediate_size`` is that of an expert.
EXPERT_SIZED = ("mixtral",)


@dataclass(frozen=True)
class Quantisation:
    """One way to quantise.

    Attributes:
        config: what it adds to config.json.
        engine: arguments of the engine.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


QUANTISATIONS: dict[str, Quantisation] = {
    "none": Quantisation(),
    # at load, from a bf16 checkpoint
    "fp8": Quantisation(engine={"quantization": "fp8"}),
    "fp8_per_block": Quantisation(engine={"quantization": "fp8_per_block"}),
    "mxfp8": Quantisation(engine={"quantization": "mxfp8"}),
    "int8": Quantisation(engine={"quantization": "int8_per_channel_weight_only"}),
    # in the checkpoint
    "fp8_block": Quantisation(
        config={
            "quantization_config": {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "weight_block_size": [128, 128],
            }
        }
    ),
    "int4": Quantisation(
        config={
            "quantization_config": {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": 64,
                "desc_act": False,
                "sym": True,
                "lm_head": False,
                "modules_in_block_to_quantize": ["mlp.experts"],
            }
        }
    ),
    "nvfp4": Quantisation(
        config={
            "quantization_config": {
                "quant_method": "modelopt",
                "quant_algo": "NVFP4",
                "group_size": 16,
                "kv_cache_scheme": None,
                "ignore": ["lm_head", "*.mlp.gate", "*.self_attn*"],
            }
        }
    ),
    "mxfp4": Quantisation(
        config={
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
            }
        }
    ),
}


def model_folder(
    family: str,
    layers: int,
    experts: int,
    top_k: int,
    *,
    quantisation: str = "none",
    draft_layers: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the config.json of a family in GPU-friendly sizes into a new temporary folder.

    Parameters:
        family: one of ``FAMILIES``.
        quantisation: one of ``QUANTISATIONS``.
        draft_layers: layers for multi-token prediction, in deepseek_v3.
        changes: further keys of config.json.

    Returns:
        The folder.

    Raises:
        ValueError: ``draft_layers`` of another family than deepseek_v3.
    """
    if draft_layers and family != "deepseek_v3":
        raise ValueError(f"{family} has no draft layers here: use deepseek_v3")
    base = "qwen3_moe" if family == "qwen2_moe" else family
    folder: Path = write_model(Path(tempfile.mkdtemp()), base, layers=layers, experts=experts, top_k=top_k)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if family == "qwen2_moe":
        config.update(QWEN2)
    sizes = SIZES if family not in EXPERT_SIZED else {**SIZES, "intermediate_size": SIZES["moe_intermediate_size"]}
    config.update({key: value for key, value in sizes.items() if key in config})
    if family == "deepseek_v3":  # what the attention back ends of Hopper take
        config.update(qk_nope_head_dim=128, v_head_dim=128, num_nextn_predict_layers=draft_layers)
    if family == "gpt_oss":
        config.update(intermediate_size=SIZES["hidden_size"])
    config.update(QUANTISATIONS[quantisation].config)
    config.update(changes or {})
    path.write_text(json.dumps(config))
    return folder
