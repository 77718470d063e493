"""Rotary parameters of a model, read from its configuration and never guessed.

The canonical form made here is what the model's fingerprint is taken over, so it must come out the same from
a `config.json`, from a transformers 5 configuration object, and from one that an engine has already
standardized. packages/control/src/stats/rotary.ts is the same code for Node; test/vectors/fingerprints.json
holds both to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triattn.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Parameters that decide the frequencies of each supported type, with the default that transformers documents
# for an absent one (REQUIRED: none). Anything else in the configuration changes the rotation in ways not
# modelled here.
REQUIRED = object()
PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": REQUIRED},
    "llama3": {
        "factor": REQUIRED,
        "low_freq_factor": REQUIRED,
        "high_freq_factor": REQUIRED,
        "original_max_position_embeddings": REQUIRED,
    },
    "yarn": {
        "factor": REQUIRED,
        "original_max_position_embeddings": REQUIRED,
        "attention_factor": None,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": None,
        "mscale_all_dim": None,
        "truncate": True,
    },
}
_NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Set by some configurations on every type, and without effect on those above.
_INERT = ("original_max_position_embeddings", "finetuned")
_UNSUPPORTED = {
    "kv_lora_rank": "multi-head latent attention",
    "mrope_section": "multi-axis rotary positions",
    "dual_chunk_attention_config": "dual chunk attention",
}

# Which elements of a head form a pair is fixed by each architecture's code, not by its configuration.
# fmt: off
HALF = frozenset((
    "apertus", "arcee", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt_neox", "gpt_oss",
    "granite", "granitemoe", "llama", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3",
    "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "stablelm", "starcoder2",
))
INTERLEAVED = frozenset((
    "codegen", "cohere", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "gptj", "helium",
))
# fmt: on


class ModelError(ConfigError):
    """A configuration that names no supported model: `field` has `value`; `remedy` says what to do."""


def get(config: Any, name: str) -> Any:
    """Value of `name` in a configuration object or mapping; None where absent."""
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def number(field: str, value: Any, *, low: float = 0.0) -> int | float:
    """`value` as an int where it is whole, else a float; ModelError unless finite and above `low`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= low
    ):
        raise ModelError(field, value, f"must be a number above {low:g}; correct the model's config.json")
    return int(value) if value == int(value) else value


def _parameters(config: Any) -> dict[str, Any]:
    """The rope dictionary in force, from `rope_parameters` (transformers 5) or `rope_theta` +
    `rope_scaling`."""
    found = get(config, "rope_parameters") or get(config, "rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise ModelError("rope_parameters", found, "must be an object; correct the model's config.json")
    found = dict(found)
    if any(isinstance(v, Mapping) for v in found.values()):
        # One set a layer type: only full-attention layers are ever compressed, so theirs counts.
        if not isinstance(found.get("full_attention"), Mapping):
            raise ModelError(
                "rope_parameters", sorted(found), "no entry for full_attention layers; unsupported model"
            )
        found = dict(found["full_attention"])
    if found.get("rope_theta") is None:
        found["rope_theta"] = next(
            (v for n in ("rope_theta", "rotary_emb_base") if (v := get(config, n))), None
        )
    return found


def _dim(config: Any, found: Mapping[str, Any], head_dim: int) -> int:
    """Rotated dimensions of a head."""
    names = ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction")
    factor = found.get("partial_rotary_factor")
    if factor is None:
        factor = next((v for n in names if (v := get(config, n)) is not None), None)
    explicit = get(config, "rotary_dim")
    dim = head_dim if factor is None else int(head_dim * number("partial_rotary_factor", factor))
    if explicit is not None:
        if factor is not None and explicit != dim:
            raise ModelError(
                "rotary_dim",
                explicit,
                f"disagrees with partial_rotary_factor = {factor} ({dim} of {head_dim})",
            )
        dim = explicit
    if isinstance(dim, bool) or not isinstance(dim, int) or dim % 2 or not 2 <= dim <= head_dim:
        raise ModelError(
            "rotary dim", dim, f"must be even and between 2 and the head's {head_dim} dimensions"
        )
    return dim


def canonical(config: Any, head_dim: int) -> dict[str, Any]:
    """Canonical rotary parameters: `type`, `theta`, `dim` and those that the type reads, defaults filled in.

    Raises ModelError for missing or unsupported ones.
    """
    for name, what in _UNSUPPORTED.items():
        if get(config, name):
            raise ModelError(name, get(config, name), f"{what} is not supported")
    layers = get(config, "no_rope_layers")
    if layers and not all(layers):
        raise ModelError(
            "no_rope_layers", layers, "models with layers that have no rotary embedding are not supported"
        )
    found = _parameters(config)
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind not in PARAMETERS:
        raise ModelError(
            "rope_type", kind, f"unsupported rotary scaling; supported are {', '.join(PARAMETERS)}"
        )
    if found.get("rope_theta") is None:
        raise ModelError(
            "rope_theta",
            None,
            "the base of the rotary frequencies is missing; add it to the model's config.json",
        )
    result: dict[str, Any] = {
        "type": kind,
        "theta": number("rope_theta", found["rope_theta"]),
        "dim": _dim(config, found, head_dim),
    }
    known = PARAMETERS[kind]
    for name, value in found.items():
        if (
            name not in known
            and name not in _NAMES
            and name not in _INERT
            and value is not None
            and value is not False
        ):
            raise ModelError(
                f"rope_parameters.{name}", value, f"unknown parameter of rotary type {kind}; not supported"
            )
    if "original_max_position_embeddings" in known:
        # transformers' standardization: the model's own field wins, and its maximum length stands in for a
        # missing one.
        known = {
            **known,
            "original_max_position_embeddings": get(config, "max_position_embeddings") or REQUIRED,
        }
        if (own := get(config, "original_max_position_embeddings")) is not None:
            found["original_max_position_embeddings"] = own
    for name, default in known.items():
        value = found.get(name)
        value = default if value is None else value
        if name == "truncate":
            result[name] = bool(value)
        elif value is REQUIRED:
            raise ModelError(
                f"rope_parameters.{name}", None, f"rotary type {kind} needs it; add it to config.json"
            )
        elif value is not None:
            result[name] = number(f"rope_parameters.{name}", value)
    return result


def pairing(model_type: Any, hint: str | None = None) -> str:
    """`half` (x[f], x[f + F]) or `interleaved` (x[2f], x[2f + 1]); `hint` stands for a type not listed
    here."""
    known = "half" if model_type in HALF else "interleaved" if model_type in INTERLEAVED else None
    if known is None and hint not in ("half", "interleaved"):
        raise ModelError(
            "model_type",
            model_type,
            "not known which rotary pairing it uses (half or interleaved); unsupported model",
        )
    if known is not None and hint not in (None, known):
        raise ModelError("rotary pairing", hint, f"models of type {model_type} pair {known}")
    return known or str(hint)


class _Standard:
    """What transformers' rope functions read of a configuration, with the canonical parameters in it."""

    def __init__(self, rotary: Mapping[str, Any], max_position_embeddings: int) -> None:
        self.head_dim = rotary["dim"]
        self.hidden_size, self.num_attention_heads = self.head_dim, 1
        self.max_position_embeddings = max_position_embeddings
        rest = {k: v for k, v in rotary.items() if k not in ("type", "theta", "dim")}
        self.rope_parameters = {"rope_type": rotary["type"], "rope_theta": float(rotary["theta"]), **rest}

    def standardize_rope_params(self) -> None:
        """Nothing to do: the parameters are canonical."""


def frequencies(rotary: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Angular frequencies of canonical rotary parameters: (float32 [F] in radians a token, factor on cos and
    sin).

    By transformers' own functions (default: RoFormer, arXiv 2104.09864, eq. 15; yarn: arXiv 2309.00071).
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if rotary["type"] == "default":
        exponent = torch.arange(0, rotary["dim"], 2, dtype=torch.float32) / rotary["dim"]
        return 1.0 / (float(rotary["theta"]) ** exponent), 1.0
    config = _Standard(rotary, rotary.get("original_max_position_embeddings", 1))
    values, scaling = ROPE_INIT_FUNCTIONS[rotary["type"]](config, torch.device("cpu"))
    return values.to(torch.float32), float(scaling)
