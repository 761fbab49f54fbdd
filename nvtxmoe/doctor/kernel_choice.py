"""Which kernel vLLM 0.33 chooses by itself for a layer of experts, and what that means for the capture.

Read in the source of vLLM 0.33.0 (``model_executor/layers/fused_moe/oracle/``); what was not read is None. The choice
is that of one engine without EPLB, without an exchange between ranks that has kernels of its own, and without
``--moe-backend`` or a quantisation that the command line asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

#: The version that this module was read in.
READ_IN = (0, 33)
REFERENCES, SINK, RECOMPUTED = "references", "sink", "recomputed"
HOPPER, BLACKWELL = "Hopper", "Blackwell"
#: What ``--gpu`` takes, and a word in the name that the driver gives.
GENERATIONS = {
    "h100": HOPPER, "h200": HOPPER, "h800": HOPPER, "h20": HOPPER, "gh200": HOPPER,
    "b200": BLACKWELL, "b300": BLACKWELL, "gb200": BLACKWELL, "gb300": BLACKWELL,
}  # fmt: skip
BF16, FP8, FP8_STATIC, FP8_BLOCK, MXFP8, NVFP4, MXFP4, INT4 = (
    "bf16", "fp8", "fp8 with static scales", "fp8 in blocks", "mxfp8", "nvfp4", "MXFP4", "int4",
)  # fmt: skip
#: Parts of a quantisation's configuration that name modules left as they are.
_LEFT_OUT = ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules")


@dataclass(frozen=True)
class Choice:
    """The expected kernel of a layer.

    Attributes:
        recording: ``references``, ``sink`` or ``recomputed``.
        kernel: vLLM's name for it.
        otherwise: what changes it; None when nothing does.
    """

    recording: str
    kernel: str
    otherwise: str | None = None


def generation(gpu: str) -> str | None:
    """``HOPPER`` or ``BLACKWELL``, of a driver's name or a value of ``--gpu``; None for others."""
    words = re.split(r"[^a-z0-9]+", gpu.lower())
    return next((GENERATIONS[word] for word in words if word in GENERATIONS), None)


def weights_format(config: Mapping[str, Any]) -> str | None:
    """The format of the experts' weights in a checkpoint; None for one that is not known here.

    Parameters:
        config: a parsed config.json.
    """
    quantisation = _quantisation(config)
    if quantisation is None:
        return BF16
    method = str(quantisation.get("quant_method", "")).lower()
    if method in ("gptq", "awq"):
        return INT4 if quantisation.get("bits", quantisation.get("w_bit")) == 4 else None
    if method == "fp8":
        if quantisation.get("weight_block_size"):
            return FP8_BLOCK
        return FP8_STATIC if quantisation.get("activation_scheme") == "static" else FP8
    if method == "modelopt":
        inner = quantisation.get("quantization")
        algorithm = (inner if isinstance(inner, Mapping) else quantisation).get("quant_algo")
        return {"NVFP4": NVFP4, "FP8": FP8_STATIC, "MXFP8": MXFP8}.get(str(algorithm).upper())
    if method == "compressed-tensors":
        return _compressed(quantisation)
    return {"mxfp4": MXFP4, "mxfp8": MXFP8, "modelopt_fp4": NVFP4, "modelopt_mxfp8": MXFP8}.get(method)


def _compressed(quantisation: Mapping[str, Any]) -> str | None:
    """A format of compressed-tensors, when all its groups of modules have the same."""
    groups = quantisation.get("config_groups")
    formats = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = (group.get("weights") if isinstance(group, Mapping) else None) or {}
        activations = group.get("input_activations") or {}
        kind, bits = weights.get("type"), weights.get("num_bits")
        if (kind, bits) == ("int", 4) and not activations:
            formats.add(INT4)
        elif (kind, bits) == ("float", 4) and weights.get("group_size") == 16:
            formats.add(NVFP4)
        elif (kind, bits, weights.get("strategy")) == ("float", 8, "block"):
            formats.add(FP8_BLOCK)
        elif (kind, bits, weights.get("strategy")) == ("float", 8, "tensor"):
            formats.add(FP8 if activations.get("dynamic") else FP8_STATIC)
        elif (kind, bits, weights.get("strategy")) == ("float", 8, "channel"):
            formats.add(FP8)
        else:
            return None
    return formats.pop() if len(formats) == 1 else None


def left_out(config: Mapping[str, Any], block: int) -> bool:
    """The checkpoint leaves the experts of a decoder layer unquantised."""
    quantisation = _quantisation(config) or {}
    names = [name for key in _LEFT_OUT for name in quantisation.get(key) or () if isinstance(name, str)]
    return any(_covers(name, block) for name in names)


def _covers(pattern: str, block: int) -> bool:
    module = f"model.layers.{block}.mlp.experts"
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], f"{module}.0.up_proj") is not None
        except re.error:
            return False
    parents = [module.rsplit(".", up)[0] for up in range(3)]  # the experts, the block's feed-forward part, the block
    return any(fnmatchcase(parent, pattern.rstrip(".")) for parent in (module, *parents))


def _quantisation(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    quantisation = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    return quantisation if isinstance(quantisation, Mapping) and quantisation else None


def trtllm_routes(model_type: str, config: Mapping[str, Any]) -> bool | None:
    """Return True when TRT-LLM's kernels know the model's routing rule; None where this module does not know the rule.

    Parameters:
        model_type: as ``nvtxmoe.sizing.model_config`` knows it.
        config: the part of config.json that has it.
    """
    if model_type in ("gpt_oss", "mixtral"):
        return True
    if model_type == "olmoe":
        return False
    if model_type.startswith("deepseek"):
        sigmoid = config.get("scoring_func") == "sigmoid" and config.get("topk_method") == "noaux_tc"
        if sigmoid:
            return bool(config.get("norm_topk_prob"))
        return None if config.get("norm_topk_prob") else False
    return bool(config.get("norm_topk_prob", False))


def choose(gpu: str, weights: str, model_type: str, config: Mapping[str, Any]) -> Choice | None:
    """The kernel that vLLM 0.33 chooses; None where it was not read.

    Parameters:
        gpu: ``HOPPER`` or ``BLACKWELL``.
        weights: a format that ``weights_format`` returns.
    """
    return (_on_hopper if gpu == HOPPER else _on_blackwell)(weights, model_type, config)


def _on_hopper(weights: str, model_type: str, config: Mapping[str, Any]) -> Choice | None:  # noqa: ARG001  as the other
    if weights == MXFP4:
        if model_type != "gpt_oss":
            return None
        return Choice(RECOMPUTED, "OAITritonMxfp4ExpertsMonolithic", f"{REFERENCES} with data parallelism or EPLB")
    kernel = {BF16: "Triton", INT4: "Humming or Marlin", NVFP4: "Humming or Marlin", MXFP8: "Humming or Marlin"}
    return Choice(REFERENCES, kernel.get(weights, "Triton, FlashInfer CUTLASS or DeepGEMM"))


def _on_blackwell(weights: str, model_type: str, config: Mapping[str, Any]) -> Choice | None:
    if weights == INT4:
        return Choice(REFERENCES, "Marlin", f"{SINK} with VLLM_USE_FLASHINFER_MOE_INT4=1")
    if weights == MXFP4:
        if model_type != "gpt_oss":
            return None
        return Choice(SINK, "TrtLlmMxfp4ExpertsMonolithic", f"{REFERENCES} with data parallelism or EPLB")
    if weights == BF16 and model_type == "gpt_oss":
        return Choice(REFERENCES, "Triton")
    if weights == FP8:  # scales of activations that are found at run time
        return Choice(REFERENCES, "a modular kernel")
    known = trtllm_routes(model_type, config)
    if known is None:
        return None
    if not known:
        return Choice(REFERENCES, "a modular kernel: TRT-LLM's does not know the routing rule")
    kernel = {BF16: "TrtLlmBf16ExpertsMonolithic", NVFP4: "TrtLlmNvFp4ExpertsMonolithic"}
    otherwise = "with EPLB or an exchange between ranks" if weights == NVFP4 else "with EPLB or DeepEP"
    return Choice(SINK, kernel.get(weights, "TrtLlmFp8ExpertsMonolithic"), f"{REFERENCES} {otherwise}")
