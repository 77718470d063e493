"""A policy document made ready to score and select on one rank, in plain torch: the oracle of every kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from triattn import wire
from triattn.policies.accumulated import Accumulated
from triattn.policies.context import ModelShape, QueryStatistics, Round
from triattn.policies.errors import PolicyError
from triattn.policies.expected import Expected
from triattn.policies.observed import Observed
from triattn.policies.probe import REPEATS, Probe
from triattn.policies.quotas import ONE, free_places, promote, segment_of
from triattn.policies.select import keep_highest
from triattn.policies.superseded import Superseded
from triattn.policies.terms import Term, Weighted, terms_of, weighted

STD_FLOOR = 1e-6
"""Smallest standard deviation that a z-score divides by."""

FOLDED = 2**20
"""Elements of all layers' keys up to which layers are scored together: what short rows cost is the calls."""

PARTS: dict[type, tuple[str, str]] = {
    Expected: ("q_covariance", "the covariances of the model's queries"),
    Probe: ("learned_probe", "a learned probe"),
}
"""What some terms need of statistics, and not all statistics have."""

Selection = Literal["per_layer_per_head", "per_head", "union"]


@dataclass(frozen=True)
class Policy:
    """Weighted score terms, their normalisation and aggregation, who chooses, and what is pinned.

    Of the places that pinned entries leave, `reserve_share` (in parts of 65,536) go to the highest by the terms
    `reserve`; then `segment_share` of what is left evenly to `segments` stretches of the sequence; then the highest.
    `learned` and `optional` say what statistics change: see `with_statistics`.
    """

    name: str
    terms: Weighted
    normalize: Literal["none", "sum", "each"]
    group_aggregation: Literal["max", "mean"]
    layer_aggregation: Literal["mean", "max"]
    selection: Selection
    sinks: int
    window: int
    reserve: Weighted = ()
    reserve_share: int | Tensor = 0
    segments: int = 0
    segment_share: int = 0
    learned: bool = False
    optional: bool = False

    @classmethod
    def of(cls, document: wire.PolicyDocument) -> Policy:
        """Take the scoring part out of a policy document; equal terms are merged, terms of weight 0 dropped."""
        reserve, segments = document.reserve, document.segments
        return cls(
            name=document.name,
            terms=weighted(document.terms, document),
            normalize=document.normalize,
            group_aggregation=document.group_aggregation,
            layer_aggregation=document.layer_aggregation,
            selection=document.selection,
            sinks=document.pin.sinks,
            window=document.pin.window,
            reserve=weighted(reserve.terms, document) if reserve else (),
            reserve_share=round(reserve.share * ONE) if reserve else 0,
            segments=segments.count if segments else 0,
            segment_share=round(segments.share * ONE) if segments else 0,
            learned=document.learned,
            optional=document.statistics == "optional",
        )

    def with_statistics(self, statistics: QueryStatistics | None) -> Policy:
        """The policy as it scores with these statistics of this rank: with what they have learned; or without the
        terms that need what they lack, where the policy can do without."""
        policy = self._with_learned(statistics)
        if not policy.optional or not any(_lacks(t, statistics) for t in policy.all_terms):
            return policy
        terms, reserve = (
            tuple((w, t) for w, t in side if not _lacks(t, statistics))
            for side in (policy.terms, policy.reserve)
        )
        # Where nothing of its own is left, the reserve's terms choose all.
        return replace(policy, terms=terms or reserve, reserve=reserve if terms else (), optional=False)

    def _with_learned(self, statistics: QueryStatistics | None) -> Policy:
        kinds = getattr(statistics, "learned_terms", ())
        if not self.learned or not kinds:
            return self
        terms = tuple(zip(statistics.learned_weights, terms_of(kinds), strict=True))  # type: ignore[attr-defined]
        share = (statistics.learned_share.double() * ONE).round().long()  # type: ignore[attr-defined]
        if self.selection != "per_layer_per_head":
            share = share.double().mean(dim=0, keepdim=True).round().long()
        if self.selection == "union":
            share = share.double().mean(dim=1, keepdim=True).round().long()
        # A reserve of no places is none, and costs nothing.
        reserve = self.reserve if bool((share > 0).any()) else ()
        learned = replace(
            self, terms=terms, reserve=reserve, reserve_share=share if reserve else 0, learned=False
        )
        weight = terms[0][0]
        if len(terms) > 1 or reserve or self.selection != "per_layer_per_head" or bool((weight <= 0).any()):
            return learned
        # Neither a z-score nor a factor changes the order of one term.
        return replace(learned, terms=((1.0, terms[0][1]),), normalize="none")

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """Every term, the reserve's included, each once."""
        return tuple(dict.fromkeys(t for _, t in (*self.terms, *self.reserve)))

    @property
    def remembered(self) -> tuple[Term, ...]:
        """The terms that remember something of entries from round to round."""
        terms = (REPEATS if isinstance(t, Probe) else t for t in self.all_terms)
        return tuple(dict.fromkeys(t for t in terms if isinstance(t, Superseded | Accumulated)))

    @property
    def needs_statistics(self) -> bool:
        """Whether it cannot work without statistics of the model's queries."""
        return not self.optional and any(t.needs_statistics for t in self.all_terms)

    @property
    def uses_statistics(self) -> bool:
        """Whether statistics of the model's queries change what it keeps."""
        return self.learned or any(t.needs_statistics for t in self.all_terms)

    @property
    def reads_keys(self) -> bool:
        """Whether some term reads keys or values; if not, layers and heads of one choice score alike."""
        return any(t.reads_keys for t in self.all_terms)

    @property
    def observes(self) -> int:
        """Most recent queries of a request that some term looks at; 0: none."""
        return max((t.window for t in self._observing), default=0)

    @property
    def observing(self) -> str:
        """Kind of the term that looks at most queries; "" without one."""
        most = max(self._observing, key=lambda t: t.window, default=None)
        return "" if most is None else type(most).__name__.lower()

    @property
    def _observing(self) -> list[Observed | Accumulated]:
        return [t for t in self.all_terms if isinstance(t, Observed | Accumulated)]

    @property
    def per_query_head(self) -> bool:
        """Whether scores are assembled per query head before they are aggregated over the group."""
        return any(t.per_query_head for t in self.all_terms)

    def validate(
        self, shape: ModelShape, *, tp_size: int, pp_size: int, statistics: QueryStatistics | None = None
    ) -> None:
        """Refuse what this model or this distribution cannot carry out.

        Raises:
            PolicyError: statistics that are missing or of another shape; terms on rotary bands of a model that has
                none; a choice shared by heads or layers of different ranks, which never talk to each other.
        """
        if self.needs_statistics or (self.uses_statistics and statistics is not None):
            if shape.rotary_dim == 0:
                raise PolicyError(
                    "terms",
                    self._names("statistics"),
                    "this model has no rotary embedding; use keydiff or random",
                )
            if statistics is None:
                raise PolicyError(
                    "statistics",
                    None,
                    f"policy {self.name!r} needs statistics of this model; run `triattn calibrate`",
                )
            expected = (shape.layers, shape.query_heads, shape.rotary_dim // 2)
            if tuple(statistics.q_mean_real.shape) != expected:
                raise PolicyError(
                    "statistics",
                    tuple(statistics.q_mean_real.shape),
                    f"layers, query heads and bands of this rank are {expected}; use statistics made for this model",
                )
            if not self.optional and any(_lacks(t, statistics) for t in self.all_terms):
                lacking = next(t for t in self.all_terms if _lacks(t, statistics))
                _, what = PARTS[type(lacking)]
                raise PolicyError(
                    "statistics",
                    getattr(statistics, "path", ""),
                    f"policy {self.name!r} has a term {type(lacking).__name__.lower()}, which needs {what}, "
                    "and these statistics have none; make them with `triattn calibrate MODEL`",
                )
        if self.reads_keys:
            if self.selection == "union" and tp_size > 1:
                raise PolicyError(
                    "selection",
                    "union",
                    f"one choice for all heads cannot span {tp_size} tensor-parallel ranks; use per_head",
                )
            if self.selection != "per_layer_per_head" and pp_size > 1:
                raise PolicyError(
                    "selection",
                    self.selection,
                    f"one choice for all layers cannot span {pp_size} pipeline stages; use per_layer_per_head",
                )

    def pinned(self, ctx: Round) -> Tensor:
        """bool [layers, kv_heads, N]: entries that the round may not evict (prompt, sinks, recent window)."""
        first, last = self._span(ctx)
        return (ctx.positions < first) | (ctx.positions >= last)

    def scores(self, ctx: Round, terms: Weighted | None = None) -> Tensor:
        """float32 [layers or 1, kv_heads or 1, N], pinned entries +inf; dimension 1 where the choice is shared.

        An entry whose score is not a number counts as the lowest. `terms`: the reserve's, in the place of the
        policy's own.
        """
        terms = self.terms if terms is None else terms
        pinned = self.pinned(ctx)
        scores = _lowest_if_nan(self._layers(ctx, ~pinned, terms))
        if self.selection == "union":
            scores = scores.amax(dim=(0, 1), keepdim=True)
            pinned = pinned.any(dim=0, keepdim=True).any(dim=1, keepdim=True)
        elif self.selection == "per_head":
            # In float64 the mean of equal numbers is that number, whatever their count: ties stay ties.
            mean = self.layer_aggregation == "mean"
            scores = (scores.double().mean(0, True) if mean else scores.amax(0, True)).float()
            pinned = pinned.any(dim=0, keepdim=True)
        return torch.where(pinned, torch.inf, _lowest_if_nan(scores))

    def select(self, ctx: Round, keep: int) -> Tensor:
        """bool [layers, kv_heads, N]: the kept entries, exactly `keep` for each layer and head (or all, if fewer)."""
        return keep_highest(self.final(ctx, keep), keep).expand(ctx.positions.shape)

    def final(self, ctx: Round, keep: int) -> Tensor:
        """Like `scores`, with the reserve and the quotas of segments promoted to +inf."""
        scores = self.scores(ctx)
        if self.reserve:
            share = self.reserve_share
            share = share.to(scores.device) if isinstance(share, Tensor) else share
            places = free_places(scores, keep) * share // ONE
            scores = promote(scores, self.scores(ctx, self.reserve), places)
        if self.segments:
            first, last = self._span(ctx)
            # Where rows share a choice their positions are alike, but for what an earlier policy left.
            positions = ctx.positions[: scores.shape[0], : scores.shape[1]]
            segment = segment_of(positions, first, last, self.segments)
            each = free_places(scores, keep) * self.segment_share // ONE // self.segments
            base = scores
            for number in range(self.segments):
                scores = promote(scores, base, each, segment == number)
        return scores

    def _span(self, ctx: Round) -> tuple[int, int]:
        """Positions that may be evicted: from the first up to, not including, the second."""
        return max(self.sinks, ctx.prompt_len if ctx.pin_prompt else 0), ctx.computed - self.window

    def _layers(self, ctx: Round, evictable: Tensor, terms: Weighted) -> Tensor:
        """All layers' scores, float32 [layers, kv_heads, N], before pins."""
        if ctx.positions.numel() * ctx.model.head_dim <= FOLDED:
            return self._layer(ctx.folded, 0, evictable.flatten(0, 1), terms).view(evictable.shape)
        return torch.stack([self._layer(ctx, i, one, terms) for i, one in enumerate(evictable.unbind())])

    def _layer(self, ctx: Round, layer: int, evictable: Tensor, terms: Weighted) -> Tensor:
        """One layer's scores, float32 [kv_heads, N], before pins."""
        group = ctx.model.group if self.per_query_head else 1
        evictable = evictable.repeat_interleave(group, dim=0)
        total = torch.zeros(evictable.shape, dtype=torch.float32, device=evictable.device)
        for weight, term in terms:
            part = ctx.score(term, layer)
            if not term.per_query_head:
                part = part.repeat_interleave(group, dim=0)
            factor = weight
            if isinstance(weight, Tensor):
                own = weight.flatten() if ctx.unfolded is not None else weight[layer]
                factor = own.to(part.device).repeat_interleave(group)[:, None]
            total = total + factor * (z_score(part, evictable) if self.normalize == "each" else part)
        if self.normalize == "sum":
            total = z_score(total, evictable)
        grouped = total.unflatten(0, (ctx.model.kv_heads, group))
        return grouped.amax(dim=1) if self.group_aggregation == "max" else grouped.mean(dim=1)

    def _names(self, need: str) -> list[str]:
        return [type(t).__name__.lower() for t in self.all_terms if getattr(t, f"needs_{need}")]


def _lacks(term: Term, statistics: QueryStatistics | None) -> bool:
    """Whether a term cannot score with these statistics."""
    if not term.needs_statistics:
        return False
    if type(term) in PARTS:
        return getattr(statistics, PARTS[type(term)][0], None) is None
    return statistics is None


def z_score(x: Tensor, evictable: Tensor) -> Tensor:
    """Rows of x [heads, N] in units of the biased standard deviation of their evictable entries around their mean."""
    count = evictable.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = torch.where(evictable, x, 0).sum(dim=-1, keepdim=True) / count
    variance = torch.where(evictable, x - mean, 0).square().sum(dim=-1, keepdim=True) / count
    return (x - mean) / variance.sqrt().clamp(min=STD_FLOOR)


def _lowest_if_nan(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), -torch.inf, x)
