"""A policy as the kernels take it: which channels a score has, and the constants behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.ops import expected, leverage
from triattn.policies import ModelShape, Policy, PolicyError, QueryStatistics
from triattn.policies.accumulated import Accumulated
from triattn.policies.expected import Expected
from triattn.policies.gumbel import STREAM, Gumbel
from triattn.policies.keydiff import KeyDiff
from triattn.policies.leverage import Leverage
from triattn.policies.magnitude import KeyNorm, ValueNorm, ValueRange
from triattn.policies.norm import Norm
from triattn.policies.observed import Observed
from triattn.policies.probe import Probe
from triattn.policies.random import Random, mix
from triattn.policies.recency import Recency
from triattn.policies.redundancy import Redundancy
from triattn.policies.superseded import Superseded
from triattn.policies.terms import Term, Weighted
from triattn.policies.trig import Trig, offsets

BUILT_IN = ("trig", "trig_max", "norm", "keydiff", "random", "recency")
"""Kinds of terms that the score kernel computes itself; the others have kernels of their own (`extras`)."""


@dataclass(frozen=True)
class Extra:
    """A term with a kernel of its own: its weight in a sum, and its channel where terms are normalised apart.

    `constants`: what its kernel reads beside the cache, on the device.
    """

    term: Term
    weight: float
    channel: int
    constants: Tensor | None = None


@dataclass(frozen=True)
class Program:
    """Constants of one policy on one rank, on its device.

    A score has `channels` raw values an entry and KV head: `query_sets` sets of one per query head of the group,
    then `kv_sets` single ones. With normalize "each" a set is a term; otherwise one set holds the weighted sum.
    The last of the single ones are those of `extras`.

    query: float32 [4, layers, query_heads, F]: μ of the mean-trig term, turned and averaged over the offsets, real
        and imaginary; μ of the max-trig term, real and imaginary.
    spread: float32 [layers, query_heads, F], coefficients of the norm term.
    turns: float64 [F], revolutions a token. steps: float32 [offsets, 2, F], e^(i o ω) of the max-trig term.
    term_weights: float32 [8]: trig, max-trig, norm, keydiff, random, recency (0 where absent).
    set_weights: float32 [1 or 2, layers * kv_heads, sets], what each set is multiplied by when sets are added: for
        the policy's own terms, and for the reserve's.
    ids: int32 [layers + kv_heads + 2], the hash's names of layers and heads, and the seed's state for the random
        and for the gumbel term.
    shares: int32 [choices], the reserve's share.
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
    shares: Tensor
    extras: tuple[Extra, ...] = ()

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
        """Whether a row's score needs nothing but its positions and what the row kernel computes from them."""
        alone = not self.extras and not self.promotes
        return (
            alone and not self.reads_keys and not self.stats and self.policy.selection == "per_layer_per_head"
        )

    @property
    def promotes(self) -> bool:
        """Whether places are given away before the best compete for the rest."""
        return bool(self.policy.reserve) or self.policy.segments > 0

    @property
    def given(self) -> bool:
        """Whether the score kernel adds what extras have summed up."""
        return bool(self.extras) and not self.separate

    @property
    def direct(self) -> bool:
        """Whether what extras have summed up is the score, with nothing to add."""
        return self.given and not self.stats and not any(getattr(self, kind) for kind in BUILT_IN)


def compile_policy(
    policy: Policy, shape: ModelShape, statistics: QueryStatistics | None, device: torch.device
) -> Program:
    """Fold a policy and a rank's statistics into constants.

    Raises:
        PolicyError: a combination of terms that the kernels do not have.
    """
    separate = policy.normalize == "each"
    weight = dict.fromkeys(BUILT_IN, 0.0)
    bands = shape.rotary_dim // 2
    spread = torch.zeros(shape.layers, shape.query_heads, bands, dtype=torch.float64)
    query = torch.zeros(4, shape.layers, shape.query_heads, bands, dtype=torch.float64)
    steps = torch.zeros(1, 2, bands)
    omega = shape.inv_freq.double().cpu()
    scale = shape.attention_scaling**2
    rows = shape.layers * shape.kv_heads
    choices = {"per_layer_per_head": rows, "per_head": shape.kv_heads, "union": 1}[policy.selection]
    # What a set is multiplied by: in the policy's own sum, in the reserve's.
    sets: dict[str, list[float | Tensor]] = {}
    others: list[tuple[str, Term, float]] = []
    seed = 0
    for term in policy.all_terms:
        own, reserved = (_weight(side, term) for side in (policy.terms, policy.reserve))
        kind = _kind(term)
        if kind in sets and (separate or kind == "trig_max"):
            raise PolicyError(
                "terms", kind, "on a GPU each kind of term can stand once here; merge or drop one"
            )
        sets[kind] = [own, reserved]
        # A factor for each row is one of a set's, never of the sum that the score kernel forms.
        own = 1.0 if isinstance(own, Tensor) else own
        if kind not in BUILT_IN:
            others.append((kind, term, own))
            continue
        weight[kind] += own
        factor = scale if separate else own * scale
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
    query_kinds = [k for k in BUILT_IN[:3] if k in sets]
    kv_kinds = [k for k in BUILT_IN[3:] if k in sets]
    apart = [*query_kinds, *kv_kinds, *(kind for kind, _, _ in others)]
    if separate:
        query_sets, kv_sets = len(query_kinds), len(kv_kinds) + len(others)
        columns = [sets[kind] for kind in apart] or [[0.0, 0.0]]
    else:
        query_sets, kv_sets = (1, 0) if query_kinds else (0, 1)
        columns = [[1.0, 0.0]]
    group = shape.group if query_kinds else 1
    first = query_sets * group + len(kv_kinds)
    weights = torch.stack(
        [
            torch.stack(
                [torch.as_tensor(w, dtype=torch.float32).cpu().flatten().expand(rows) for w in side], -1
            )
            for side in list(zip(*columns, strict=True))[: 2 if policy.reserve else 1]
        ]
    )
    gumbel = next((t.seed ^ STREAM for _, t, _ in others if isinstance(t, Gumbel)), 0)
    return Program(
        policy=policy,
        **{kind: kind in sets for kind in BUILT_IN},
        group=group,
        query_sets=query_sets,
        kv_sets=max(kv_sets, 0 if query_sets else 1),
        query=query.float().to(device),
        spread=spread.float().to(device),
        turns=(omega / math.tau).to(device),
        steps=steps.contiguous().to(device),
        term_weights=torch.tensor([*weight.values(), 0.0, 0.0], dtype=torch.float32).to(device),
        set_weights=weights.contiguous().to(device),
        ids=_ids(policy, shape, (seed, gumbel)).to(device),
        shares=torch.as_tensor(policy.reserve_share).int().flatten().expand(choices).contiguous().to(device),
        extras=tuple(
            Extra(term, own, first + i if separate else 0, _constants(term, shape, statistics, device))
            for i, (_, term, own) in enumerate(others)
        ),
    )


def _constants(
    term: Term, shape: ModelShape, statistics: QueryStatistics | None, device: torch.device
) -> Tensor | None:
    if isinstance(term, Expected):
        assert statistics is not None
        return expected.fold(term, shape, statistics).to(device)
    if isinstance(term, Leverage):
        return leverage.fold(term, shape).to(device)
    if isinstance(term, Probe):
        return statistics.learned_probe.float().contiguous().to(device)  # type: ignore[union-attr]
    return None


def _weight(terms: Weighted, term: Term) -> float | Tensor:
    return next((w for w, t in terms if t == term), 0.0)


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
        case KeyNorm() | ValueRange() | Leverage() | Redundancy() | Probe() | Gumbel():
            return type(term).__name__.lower()
        case ValueNorm() | Superseded() | Expected() | Observed() | Accumulated():
            return str(term)
    raise PolicyError("terms", type(term).__name__, "this score term has no GPU kernel")


def _ids(policy: Policy, shape: ModelShape, seeds: Sequence[int]) -> Tensor:
    layers = torch.tensor([i + 1 for i in shape.layer_ids])
    heads = torch.tensor([i + 1 for i in shape.kv_head_ids])
    if policy.selection != "per_layer_per_head":
        layers = layers * 0
    if policy.selection == "union":
        heads = heads * 0
    state = mix(torch.tensor(seeds))
    # A uint32 in an int32's bits.
    state = torch.where(state >= 2**31, state - 2**32, state)
    return torch.cat([layers, heads, state]).int()
