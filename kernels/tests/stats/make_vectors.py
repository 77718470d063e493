"""Write test/vectors/fingerprints.json anew: `python -m tests.stats.make_vectors` in kernels/.

What it holds is checked from both sides, by test_fingerprint.py and by packages/control/test/stats:
configurations as their models publish them, and what the TypeScript and the Python side must both make of
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[3] / "test" / "vectors" / "fingerprints.json"

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "rope_theta": 150000,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
}
SMALL = {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50304}

ACCEPTED: dict[str, dict[str, Any]] = {
    "llama without theta or kv heads, as first published": {
        **{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "llama 3.1": {**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama 3.1 as saved by transformers 5": {**LLAMA, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    "llama, linear, old key": {
        **LLAMA,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama, theta not whole": {**LLAMA, "rope_theta": 12345.678},
    "qwen3": {**QWEN3, "rope_scaling": None},
    "qwen3, yarn, old key": {**QWEN3, "rope_scaling": YARN},
    "qwen3, yarn, length from the model": {**QWEN3, "rope_scaling": {"rope_type": "yarn", "factor": 1.5}},
    "qwen3, yarn with its own factors": {
        **QWEN3,
        "rope_scaling": {**YARN, "attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2},
    },
    "qwen2": {**QWEN3, "model_type": "qwen2", "rope_theta": 1000000.0, "use_mrope": False},
    "gpt-oss": GPT_OSS,
    "gemma3, one set a layer type": {
        **GEMMA3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "stablelm, part of the head": {
        **SMALL,
        "model_type": "stablelm",
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000,
        "max_position_embeddings": 4096,
    },
    "gpt-neox, other names": {
        **SMALL,
        "model_type": "gpt_neox",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "max_position_embeddings": 2048,
    },
    "glm, interleaved": {
        "model_type": "glm",
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}

# Field that the error must name.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no rotary embedding": (
        {**SMALL, "model_type": "gpt2", "num_key_value_heads": 32, "max_position_embeddings": 1024},
        "rope_theta",
    ),
    "longrope": (
        {
            **LLAMA,
            "rope_theta": 10000,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
        },
        "rope_type",
    ),
    "dynamic": (
        {**LLAMA, "rope_theta": 10000, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_type",
    ),
    "several axes": (
        {**QWEN3, "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        "rope_parameters.mrope_section",
    ),
    "latent attention": ({**LLAMA, "rope_theta": 10000, "kv_lora_rank": 512}, "kv_lora_rank"),
    "layers without rotation": (
        {**LLAMA, "model_type": "smollm3", "rope_theta": 10000, "no_rope_layers": [1, 1, 1, 0]},
        "no_rope_layers",
    ),
    "linear without factor": (
        {**LLAMA, "rope_theta": 10000, "rope_scaling": {"type": "linear"}},
        "rope_parameters.factor",
    ),
    "unknown parameter": (
        {**LLAMA, "rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 1.5}},
        "rope_parameters.alpha",
    ),
    "odd number of rotated dimensions": (
        {**LLAMA, "rope_theta": 10000, "partial_rotary_factor": 0.26},
        "rotary dim",
    ),
    "heads that do not divide": (
        {**LLAMA, "rope_theta": 10000, "num_key_value_heads": 5},
        "num_key_value_heads",
    ),
    "heads by layer": ({**LLAMA, "rope_theta": 10000, "num_attention_heads": [8, 16]}, "num_attention_heads"),
    "theta as text": ({**LLAMA, "rope_theta": "10000"}, "rope_theta"),
}


def build() -> dict[str, Any]:
    """The vectors: by the Python side, from transformers' own configuration objects."""
    from transformers import AutoConfig

    from triattn import model

    accepted = []
    for name, config in ACCEPTED.items():
        rest = {k: v for k, v in json.loads(json.dumps(config)).items() if k != "model_type"}
        known = AutoConfig.for_model(config["model_type"], **rest)
        identity = model.identity(known)
        inverse, scaling = model.inv_freq(known)
        accepted.append(
            {
                "name": name,
                "config": config,
                "canonical": model.canonical_json(identity),
                "fingerprint": model.fingerprint(identity),
                "pairing": model.geometry(known).rotary.pairing,
                "attentionScaling": scaling,
                "inverse": inverse.tolist(),
            }
        )
    refused = [{"name": name, "config": config, "field": field} for name, (config, field) in REFUSED.items()]
    return {"accepted": accepted, "refused": refused}


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(build(), indent=1) + "\n")
