"""Learned selection: how to weigh score terms, layer by layer and head by head, from what later queries really use.

On text, each layer's attention at some times is compared with what score terms said at that time of each token that
could have gone. What counts is the damage that losing token i does to the outputs o of the following queries,
p / (1 − p) ‖v_i − o‖ with p its attention probability: exactly what dropping it and renormalising changes; and of them
the largest (as KVzip, arXiv 2505.23416, takes the largest attention): a token that one query needs once is needed. A
ridge regression of its logarithm on the z-scored terms, and on the key with its rotation undone, gives weights with
signs and a probe; text that it has not seen says how much of the damage is avoided by keeping the best of each score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from triattn.calibrate.errors import CalibrationError
from triattn.calibrate.replay import attend, attention_replaced
from triattn.calibrate.text import prompt_of
from triattn.policies import ModelShape, QueryStatistics, Round
from triattn.policies.policy import z_score
from triattn.policies.superseded import rotation_undone
from triattn.policies.terms import Term, terms_of
from triattn.statistics import LEARNABLE, Learned

MEASURED = ("keydiff", "knorm", "vnorm")
"""Terms whose ranking is reported beside what is learned, whether or not they get weights."""
SINKS, WINDOW = 4, 32
"""Entries that no policy worth learning evicts."""
RIDGE = 1e-2
"""Regularisation, in units of a sample's variance."""
DULL = 0.5
"""Part of the candidates whose damage counts as equally small."""
FRACTIONS = (0.125, 0.25)
"""Parts of the candidates that are kept when scores are compared."""


@dataclass
class Samples:
    """What was seen of one text: by (layer, KV head), the candidates of each time.

    `features` float32 [terms, layers, kv_heads, candidates], z-scored for each time, over a group's query heads their
    mean; `damage` float32 [layers, kv_heads, candidates], the largest of all later queries; `keys` float16 [layers,
    kv_heads, candidates, head_dim], their rotation undone and each time's mean taken off. `times` are the numbers of
    candidates of each time, in order.
    """

    features: Tensor
    damage: Tensor
    keys: Tensor
    times: list[int] = field(default_factory=list)


def _damage(values: Tensor, weights: Tensor, time: int) -> Tensor:
    """Damage [kv_heads, time] that losing one of the entries before `time` does: the most to a query after it."""
    after = slice(time, None)
    p = weights[:, after, :time]
    group = weights.shape[0] // values.shape[0]
    wide = values.float().repeat_interleave(group, 0)
    out = torch.einsum("hqk,hkd->hqd", weights[:, after], wide)
    # ‖v − o‖² without a vector for each pair.
    v, o = wide[:, :time].square().sum(-1), out.square().sum(-1)
    distance = v[:, None] + o[:, :, None] - 2 * torch.einsum("hkd,hqd->hqk", wide[:, :time], out)
    damage = p / (1 - p).clamp(min=1e-3) * distance.clamp(min=0).sqrt()
    return damage.amax(dim=1).unflatten(0, (-1, group)).amax(dim=1)


@torch.inference_mode()
def observe(
    model: Any,
    tokens: Sequence[int],
    shape: ModelShape,
    statistics: QueryStatistics | None,
    terms: Sequence[Term],
    prompt: int = 0,
) -> Samples | None:
    """Run a text once and compare scores with use, at each quarter. None for one that is too short.

    The first `prompt` tokens are never evicted: they are no candidates.
    """
    length, first = len(tokens), max(SINKS, prompt)
    times = [prompt + (length - prompt) * part // 4 for part in (1, 2, 3)]
    times = [time for time in times if time > 2 * WINDOW + first]
    if not times or length - times[-1] < 16:
        return None
    found: list[list[list[Tensor]]] = [[] for _ in range(3)]

    def look(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        out, weights = attend(query, keys, values, scaling)
        columns: list[list[Tensor]] = [[], [], []]
        for time in times:
            here = torch.arange(time, device=keys.device)
            ctx = Round(
                model=shape,
                keys=lambda _, t=time: keys[:, :t].float(),
                values=lambda _, t=time: values[:, :t].float(),
                positions=here.expand(shape.layers, shape.kv_heads, -1),
                computed=time,
                prompt_len=prompt,
                pin_prompt=prompt > 0,
                statistics=statistics,
            )
            free = slice(first, time - WINDOW)
            everything = torch.ones(1, time - WINDOW - first, dtype=torch.bool, device=keys.device)
            scores = []
            for term in terms:
                z = z_score(term.score(ctx, layer)[:, free], everything)
                scores.append(z.unflatten(0, (shape.kv_heads, -1)).mean(1) if term.per_query_head else z)
            straight = rotation_undone(shape, ctx.keys(layer), ctx.positions[layer])[:, free]
            seen = (
                torch.stack(scores).float(),
                _damage(values, weights, time)[:, free].float(),
                # Clipped where float16 ends: some models' keys have a few huge dimensions.
                (straight - straight.mean(dim=1, keepdim=True)).clamp(-6e4, 6e4).half(),
            )
            for column, value in zip(columns, seen, strict=True):
                column.append(value.cpu())
        for held, column in zip(found, columns, strict=True):
            held.append(column)
        return out

    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([list(tokens)], device=device)
    with attention_replaced(model, look):
        model.base_model(
            input_ids=ids, position_ids=torch.arange(length, device=device)[None], use_cache=False
        )
    features = torch.stack([torch.cat(layer, dim=-1) for layer in found[0]], dim=1)
    damage = torch.stack([torch.cat(layer, dim=-1) for layer in found[1]])
    keys = torch.stack([torch.cat(layer, dim=1) for layer in found[2]])
    return Samples(features, damage, keys, [time - WINDOW - first for time in times])


def fit(samples: Sequence[Samples]) -> tuple[Tensor, Tensor]:
    """The best linear prediction of the logarithm of the damage: weights of the features float32 [terms, layers,
    kv_heads], and of the dimensions of keys, the probe, float32 [layers, kv_heads, head_dim]."""
    terms, *rows = samples[0].features.shape[:3]
    count = terms + samples[0].keys.shape[-1]
    gram = torch.zeros(*rows, count, count, dtype=torch.float64)
    moment = torch.zeros(*rows, count, dtype=torch.float64)
    for sample in samples:
        parts = zip(
            sample.features.split(sample.times, -1),
            sample.keys.split(sample.times, -2),
            sample.damage.split(sample.times, -1),
            strict=True,
        )
        for features, keys, damage in parts:
            target = damage.double().clamp(min=1e-12).log()
            # Which of the tokens that hardly anybody misses is missed less does not matter: it would only cost accuracy
            # among the others.
            target = target.maximum(target.quantile(DULL, dim=-1, keepdim=True))
            target = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True).clamp(min=1e-6)
            x = torch.cat([features.double().permute(1, 2, 3, 0), keys.double()], dim=-1)
            gram += x.transpose(-1, -2) @ x
            moment += (x.transpose(-1, -2) @ target[..., None])[..., 0]
    # In units of each variable's own variance: keys are not z-scored.
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1) + 1e-6
    found = torch.linalg.solve(gram + torch.diag_embed(ridge), moment[..., None])[..., 0].float()
    return found[..., :terms].permute(2, 0, 1).contiguous(), found[..., terms:].contiguous()


def with_probe(sample: Samples, probe: Tensor) -> tuple[Samples, Tensor]:
    """A sample with one more feature, the probe's z-scores, and without the keys; and the scores' spread, float32
    [layers, kv_heads], which is the weight of that feature."""
    scores = torch.einsum("lhnd,lhd->lhn", sample.keys.float(), probe)
    parts = scores.split(sample.times, -1)
    spread = torch.stack([part.std(dim=-1, correction=0) for part in parts]).mean(dim=0)
    z = torch.cat(
        [z_score(p.flatten(0, 1), torch.ones(1, p.shape[-1], dtype=torch.bool)).view_as(p) for p in parts], -1
    )
    features = torch.cat([sample.features, z[None]])
    return replace(sample, features=features, keys=sample.keys[..., :0]), spread


def kept(scores: Tensor, use: Tensor, times: Sequence[int], fraction: float) -> Tensor:
    """Part of `use` [..., candidates] that the best `fraction` of each time's candidates by `scores` hold: [...]."""
    held, whole = torch.zeros(use.shape[:-1]), torch.zeros(use.shape[:-1])
    for score, value in zip(scores.split(list(times), -1), use.split(list(times), -1), strict=True):
        best = score.topk(max(int(score.shape[-1] * fraction), 1), dim=-1).indices
        held += value.gather(-1, best).sum(-1)
        whole += value.sum(-1)
    return held / whole.clamp(min=1e-12)


SEED = 0
"""Of the random scores that others are compared with: nothing else here is random."""
SHARES = tuple(i / 8 for i in range(5))
"""Shares of the free places that are tried for the reserve: at most half, the rest goes by expected use."""
TOLERANCE = 0.15
"""Part of what the learned scores keep that the reserve may cost: the price of keeping what is distinct."""


def reserved(own: Tensor, distinct: Tensor, times: Sequence[int], fraction: float, share: float) -> Tensor:
    """Scores `own` [..., candidates] with +inf at the `share` of the best `fraction` that `distinct` chooses."""
    parts = []
    for score, by in zip(own.split(list(times), -1), distinct.split(list(times), -1), strict=True):
        count = int(max(int(score.shape[-1] * fraction), 1) * share)
        parts.append(score.scatter(-1, by.topk(count, dim=-1).indices, torch.inf))
    return torch.cat(parts, dim=-1)


def shares_of(samples: Sequence[Samples], weights: Tensor, distinct: Sequence[int]) -> Tensor:
    """The largest share for distinct tokens, float32 [layers, kv_heads], that costs no more than TOLERANCE.

    `distinct`: which of the terms the reserve adds up.
    """
    result = torch.zeros(weights.shape[1:])
    base = None
    for share in SHARES:
        total = torch.zeros(weights.shape[1:])
        for sample in samples:
            own = (weights[..., None] * sample.features).sum(0)
            by = sample.features[list(distinct)].sum(0)
            for fraction in FRACTIONS:
                total += kept(
                    reserved(own, by, sample.times, fraction, share), sample.damage, sample.times, fraction
                )
        base = total if base is None else base
        result = torch.where(total >= (1 - TOLERANCE) * base, share, result)
    return result


@dataclass(frozen=True)
class Selection:
    """What was learned: the tensors and the note of a statistics file (`triattn.statistics`)."""

    weights: Tensor
    share: Tensor
    probe: Tensor
    note: Learned


def learn(
    model: Any,
    pieces: Sequence[Sequence[int]],
    shape: ModelShape,
    statistics: QueryStatistics,
    progress: Callable[[int], None] = lambda tokens: None,
    more: Sequence[str] = (),
) -> Selection:
    """Fit weights on three of four pieces of text and compare what they keep with other scores on the fourth.

    `more`: terms of LEARNABLE_TOO that get weights beside those of LEARNABLE.

    Raises CalibrationError for text with fewer than two pieces that are long enough, and for attention that cannot
    be replayed.
    """
    kinds = tuple(dict.fromkeys((*LEARNABLE[:-1], *more, *MEASURED)))
    terms = terms_of(kinds)
    samples: list[Samples] = []
    tokens = 0
    for piece in pieces:
        if (sample := observe(model, piece, shape, statistics, terms, prompt_of(piece))) is not None:
            samples.append(sample)
        tokens += len(piece)
        progress(tokens)
    return select(samples, tokens, kinds, len(LEARNABLE) - 1 + len(set(more)))


def select(samples: Sequence[Samples], tokens: int, kinds: Sequence[str], used: int) -> Selection:
    """Weights, shares and probe of samples that were taken of so many tokens: see `learn`. `kinds` are the features,
    of which the first `used` get weights; what the others keep is reported beside."""
    held = range(len(samples))[3::4] or range(1, 2)
    fitted = [sample for i, sample in enumerate(samples) if i not in held]
    others = [sample for i, sample in enumerate(samples) if i in held]
    if not others:
        raise CalibrationError(
            "learn", tokens, "two pieces of text of 300 tokens or more are needed; give more text"
        )
    weights, probe = fit([replace(sample, features=sample.features[:used]) for sample in fitted])
    mine = [*range(used), len(kinds)]
    learned, spreads = zip(*(with_probe(sample, probe) for sample in fitted), strict=True)
    learned = [replace(sample, features=sample.features[mine]) for sample in learned]
    others = [with_probe(sample, probe)[0] for sample in others]
    weights = torch.cat([weights, torch.stack(spreads).mean(dim=0)[None]])
    at = {kind: i for i, kind in enumerate((*kinds, "probe"))}
    distinct = (at["superseded"],)
    share = shares_of(learned, weights, distinct)
    noise = torch.Generator().manual_seed(SEED)

    def average(score: Callable[[Samples, float], Tensor]) -> float:
        parts = [
            kept(score(s, fraction), s.damage, s.times, fraction).mean()
            for s in others
            for fraction in FRACTIONS
        ]
        return round(float(torch.stack(parts).mean()), 4)

    def own(sample: Samples) -> Tensor:
        return (weights[..., None] * sample.features[mine]).sum(0)

    def mixed(sample: Samples, fraction: float) -> Tensor:
        by = sample.features[list(distinct)].sum(0)
        tried = [reserved(own(sample), by, sample.times, fraction, part) for part in SHARES]
        which = (share[..., None] * 8).round().long().expand(own(sample).shape)
        return torch.stack(tried).gather(0, which[None])[0]

    report = {
        "possible": average(lambda s, _: s.damage),
        "learned": average(lambda s, _: own(s)),
        "learned and reserve": average(mixed),
        **{kind: average(lambda s, _, i=i: s.features[i]) for kind, i in at.items()},
        "random": average(lambda s, _: torch.rand(s.damage.shape, generator=noise)),
    }
    note = Learned(terms=[*kinds[:used], "probe"], tokens=tokens, seed=SEED, kept=report)
    return Selection(weights, share, probe, note)
