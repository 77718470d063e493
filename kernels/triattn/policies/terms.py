"""Score terms, and those that a policy document names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
from torch import Tensor

from triattn import wire
from triattn.policies.accumulated import Accumulated
from triattn.policies.context import Round
from triattn.policies.errors import PolicyError
from triattn.policies.expected import Expected
from triattn.policies.gumbel import Gumbel
from triattn.policies.keydiff import KeyDiff
from triattn.policies.leverage import Leverage
from triattn.policies.magnitude import KeyNorm, ValueNorm, ValueRange
from triattn.policies.norm import Norm
from triattn.policies.observed import Observed
from triattn.policies.probe import Probe
from triattn.policies.random import Random
from triattn.policies.recency import Recency
from triattn.policies.redundancy import Redundancy
from triattn.policies.superseded import Superseded
from triattn.policies.trig import Trig


class Term(Protocol):
    """One score term: float32 [query_heads or kv_heads, N], higher meaning "keep".

    One that asks which layer and head it scores has `names_heads`; the others score any heads as if of one layer.
    """

    @property
    def per_query_head(self) -> bool: ...
    @property
    def needs_statistics(self) -> bool: ...
    @property
    def reads_keys(self) -> bool: ...
    def score(self, ctx: Round, layer: int) -> Tensor: ...


Weighted = tuple[tuple[float | Tensor, Term], ...]
"""Terms with the factor of each, for all or float32 [layers, kv_heads]."""


def weighted(items: Sequence[object], document: wire.PolicyDocument) -> Weighted:
    """Terms of a document; equal ones are merged, those of weight 0 dropped."""
    weights: dict[Term, float] = {}
    for item in items:
        term = _term(item, document)
        weights[term] = weights.get(term, 0.0) + float(item.weight)  # type: ignore[attr-defined]
    return tuple((w, t) for t, w in weights.items() if w != 0.0)


def terms_of(kinds: Sequence[str]) -> tuple[Term, ...]:
    """Terms by kind, each with its defaults."""
    fields = {"name": "terms", "terms": [{"kind": kind} for kind in kinds]}
    document = msgspec.convert(fields, wire.PolicyDocument)
    return tuple(_term(item, document) for item in document.terms)


def _term(item: object, document: wire.PolicyDocument) -> Term:
    match item:
        case wire.TrigTerm():
            return Trig(item.offsets, item.max_offset)
        case wire.NormTerm():
            return Norm(item.residual)
        case wire.KeyDiffTerm():
            return KeyDiff()
        case wire.RandomTerm():
            return Random(document.seed, document.selection)
        case wire.RecencyTerm():
            return Recency()
        case wire.KeyNormTerm():
            return KeyNorm()
        case wire.ValueNormTerm():
            return ValueNorm(item.log)
        case wire.ValueRangeTerm():
            return ValueRange()
        case wire.SupersededTerm():
            return Superseded(item.space)
        case wire.ExpectedTerm():
            return Expected(item.horizon)
        case wire.LeverageTerm():
            return Leverage(document.seed)
        case wire.ProbeTerm():
            return Probe()
        case wire.ObservedTerm():
            return Observed(item.window, item.reach, item.group)
        case wire.AccumulatedTerm():
            return Accumulated(item.window)
        case wire.RedundancyTerm():
            return Redundancy()
        case wire.GumbelTerm():
            return Gumbel(document.seed, document.selection)
    raise PolicyError("terms", type(item).__name__, "this version has no such score term")
