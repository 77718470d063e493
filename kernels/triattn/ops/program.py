"""A policy as the kernels take it: which channels a score has, and the constants behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies import ModelShape, Policy, PolicyError, QueryStatistics
from triattn.policies.keydiff import KeyDiff
from triattn.policies.norm import Norm
from triattn.policies.random import Random, mix
from triattn.policies.recency import Recency
from triattn.policies.trig import Trig, offsets


@dataclass(frozen=True)
class Program:
    """Constants of one policy on one rank, on its device.

    A score has `channels` raw values an entry and KV head: `query_sets` sets of one per query head of the group,
    then `kv_sets` single ones. With normalize "each" a set is a term; otherwise one set holds the weighted sum.

    query: float32 [4, layers, query_heads, F]: μ of the mean-trig term, turned and averaged over the offsets, real
        and imaginary; μ of the max-trig term, real and imaginary.
    spread: float32 [layers, query_heads, F], coefficients of the norm term.
    turns: float64 [F], revolutions a token. steps: float32 [offsets, 2, F], e^(i o ω) of the max-trig term.
    term_weights: float32 [8]: trig, max-trig, norm, keydiff, random, recency (0 where absent).
    set_weights: float32 [sets], what each set is multiplied by when sets are added.
    ids: int32 [layers + kv_heads + 1], the hash's names of layers and heads, and the seed's state.
    """

    policy: Policy
    trig: bool
    trig_max: bool
    norm: bool
    keydiff: bool
    random: bool
    recency: bool
    group: int
    query_sets: int
    kv_sets: int
    query: Tensor
    spread: Tensor
    turns: Tensor
    steps: Tensor
    term_weights: Tensor
    set_weights: Tensor
    ids: Tensor

    @property
    def separate(self) -> bool:
        """Whether each term is normalised by itself."""
        return self.policy.normalize == "each"

    @property
    def stats(self) -> bool:
        """Whether scores are z-scored."""
        return self.policy.normalize != "none"

    @property
    def channels(self) -> int:
        """Raw values per entry and KV head."""
        return self.query_sets * self.group + self.kv_sets

    @property
    def reads_keys(self) -> bool:
        """Whether K is read."""
        return self.policy.reads_keys

    @property
    def noise_only(self) -> bool:
        """Whether a row's score needs nothing but its positions."""
        return not self.reads_keys and not self.stats and self.policy.selection == "per_layer_per_head"


def compile_policy(
    policy: Policy, shape: ModelShape, statistics: QueryStatistics | None, device: torch.device
) -> Program:
    """Fold a policy and a rank's statistics into constants.

    Raises:
        PolicyError: a combination of terms that the kernels do not have.
    """
    separate = policy.normalize == "each"
    weight = dict.fromkeys(("trig", "trig_max", "norm", "keydiff", "random", "recency"), 0.0)
    bands = shape.rotary_dim // 2
    spread = torch.zeros(shape.layers, shape.query_heads, bands, dtype=torch.float64)
    query = torch.zeros(4, shape.layers, shape.query_heads, bands, dtype=torch.float64)
    steps = torch.zeros(1, 2, bands)
    omega = shape.inv_freq.double().cpu()
    scale = shape.attention_scaling**2
    seen: set[str] = set()
    seed = 0
    for w, term in policy.terms:
        factor = scale if separate else w * scale
        kind = _kind(term)
        if kind in seen and (separate or kind == "trig_max"):
            raise PolicyError(
                "terms", kind, "on a GPU each kind of term can stand once here; merge or drop one"
            )
        seen.add(kind)
        weight[kind] += w
        if isinstance(term, (Trig, Norm)):
            assert statistics is not None
            centre = torch.complex(
                statistics.q_mean_real.double().cpu(), statistics.q_mean_imag.double().cpu()
            )
        if isinstance(term, Trig):
            ahead = torch.tensor(offsets(term.max_offset), dtype=torch.float64)[:, None] * omega
            turned = torch.polar(torch.ones_like(ahead), ahead)
            if term.aggregation == "mean":
                mean = centre * turned.mean(dim=0) * factor
                query[0] += mean.real
                query[1] += mean.imag
            else:
                query[2], query[3] = centre.real * scale, centre.imag * scale
                steps = torch.stack([turned.real, turned.imag], dim=1).float()
        elif isinstance(term, Norm):
            size = statistics.q_abs_mean.double().cpu()
            spread += (size - centre.abs() if term.residual else size) * factor
        elif isinstance(term, Random):
            seed = term.seed
    kv_kinds = [k for k in ("keydiff", "random", "recency") if k in seen]
    query_kinds = [k for k in ("trig", "trig_max", "norm") if k in seen]
    if separate:
        query_sets, kv_sets = len(query_kinds), len(kv_kinds)
        sets = [weight[k] for k in query_kinds + kv_kinds]
    else:
        query_sets, kv_sets = (1, 0) if query_kinds else (0, 1)
        sets = [1.0]
    return Program(
        policy=policy,
        **{kind: kind in seen for kind in weight},
        group=shape.group if query_kinds else 1,
        query_sets=query_sets,
        kv_sets=max(kv_sets, 0 if query_sets else 1),
        query=query.float().to(device),
        spread=spread.float().to(device),
        turns=(omega / math.tau).to(device),
        steps=steps.contiguous().to(device),
        term_weights=torch.tensor([*weight.values(), 0.0, 0.0], dtype=torch.float32).to(device),
        set_weights=torch.tensor(sets or [1.0], dtype=torch.float32).to(device),
        ids=_ids(policy, shape, seed).to(device),
    )


def split_matrix(x: Tensor, kv_heads: int, rows: int, columns: int, split: bool) -> Tensor:
    """Vectors per query head, float32 [layers, query_heads, F], as matrices that keys are multiplied by.

    Returns [layers, kv_heads, rows, 4 * columns]: column s * columns + g has part s of the g-th head of the group;
    bfloat16 parts that add up to x exactly if `split` (see triattn.ops.products), else x in part 0, float32.
    """
    grouped = x.float().unflatten(1, (kv_heads, -1)).transpose(2, 3)
    padded = torch.nn.functional.pad(grouped, (0, columns - grouped.shape[3], 0, rows - grouped.shape[2]))
    if not split:
        return torch.nn.functional.pad(padded, (0, 3 * columns)).contiguous()
    high = _high_bits(padded)
    middle = _high_bits(padded - high)
    low = padded - high - middle
    return torch.cat([high, middle, low, torch.zeros_like(low)], dim=3).bfloat16().contiguous()


def _high_bits(x: Tensor) -> Tensor:
    return (x.contiguous().view(torch.int32) & -65536).view(torch.float32)


def _kind(term: object) -> str:
    match term:
        case Trig():
            return "trig" if term.aggregation == "mean" else "trig_max"
        case Norm():
            return "norm"
        case KeyDiff():
            return "keydiff"
        case Random():
            return "random"
        case Recency():
            return "recency"
    raise PolicyError("terms", type(term).__name__, "this score term has no GPU kernel")


def _ids(policy: Policy, shape: ModelShape, seed: int) -> Tensor:
    layers = torch.tensor([i + 1 for i in shape.layer_ids])
    heads = torch.tensor([i + 1 for i in shape.kv_head_ids])
    if policy.selection != "per_layer_per_head":
        layers = layers * 0
    if policy.selection == "union":
        heads = heads * 0
    state = mix(torch.tensor([seed]))
    # A uint32 in an int32's bits.
    state = torch.where(state >= 2**31, state - 2**32, state)
    return torch.cat([layers, heads, state]).int()
