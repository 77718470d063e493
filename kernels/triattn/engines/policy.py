"""A policy in force in an engine: what every rank gets of it, and whether it can work there."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from triattn import wire
from triattn.config import QUERIES, ConfigError
from triattn.model import inv_freq
from triattn.policies import ModelShape, Policy
from triattn.policies.probe import REPEATS
from triattn.rules import Rules
from triattn.statistics import Statistics, StatisticsError


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A policy document with its revision and the path of its statistics, as every rank gets it, and what
    some requests get instead."""

    revision: int
    document: wire.PolicyDocument
    statistics: str | None
    policies: tuple[wire.PolicyDocument, ...] = ()
    rules: tuple[wire.EngineRule, ...] = ()

    @classmethod
    def of(cls, message: wire.SetPolicy) -> PolicyInForce:
        """What the control plane sent."""
        return cls(
            message.revision,
            message.policy,
            message.statistics,
            tuple(message.policies),
            tuple(message.rules),
        )

    @property
    def policy(self) -> wire.PolicyDocument:
        """The document of the requests that no rule gives another."""
        return self.document

    @property
    def documents(self) -> tuple[wire.PolicyDocument, ...]:
        """All documents, numbered as in ``RoundPlan.policy``."""
        return (self.document, *self.policies)

    def can_compress(self, number: int = 0) -> bool:
        """Whether rounds of a document can run: one that never compresses may come without the statistics
        that it would need."""
        return self.statistics is not None or not Policy.of(self.documents[number]).needs_statistics


def model_shape(
    hf_config: Any,
    geometry: wire.ModelGeometry,
    layers: Sequence[int] | None = None,
    kv_heads: Sequence[int] | None = None,
    query_heads: Sequence[int] | None = None,
) -> ModelShape:
    """The served model's shape: of the whole model, or of one rank given the global indices it holds."""
    if geometry.rotary is None:
        frequencies, scaling, dim, pairing = torch.empty(0), 1.0, 0, "half"
    else:
        frequencies, scaling = inv_freq(hf_config)
        dim, pairing = geometry.rotary.dim, geometry.rotary.pairing
    return ModelShape(
        layer_ids=tuple(layers if layers is not None else range(geometry.layers)),
        kv_head_ids=tuple(kv_heads if kv_heads is not None else range(geometry.kv_heads)),
        query_head_ids=tuple(query_heads if query_heads is not None else range(geometry.query_heads)),
        head_dim=geometry.head_dim,
        rotary_dim=dim,
        inv_freq=frequencies,
        attention_scaling=scaling,
        pairing=pairing,
    )


def bytes_beside(document: wire.PolicyDocument | None) -> int:
    """Bytes beside K and V of one entry of a KV head: its position, and what terms of this policy remember of it."""
    if document is None:
        return 4
    policy = Policy.of(document)
    # What statistics have learned may look at repetition where the document does not.
    return 4 * (1 + len({*policy.remembered, *([REPEATS] if policy.learned else [])}))


def heads_of(heads: int, size: int, rank: int) -> list[int]:
    """Global indices of the heads on one tensor-parallel rank; fewer heads than ranks are replicated."""
    if heads >= size:
        each = heads // size
        return list(range(rank * each, (rank + 1) * each))
    return [rank * heads // size]


MOST_KNOWN = 64
"""Policies that an engine remembers to have found good."""

Signature = tuple[str, int, int, int]
"""Path, modification time, size and inode: another file, or another content."""


def signature(path: str) -> Signature:
    """Which file a path means now.

    Raises:
        StatisticsError: there is none, or not a regular one.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StatisticsError("statistics", path, f"cannot be read ({reason})") from error
    if not stat.S_ISREG(found.st_mode):
        raise StatisticsError(
            "statistics", path, "not a regular file; name a file made by `triattn calibrate`"
        )
    return path, found.st_mtime_ns, found.st_size, found.st_ino


@lru_cache(maxsize=2)
def _load(file: Signature) -> Statistics:
    return Statistics.load(file[0])


def load_statistics(path: str, geometry: wire.ModelGeometry) -> Statistics:
    """Statistics of the served model; a file that has not changed since is not read again.

    Raises:
        ConfigError: they are missing, damaged or of another model.
    """
    statistics = _load(signature(path))
    statistics.check(geometry)
    return statistics


def scoring_key(policy: PolicyInForce, number: int) -> tuple[Policy, Signature | None] | None:
    """What a rank must prepare anew when it differs: budgets, intervals and names do not count.

    None where a document cannot compress.

    Raises:
        ConfigError: its statistics cannot be read.
    """
    if not policy.can_compress(number):
        return None
    scoring = replace(Policy.of(policy.documents[number]), name="")
    return scoring, signature(policy.statistics) if scoring.uses_statistics and policy.statistics else None


def check_policy(
    policy: PolicyInForce,
    rules: Rules,
    geometry: wire.ModelGeometry,
    shape: ModelShape,
    tp_size: int = 1,
    pp_size: int = 1,
    *,
    kernels: bool = False,
    queries: int | None = None,
    known: set[Any] | None = None,
) -> None:
    """Refuse a policy that this engine could not carry out.

    Args:
        rules: of this policy; shape: of the whole model.
        kernels: rounds run as Triton kernels, which do not have every combination of terms.
        queries: last queries of each request that the engine keeps; None: it has no way to.
        known: what earlier calls with the same other arguments found to work; it is not looked at again.

    Raises:
        ConfigError: with the field, its value and the remedy.
    """
    compressing = {case.policy for case in rules.cases() if case.budget}
    for number, document in enumerate(policy.documents):
        scoring = Policy.of(document)
        _check_queries(document.name, scoring, queries)
        statistics = None
        if scoring.uses_statistics and policy.statistics is not None:
            statistics = load_statistics(policy.statistics, geometry)
        elif scoring.needs_statistics and number in compressing:
            raise ConfigError(
                "statistics",
                None,
                f"policy {document.name!r} scores with statistics of the model's queries; make them with "
                "`triattn calibrate MODEL` and name the file, or use a policy without trig, norm and expected terms",
            )
        elif scoring.needs_statistics:
            continue
        key = scoring_key(policy, number)
        if known is not None and key in known:
            continue
        scoring.validate(shape, tp_size=tp_size, pp_size=pp_size, statistics=statistics)
        if kernels:
            from triattn.ops.program import compile_policy

            compile_policy(scoring.with_statistics(statistics), shape, statistics, torch.device("cpu"))
        if known is not None:
            if len(known) >= MOST_KNOWN:
                known.clear()
            known.add(key)


def _check_queries(name: str, policy: Policy, kept: int | None) -> None:
    needed = policy.observes
    if needed <= (kept or 0):
        return
    term = policy.observing
    if kept is None:
        remedy = (
            f"this engine's hooks keep no queries; serve with vLLM, or use a policy without the term {term}"
        )
    else:
        remedy = (
            f"policy {name!r} observes the last {needed} queries of each request, and the engine keeps {kept}: memory "
            f"for them is set aside at start-up; restart with this policy, or with {QUERIES}={needed}"
        )
    raise ConfigError("terms", term, remedy)
