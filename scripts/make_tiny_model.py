#!/usr/bin/env python3
"""Writes a tiny mixture-of-experts model that vLLM runs on any machine: a config.json and a byte-level tokenizer.

    scripts/make_tiny_model.py DIR --family qwen3_moe
    vllm serve DIR --load-format dummy --enforce-eager

There are no weights: `--load-format dummy` makes them up. Needs nothing but Python. A token is a byte of UTF-8.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HIDDEN_SIZE = 128
EXPERT_SIZE = 64
HEADS = 4
KV_HEADS = 2
HEAD_SIZE = 64
VOCABULARY = 320
MOST_TOKENS = 2048
SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _shared(architecture: str, model_type: str, layers: int) -> dict[str, Any]:
    """What the configurations have in common."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "hidden_act": "silu",
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "max_position_embeddings": MOST_TOKENS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def _qwen3_moe(layers: int, experts: int, top_k: int) -> dict[str, Any]:
    return _shared("Qwen3MoeForCausalLM", "qwen3_moe", layers) | {
        "decoder_sparse_step": 1,
        "head_dim": HEAD_SIZE,
        "mlp_only_layers": [],
        "moe_intermediate_size": EXPERT_SIZE,
        "norm_topk_prob": True,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
    }


def _mixtral(layers: int, experts: int, top_k: int) -> dict[str, Any]:
    return _shared("MixtralForCausalLM", "mixtral", layers) | {
        "head_dim": HEAD_SIZE,
        "intermediate_size": EXPERT_SIZE,
        "num_experts_per_tok": top_k,
        "num_local_experts": experts,
        "sliding_window": None,
    }


def _olmoe(layers: int, experts: int, top_k: int) -> dict[str, Any]:
    return _shared("OlmoeForCausalLM", "olmoe", layers) | {
        "hidden_size": HEADS * HEAD_SIZE,  # OLMoE has no head size of its own
        "intermediate_size": EXPERT_SIZE,
        "norm_topk_prob": False,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "num_key_value_heads": HEADS,
    }


def _deepseek_v3(layers: int, experts: int, top_k: int) -> dict[str, Any]:
    """The first layer is dense. Two groups of experts, routed within one, where the numbers allow it."""
    groups = 2 if experts % 2 == 0 and 2 <= top_k <= experts // 2 else 1
    return _shared("DeepseekV3ForCausalLM", "deepseek_v3", layers) | {
        "first_k_dense_replace": 1,
        "kv_lora_rank": 512,  # with qk_rope_head_dim the one shape that vLLM's MLA takes on CPU
        "moe_intermediate_size": EXPERT_SIZE,
        "moe_layer_freq": 1,
        "n_group": groups,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": top_k,
        "num_key_value_heads": HEADS,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": 64,
    }


def _gpt_oss(layers: int, experts: int, top_k: int) -> dict[str, Any]:
    return _shared("GptOssForCausalLM", "gpt_oss", layers) | {
        "attention_bias": True,
        "experts_per_token": top_k,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "intermediate_size": EXPERT_SIZE,
        "layer_types": ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)],
        "num_experts_per_tok": top_k,
        "num_local_experts": experts,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
    }


FAMILIES = {
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
}


def byte_letters() -> list[str]:
    """The 256 letters that byte-level tokenizers write bytes with, in the order of the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def tokenizer(seed: int) -> dict[str, Any]:
    """A tokenizer.json: id = byte, then the special tokens, then made-up words that only the model says."""
    chance = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < VOCABULARY - 256 - len(SPECIAL):
        syllables = (chance.choice("bdfgklmnprst") + chance.choice("aeiou") for _ in range(3))
        words["Ġ" + "".join(syllables)] = None
    letters = byte_letters()
    vocabulary = {letter: byte for byte, letter in enumerate(letters)}
    vocabulary |= {token: 256 + place for place, token in enumerate((*SPECIAL, *words))}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 256 + place,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for place, token in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def write_model(folder: Path, family: str, *, layers: int = 3, experts: int = 8, top_k: int = 2, seed: int = 0) -> Path:
    """Write config.json, generation_config.json, tokenizer.json and tokenizer_config.json.

    Parameters:
        folder: where, made if need be; files of these names are replaced.
        family: one of ``FAMILIES``.
        layers: decoder layers. In deepseek_v3 the first is dense, in the others all have experts.
        experts: experts a layer.
        top_k: experts a token.
        seed: of the made-up words in the vocabulary.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown family, or numbers that make no model.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: give one of {', '.join(FAMILIES)}")
    fewest_layers = 2 if family == "deepseek_v3" else 1
    if layers < fewest_layers or not 1 <= top_k <= experts:
        raise ValueError(f"give at least {fewest_layers} layers and a top_k from 1 to the number of experts")
    files: dict[str, dict[str, Any]] = {
        "config.json": FAMILIES[family](layers, experts, top_k),
        "generation_config.json": {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258},
        "tokenizer.json": tokenizer(seed),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[1],
            "pad_token": SPECIAL[2],
            "clean_up_tokenization_spaces": False,
            "model_max_length": MOST_TOKENS,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="qwen3_moe")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the made-up words in the vocabulary")
    arguments = parser.parse_args(argv)
    try:
        made = write_model(
            arguments.folder,
            arguments.family,
            layers=arguments.layers,
            experts=arguments.experts,
            top_k=arguments.top_k,
            seed=arguments.seed,
        )
    except ValueError as error:
        parser.error(str(error))
    print(made)


if __name__ == "__main__":
    main()
