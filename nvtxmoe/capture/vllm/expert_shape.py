"""Sizes and number types of a layer's experts: what a roofline needs. What vLLM does not show is left out."""

from __future__ import annotations

from typing import Any

from nvtxmoe.capture.run_identity import ExpertShape

#: The method that takes activations as they are.
UNQUANTISED = "UnquantizedFusedMoEMethod"


def expert_shape(moe_config: Any, experts: Any) -> ExpertShape:
    """Return what vLLM shows of the experts on this rank.

    Parameters:
        moe_config: vLLM's FusedMoEConfig. Its unpadded sizes count: rows and columns that a kernel adds are no work.
        experts: the module that holds the experts' weights.
    """
    activation = type_name(getattr(moe_config, "in_dtype", None))
    return ExpertShape(
        hidden_size=_size(moe_config, "hidden_dim_unpadded", "hidden_dim"),
        intermediate_size=_size(
            moe_config, "intermediate_size_per_partition_unpadded", "intermediate_size_per_partition"
        ),
        gated=_gated(moe_config),
        activation_dtype=activation,
        input_dtype=_input_dtype(getattr(experts, "quant_method", None), activation),
    )


def _size(moe_config: Any, *names: str) -> int | None:
    """Return the first of these attributes that is a positive number."""
    for name in names:
        value = getattr(moe_config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _gated(moe_config: Any) -> bool | None:
    value = getattr(moe_config, "is_act_and_mul", None)
    return value if isinstance(value, bool) else None


def _input_dtype(method: Any, activation: str | None) -> str | None:
    """Return the type in which the kernels multiply activations; None where the method does not show it."""
    config = getattr(method, "moe_quant_config", None)
    if config is None or not hasattr(config, "quant_dtype"):
        return activation if type(method).__name__ == UNQUANTISED else None
    return activation if config.quant_dtype is None else type_name(config.quant_dtype)


def type_name(dtype: Any) -> str | None:
    """Return ``bfloat16`` of ``torch.bfloat16``; texts as they are."""
    return None if dtype is None else str(dtype).removeprefix("torch.")
