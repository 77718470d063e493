"""Tiny random models as Hugging Face checkpoints: the same bytes for the same spec, made in milliseconds.

The weights are scaled so that attention is peaked and every layer matters: losing the wrong
token moves log-probs by whole units, while float32 rounding still moves them by 1e-5.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

EXPERTS_PER_TOKEN = 2


@dataclass(frozen=True)
class ModelSpec:
    """Shape of a tiny model; ``family`` is "llama", "qwen3" (with q_norm and k_norm) or "qwen3_moe" (the same with
    a mixture of experts, two of which see each token). ``numbers``: the dtype that its weights are numbers of, so
    that an engine that computes in it has the very weights that the oracle has."""

    name: str
    family: str = "llama"
    layers: int = 3
    query_heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    hidden: int = 128
    intermediate: int = 192
    experts: int = 0
    vocab: int = 256
    max_len: int = 4096
    numbers: str = "float32"
    rotary: dict = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0},
        hash=False,
    )
    seed: int = 0

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.query_heads // self.kv_heads

    def block_bytes(self, block_size: int, tp: int = 1) -> int:
        """Bytes of one KV block of one rank over all layers, float32."""
        return self.layers * 2 * (self.kv_heads // tp) * self.head_dim * block_size * 4


SPECS = {
    spec.name: spec
    for spec in (
        ModelSpec("llama"),
        ModelSpec(
            "qwen3", family="qwen3", layers=4, rotary={"rope_type": "default", "rope_theta": 1000000.0}
        ),
        ModelSpec("mha", layers=2, query_heads=2, kv_heads=2),
        ModelSpec(
            "yarn",
            family="qwen3",
            layers=2,
            rotary={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        ),
        ModelSpec("moe", family="qwen3_moe", layers=2, intermediate=96, experts=4),
        ModelSpec("soak", layers=2, query_heads=4, kv_heads=1, hidden=64, intermediate=64),
    )
}


def config(spec: ModelSpec) -> dict:
    """The checkpoint's config.json."""
    architectures = {
        "llama": "LlamaForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "qwen3_moe": "Qwen3MoeForCausalLM",
    }
    experts = {
        "num_experts": spec.experts,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "moe_intermediate_size": spec.intermediate,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return {
        **(experts if spec.experts else {}),
        "architectures": [architectures[spec.family]],
        "model_type": spec.family,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.query_heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_len,
        "rope_parameters": spec.rotary,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        # No token ends a generation: lengths are the test's to choose.
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }


def weights(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Random float32 weights under Hugging Face names."""
    generator = torch.Generator().manual_seed(spec.seed)

    def normal(*shape: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * (gain / shape[-1] ** 0.5)

    def scale(size: int, centre: float = 1.0) -> torch.Tensor:
        return centre * (1 + 0.2 * torch.randn(size, generator=generator))

    tensors = {
        "model.embed_tokens.weight": torch.randn(spec.vocab, spec.hidden, generator=generator),
        "model.norm.weight": scale(spec.hidden),
        "lm_head.weight": normal(spec.vocab, spec.hidden, gain=2.0),
    }
    q_size, kv_size = spec.query_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for layer in range(spec.layers):
        at = f"model.layers.{layer}."
        # Logits of attention get a standard deviation of about 2.
        gain = 1.3 if spec.family == "llama" else 1.0
        tensors |= {
            at + "input_layernorm.weight": scale(spec.hidden),
            at + "post_attention_layernorm.weight": scale(spec.hidden),
            at + "self_attn.q_proj.weight": normal(q_size, spec.hidden, gain=gain),
            at + "self_attn.k_proj.weight": normal(kv_size, spec.hidden, gain=gain),
            at + "self_attn.v_proj.weight": normal(kv_size, spec.hidden, gain=1.5),
            at + "self_attn.o_proj.weight": normal(spec.hidden, q_size),
        }
        for mlp in [f"{at}mlp.experts.{i}." for i in range(spec.experts)] or [f"{at}mlp."]:
            tensors |= {
                mlp + "gate_proj.weight": normal(spec.intermediate, spec.hidden),
                mlp + "up_proj.weight": normal(spec.intermediate, spec.hidden),
                mlp + "down_proj.weight": normal(spec.hidden, spec.intermediate),
            }
        if spec.experts:
            tensors[at + "mlp.gate.weight"] = normal(spec.experts, spec.hidden, gain=2.0)
        if spec.family != "llama":
            tensors[at + "self_attn.q_norm.weight"] = scale(spec.head_dim, 1.3)
            tensors[at + "self_attn.k_norm.weight"] = scale(spec.head_dim, 1.3)
    return {name: tensor.to(getattr(torch, spec.numbers)).float() for name, tensor in tensors.items()}


def cache_dir() -> Path:
    """Where checkpoints are kept between runs."""
    root = os.environ.get("TRIATTN_TEST_CACHE")
    return Path(root) if root else Path(tempfile.gettempdir()) / f"triattn-tests-{os.getuid()}"


def checkpoint(spec: ModelSpec) -> Path:
    """Directory of the model's checkpoint, made on first use."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + json.dumps(asdict(spec)).encode()).hexdigest()[:12]
    path = cache_dir() / f"{spec.name}-{digest}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent))
    (partial / "config.json").write_text(json.dumps(config(spec), indent=1))
    save_file(weights(spec), partial / "model.safetensors", metadata={"format": "pt"})
    try:
        partial.rename(path)
    except OSError:
        # Another process was first; the bytes are the same.
        if not path.exists():
            raise
    return path


def load_weights(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """The weights as the engine reads them."""
    return load_file(checkpoint(spec) / "model.safetensors")


LEARNED_TERMS = ("superseded", "recency", "trig", "norm", "keydiff", "knorm", "vnorm", "probe")
"""More than are learned by default, so that runs have all of them."""


def statistics(spec: ModelSpec, seed: int = 0) -> Path:
    """A statistics file of the model's geometry with random numbers: what trig, norm and expected terms need."""
    from triattn.model import geometry, identity, inv_freq
    from triattn.statistics import BESIDE_KEYS, UNITS, Learned, save

    directory = checkpoint(spec)
    # Beside the checkpoint: vLLM loads every safetensors file in it.
    path = directory.parent / f"{directory.name}-probe-{seed}.safetensors"
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        form = config(spec)
        frequencies, _ = inv_freq(form)
        shape = (spec.layers, spec.query_heads, len(frequencies))
        real, imag = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        spread = torch.rand(shape, generator=generator)
        size = torch.hypot(real, imag) * (1 + spread) + spread
        tensors = {
            "q_mean_real": real,
            "q_mean_imag": imag,
            "q_abs_mean": size,
            "q_covariance": torch.stack([size, size * (1 + spread), size * (spread - 0.5)]) * size,
            "inv_freq": frequencies,
            "learned_weights": torch.randn(
                (len(LEARNED_TERMS), spec.layers, spec.kv_heads), generator=generator
            ),
            "learned_share": torch.rand((spec.layers, spec.kv_heads), generator=generator),
            "learned_probe": torch.randn(
                (spec.layers, spec.kv_heads, spec.head_dim + BESIDE_KEYS, UNITS[0]), generator=generator
            ),
        }
        save(
            path,
            tensors,
            geometry(form, directory, name=spec.name),
            identity(form),
            tokens=None,
            source="random numbers",
            license="",
            created_by="tests",
            learned=Learned(terms=list(LEARNED_TERMS), tokens=1, seed=seed, kept={}),
        )
    return path
