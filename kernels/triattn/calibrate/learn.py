"""Learned selection: what is worth keeping, layer by layer and head by head, from what later queries really miss.

On text, each layer's attention at some times is compared with what the cache then held of each token that could have
gone. What counts is the damage that losing token i does to the outputs o of the following queries,
p / (1 − p) ‖v_i − o‖ with p its attention probability: exactly what dropping it and renormalising changes; and of them
the largest (as KVzip, arXiv 2505.23416, takes the largest attention): a token that one query needs once is needed. A
probe (triattn.policies.probe) is fitted to it; where further terms are asked for, a ridge regression weighs
them and it. Text that it has not seen says how much of the damage is avoided by keeping the best of each score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from triattn.calibrate.damage import Samples, observe
from triattn.calibrate.errors import CalibrationError
from triattn.calibrate.fitting import fit_probe, foretold
from triattn.calibrate.text import prompt_of
from triattn.policies import ModelShape, QueryStatistics
from triattn.policies.policy import z_score
from triattn.policies.probe import network
from triattn.policies.terms import terms_of
from triattn.statistics import UNITS, Learned

MEASURED = ("superseded", "recency", "trig", "norm", "keydiff", "knorm", "vnorm")
"""Terms whose ranking is reported beside what is learned, whether or not they get weights."""
TIMES = 10
"""Times at which a text that the probe is fitted on is looked at."""
RIDGE = 1e-2
"""Regularisation of the terms' weights, in units of a sample's variance."""
FRACTIONS = (0.0625, 0.125, 0.25)
"""Parts of the candidates that are kept when scores are compared."""
SEED = 0
"""Of the probe's first weights, of what is drawn to fit it, and of the random scores that others are compared with."""
SHARES = tuple(i / 8 for i in range(5))
"""Shares of the free places that are tried for the reserve: at most half, the rest goes by expected use."""
GAIN = 0.05
"""Part by which a reserve must raise what the learned scores keep, to be worth its second sum of scores."""


def fit(samples: Sequence[Samples]) -> Tensor:
    """The best linear prediction of the targets from z-scored features: weights float32 [terms, layers, kv_heads]."""
    terms, *rows = samples[0].features.shape[:3]
    gram = torch.zeros(*rows, terms, terms, dtype=torch.float64)
    moment = torch.zeros(*rows, terms, dtype=torch.float64)
    for sample in samples:
        x = sample.features.double().permute(1, 2, 3, 0)
        weighed = (x * sample.weight[:, None]).transpose(-1, -2)
        gram += weighed @ x
        moment += (weighed @ sample.target.double()[..., None])[..., 0]
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1) + 1e-6
    found = torch.linalg.solve(gram + torch.diag_embed(ridge), moment[..., None])[..., 0]
    return found.float().permute(2, 0, 1).contiguous()


def with_probe(sample: Samples, probe: Tensor) -> Samples:
    """A sample with one more feature, the probe's z-scores among the candidates of each time."""
    keys, age, like = (x.flatten(0, 1) for x in (sample.keys, sample.age, sample.like))
    scores = network(probe.flatten(0, 1), keys.float(), age, like)
    everything = torch.ones(1, 1, dtype=torch.bool)
    parts = [z_score(part, everything.expand(1, part.shape[1])) for part in scores.split(sample.times, -1)]
    z = torch.cat(parts, dim=-1).view_as(sample.age)
    return replace(sample, features=torch.cat([sample.features, z[None]]))


def kept(scores: Tensor, use: Tensor, times: Sequence[int], fraction: float) -> Tensor:
    """Part of `use` [..., candidates] that the best `fraction` of each time's candidates by `scores` hold: [...]."""
    held, whole = torch.zeros(use.shape[:-1]), torch.zeros(use.shape[:-1])
    for score, value in zip(scores.split(list(times), -1), use.split(list(times), -1), strict=True):
        best = score.topk(max(int(score.shape[-1] * fraction), 1), dim=-1).indices
        held += value.gather(-1, best).sum(-1)
        whole += value.sum(-1)
    return held / whole.clamp(min=1e-12)


def reserved(own: Tensor, distinct: Tensor, times: Sequence[int], fraction: float, share: float) -> Tensor:
    """Scores `own` [..., candidates] with +inf at the `share` of the best `fraction` that `distinct` chooses."""
    parts = []
    for score, by in zip(own.split(list(times), -1), distinct.split(list(times), -1), strict=True):
        count = int(max(int(score.shape[-1] * fraction), 1) * share)
        parts.append(score.scatter(-1, by.topk(count, dim=-1).indices, torch.inf))
    return torch.cat(parts, dim=-1)


def shares_of(samples: Sequence[Samples], weights: Tensor) -> Tensor:
    """The share for what nothing later repeats that keeps the most, float32 [layers, kv_heads]: 0 unless that is GAIN
    more than without. The samples hold every candidate."""
    totals = []
    for share in SHARES:
        total = torch.zeros(weights.shape[1:])
        for sample in samples:
            own = (weights[..., None] * sample.features).sum(0)
            for fraction in FRACTIONS:
                score = reserved(own, -sample.like, sample.times, fraction, share)
                total += kept(score, sample.damage, sample.times, fraction)
        totals.append(total)
    best = torch.stack(totals).max(dim=0)
    worth = best.values >= (1 + GAIN) * totals[0]
    return torch.where(worth, torch.tensor(SHARES)[best.indices], 0.0)


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
    fitting: Callable[[int, int], None] = lambda done, total: None,
    more: Sequence[str] = (),
    units: int = UNITS[0],
) -> Selection:
    """Fit a probe on three of four pieces of text and compare what it keeps with other scores on the fourth.

    `more`: terms of LEARNABLE_TOO that get weights beside the probe. `units`: the probe's hidden units, one of UNITS.
    `progress` gets the tokens looked at, `fitting` the steps of the fit and all of them.

    Raises CalibrationError for text with fewer than two pieces that are long enough, and for attention that cannot
    be replayed.
    """
    more = tuple(dict.fromkeys(more))
    kinds = tuple(dict.fromkeys((*more, *MEASURED)))
    generator = torch.Generator().manual_seed(SEED)
    fitted: list[Samples] = []
    whole: list[Samples] = []
    tokens = 0
    for number, piece in enumerate(pieces):
        held = number % 4 == 3 or (len(pieces) < 4 and number == 1)
        sample = observe(
            model,
            piece,
            shape,
            statistics,
            terms=terms_of(of) if (of := kinds if held else more) else (),
            prompt=prompt_of(piece),
            count=3 if held else TIMES,
            sparse=None if held else generator,
            effects="effect" in foretold(units) and not held,
        )
        if sample is not None:
            (whole if held else fitted).append(sample)
        tokens += len(piece)
        progress(tokens)
    if not fitted or not whole:
        raise CalibrationError(
            "learn", tokens, "two pieces of text of 300 tokens or more are needed; give more text"
        )
    probe = fit_probe(
        fitted, model.get_input_embeddings().weight.device, units=units, seed=SEED, progress=fitting
    )
    weights = torch.ones(1, *probe.shape[:2])
    if more:
        weights = fit([with_probe(sample, probe) for sample in fitted])
    del fitted
    return select([with_probe(sample, probe) for sample in whole], kinds, more, weights, probe, tokens)


def select(
    samples: Sequence[Samples],
    kinds: Sequence[str],
    more: Sequence[str],
    weights: Tensor,
    probe: Tensor,
    tokens: int,
) -> Selection:
    """What was learned, and what it is worth on samples that it was not fitted on, whose features are those of the
    terms `kinds`, of which the first have weights, as many as there are in `more`; and the probe's."""
    used = [*range(len(more)), len(kinds)]
    owns = [(weights[..., None] * sample.features[used]).sum(0) for sample in samples]
    # Every second one: what the share was chosen on would flatter it.
    chosen = samples[::2]
    share = shares_of([replace(s, features=s.features[used]) for s in chosen], weights)
    noise = torch.Generator().manual_seed(SEED)

    def average(score: Callable[[Samples, Tensor, float], Tensor]) -> float:
        parts = [
            kept(score(sample, own, fraction), sample.damage, sample.times, fraction).mean()
            for sample, own in zip(samples, owns, strict=True)
            for fraction in FRACTIONS
        ]
        return round(float(torch.stack(parts).mean()), 4)

    def mixed(sample: Samples, own: Tensor, fraction: float) -> Tensor:
        tried = [reserved(own, -sample.like, sample.times, fraction, part) for part in SHARES]
        which = (share[..., None] * 8).round().long().expand(own.shape)
        return torch.stack(tried).gather(0, which[None])[0]

    report = {
        "possible": average(lambda s, own, _: s.damage),
        "learned": average(lambda s, own, _: own),
        "learned and reserve": average(mixed),
        **{kind: average(lambda s, own, _, i=i: s.features[i]) for i, kind in enumerate((*kinds, "probe"))},
        "random": average(lambda s, own, _: torch.rand(s.damage.shape, generator=noise)),
    }
    note = Learned(terms=[*more, "probe"], tokens=tokens, seed=SEED, kept=report)
    return Selection(weights, share, probe, note)
