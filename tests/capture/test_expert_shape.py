"""Sizes and number types of experts, read from objects that look like vLLM's."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from nvtxmoe.capture.run_identity import ExpertShape, LayerInfo
from nvtxmoe.capture.vllm.expert_shape import expert_shape
from nvtxmoe_analysis.events.meta import _layer


class Dtype:
    """Prints itself as torch's types do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"


BF16, FP8 = Dtype("bfloat16"), Dtype("float8_e4m3fn")


class UnquantizedFusedMoEMethod:
    """Named as vLLM's."""

    moe_quant_config: Any = None


def config(**more: Any) -> SimpleNamespace:
    names = {"hidden_dim": 3072, "intermediate_size_per_partition": 2944, "is_act_and_mul": True, "in_dtype": BF16}
    return SimpleNamespace(**{**names, **more})


def experts(quant_dtype: Any) -> SimpleNamespace:
    method = SimpleNamespace(moe_quant_config=SimpleNamespace(quant_dtype=quant_dtype))
    return SimpleNamespace(quant_method=method)


def test_sizes_without_padding_count() -> None:
    padded = config(hidden_dim_unpadded=2880, intermediate_size_per_partition_unpadded=2880)
    assert expert_shape(padded, experts(None)) == ExpertShape(2880, 2880, True, "bfloat16", "bfloat16")
    assert expert_shape(config(), experts(None)) == ExpertShape(3072, 2944, True, "bfloat16", "bfloat16")
    assert expert_shape(config(hidden_dim_unpadded=None), experts(None)).hidden_size == 3072


@pytest.mark.parametrize(("quant", "name"), [(FP8, "float8_e4m3fn"), ("nvfp4", "nvfp4"), (None, "bfloat16")])
def test_type_of_the_products_input(quant: Any, name: str) -> None:
    assert expert_shape(config(), experts(quant)).input_dtype == name


def test_unquantised_method_before_it_has_a_config() -> None:
    found = expert_shape(config(), SimpleNamespace(quant_method=UnquantizedFusedMoEMethod()))
    assert found.input_dtype == "bfloat16"


def test_what_vllm_does_not_show_is_absent() -> None:
    found = expert_shape(SimpleNamespace(hidden_dim=-1), SimpleNamespace())
    assert found == ExpertShape()
    entry = LayerInfo(0, "layer", 4, 2, shape=found).as_dict()
    assert entry == {"layer": 0, "name": "layer", "num_experts": 4, "top_k": 2}


def test_the_analysis_reads_what_capture_writes() -> None:
    shape = expert_shape(config(is_act_and_mul=False), experts(FP8))
    entry = json.loads(json.dumps(LayerInfo(0, "layer", 4, 2, shape=shape).as_dict()))
    layer = _layer(entry)
    read = (layer.hidden_size, layer.intermediate_size, layer.gated, layer.activation_dtype, layer.input_dtype)
    assert read == (3072, 2944, False, "bfloat16", "float8_e4m3fn")
