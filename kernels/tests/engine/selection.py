"""Checks what an engine kept against the policy in plain torch, fed with the oracle's own keys.

So the whole path is covered: reading permuted blocks, positions by slot, statistics by rank, pins.
"""

from __future__ import annotations

import numpy as np
import torch

from .models import SPECS
from .oracle import Oracle, rotary
from .scenario import Outcome, Run

MARGIN = 2e-3
"""Scores closer than this, in their own units, may be ordered either way: float32 sums differ. Attention is small:
there the unit is the standard deviation of a head's scores."""


def check_selection(run: Run, *, late: int = 0, forget: bool = False) -> int:
    """Every round of a run with ``Scenario.plugin`` kept the entries with the highest scores; rounds checked.

    Scores that look at attention do so by the dense model's own queries; those ``late`` positions too early, or with
    ``forget`` without what rounds before have found, to see whether the check bites.
    """
    return _check(run, late, None, forget)


def agreement(run: Run, *, late: int = 0) -> float:
    """Part of the entries that had to compete and that every round should have kept which it did keep.

    For engines of lower precision than the oracle's, where the order of near scores says nothing.
    """
    shares: list[float] = []
    _check(run, late, shares)
    return sum(shares) / len(shares)


def _check(run: Run, late: int, shares: list[float] | None, forget: bool = False) -> int:
    from triattn import wire
    from triattn.config import load_settings
    from triattn.policies import Policy
    from triattn.statistics import Statistics

    settings = load_settings({}, {"triattn": run.scenario.plugin})
    assert settings is not None
    assert isinstance(settings.policy, wire.PolicyDocument)
    statistics = Statistics.load(settings.statistics) if settings.statistics else None
    policy = Policy.of(settings.policy).with_statistics(statistics)
    return sum(
        _check_incarnation(run, outcome, number, settings.policy, policy, statistics, late, shares, forget)
        for outcome in run.outcomes.values()
        for number in outcome.rounds
    )


def _check_incarnation(
    run: Run,
    outcome: Outcome,
    number: int,
    document,
    policy,
    statistics,
    late: int,
    shares: list[float] | None,
    forget: bool,
) -> int:
    from triattn.policies import ModelShape
    from triattn.policies.context import Memory
    from triattn.policies.context import Round as Context
    from triattn.policies.select import keep_highest

    spec = SPECS[run.scenario.model]
    inv_freq, scaling = rotary(spec)
    shape = ModelShape(
        layer_ids=tuple(range(spec.layers)),
        kv_head_ids=tuple(range(spec.kv_heads)),
        query_head_ids=tuple(range(spec.query_heads)),
        head_dim=spec.head_dim,
        rotary_dim=spec.head_dim,
        inv_freq=inv_freq,
        attention_scaling=scaling,
    )
    request, rounds = outcome.request, outcome.rounds[number]
    tokens = request.prompt + outcome.tokens
    _, keys, values, queries = Oracle(spec).forward(tokens[: rounds[-1].computed], rounds)
    # A prompt's tokens that were in the prefix cache gave no queries.
    first = outcome.cached_tokens if number == 0 else 0
    resident = torch.arange(0).expand(spec.layers, spec.kv_heads, 0)
    known = 0
    remembered: dict = {}
    for this in rounds:
        fresh = torch.arange(known, this.computed).expand(spec.layers, spec.kv_heads, -1)
        positions = torch.cat([resident, fresh], dim=-1)
        budget = document.budget if request.budget is None else request.budget
        keep = budget if document.count_prompt else budget + len(request.prompt)
        assert this.n_keep == keep, f"{request.id}: kept {this.n_keep}, budget says {keep}"
        assert positions.shape[-1] >= keep + document.interval, f"{request.id}: a round too early"
        pin_prompt = (
            document.pin.prompt
            and len(request.prompt) + document.pin.window + run.scenario.block_size <= keep
        )
        # By position here, by row in the engine: what an entry's memory is depends on neither.
        memory = Memory(0 if forget else resident.shape[-1], lambda term, layer, r=remembered: r[term, layer])
        since = max(first, this.computed - 1024) - late
        context = Context(
            model=shape,
            keys=lambda layer, p=positions: _rows(keys[layer], p[layer]),
            values=lambda layer, p=positions: _rows(values[layer], p[layer]),
            positions=positions,
            computed=this.computed,
            prompt_len=len(request.prompt),
            pin_prompt=pin_prompt,
            statistics=statistics,
            memory=memory,
            queries=lambda layer, a=since, b=this.computed - late: (
                queries[layer, :, max(a, 0) : b] * spec.head_dim**-0.5
            ),
        )
        kept = torch.from_numpy(np.sort(this.kept, axis=-1))
        is_kept = (positions[..., :, None] == kept[..., None, :]).any(-1)
        scores = policy.final(context, keep).expand(positions.shape)
        if policy.reserve:
            scores = _either_way(policy, context, scores, is_kept)
        lowest_kept = scores.masked_fill(~is_kept, torch.inf).amin(-1)
        highest_gone = scores.masked_fill(is_kept, -torch.inf).amax(-1)
        short = highest_gone - lowest_kept
        unit = _spread(scores).clamp(max=1) if policy.observes else 1.0
        if shares is not None:
            chosen = keep_highest(scores, keep) & ~torch.isposinf(scores)
            shares.append(float((chosen & is_kept).sum() / chosen.sum().clamp(min=1)))
        assert shares is not None or (short <= MARGIN * unit).all(), (
            f"{request.id}, round at C = {this.computed}: evicted an entry that scores {short.max():.4f} "
            "more than one it kept"
        )
        resident, known = kept, this.computed
        remembered = {
            key: found[is_kept[key[1]]].view(spec.kv_heads, -1) for key, found in memory.found.items()
        }
    return len(rounds)


def _either_way(policy, context, scores: torch.Tensor, is_kept: torch.Tensor) -> torch.Tensor:
    """Scores in which entries at the edge of the reserve, as near as MARGIN, count for what the engine did."""
    by = policy.scores(context, policy.reserve).expand(scores.shape)
    pinned = torch.isposinf(by)
    reserved = torch.isposinf(scores) & ~pinned
    edge = by.masked_fill(~reserved, torch.inf).amin(-1, keepdim=True)
    doubtful = ~pinned & ((by - edge).abs() <= MARGIN)
    return torch.where(doubtful, torch.where(is_kept, torch.inf, -torch.inf), scores)


def _spread(scores: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the finite scores of each head, [layers, kv_heads]."""
    finite = torch.isfinite(scores)
    count = finite.sum(-1, keepdim=True).clamp(min=1)
    mean = scores.where(finite, 0.0).sum(-1, keepdim=True) / count
    return ((scores - mean).where(finite, 0.0).square().sum(-1) / count[..., 0]).sqrt()


def _rows(cache: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """cache [kv_heads, T, D] at positions [kv_heads, N]."""
    return cache.gather(1, positions[..., None].expand(-1, -1, cache.shape[-1]))
