"""What losing a token does to the queries that follow, and what the cache held of the token before they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from triattn.calibrate.effect import gradients
from triattn.calibrate.replay import attend, attention_replaced, placed
from triattn.policies import ModelShape, QueryStatistics, Round
from triattn.policies.keydiff import EPSILON
from triattn.policies.policy import z_score
from triattn.policies.superseded import rotation_undone
from triattn.policies.terms import Term

SINKS, WINDOW = 4, 8
"""Entries that no policy worth learning evicts."""
LEAST_QUERIES = 16
"""Tokens that must follow the last time."""
DULL = 0.8
"""Part of the candidates whose damage counts as equally small: which of those that will not be kept anyway is missed
less does not matter, and would cost accuracy among the others."""
RESTING = 0.3
"""Part of the dull candidates that is looked at where not all are."""


@dataclass
class Samples:
    """Candidates at some times of one text, by (layer, KV head): C of them, those of a time together.

    keys: float16 [layers, kv_heads, C, head_dim], their rotation undone.
    age: float32 [layers, kv_heads, C], how many positions ago each came. like: its largest cosine to a later key.
    damage: float32 [layers, kv_heads, C], the largest that losing it does to the output of a later query; target: its
        logarithm, clipped from below (DULL), in standard deviations of the time's candidates.
    weight: float32 [C], how many candidates one stands for.
    features: float32 [terms, layers, kv_heads, C], scores of terms, z-scored for each time, over a group's query heads
        their mean.
    times: candidates of each time, in order.
    effect: float32 [layers, kv_heads, C], the largest that losing it in one query's attention does to the answers, to
        first order (`triattn.calibrate.effect`), and its target; where asked for.
    """

    keys: Tensor
    age: Tensor
    like: Tensor
    damage: Tensor
    target: Tensor
    weight: Tensor
    features: Tensor
    times: list[int]
    effect: Tensor | None = None
    effect_target: Tensor | None = None


def times_of(length: int, first: int, count: int) -> list[int]:
    """Times, evenly spread over what follows the first tokens, that have candidates and queries that follow."""
    times = [first + (length - first) * part // (count + 1) for part in range(1, count + 1)]
    return [time for time in times if 4 * WINDOW + first < time <= length - LEAST_QUERIES]


def _damages(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, gradient: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Attention's output [heads, T, D], and what losing token i (last) does to that of query q, [kv_heads, T, T].

    Its damage p / (1 − p) ‖v_i − o_q‖, p the attention probability, the most of a group's heads; and where there is a
    `gradient` [heads, T, D] of o, the effect p / (1 − p) |g_q · (v_i − o_q)|, the sum over them.
    """
    out, p = attend(query, keys, values, scaling)
    group = p.shape[0] // values.shape[0]
    wide, result = values.float().repeat_interleave(group, 0), out.float()
    # ‖v − o‖² without a vector for each pair.
    squares = wide.square().sum(-1)[:, None] + result.square().sum(-1)[:, :, None]
    distance = torch.baddbmm(squares, result, wide.transpose(1, 2), alpha=-2).clamp_(min=0).sqrt_()
    share = p.div_((1 - p).clamp_(min=1e-3))
    found = [distance.mul_(share).unflatten(0, (-1, group)).amax(1)]
    if gradient is not None:
        slope = gradient.float()
        moved = torch.baddbmm(-(slope * result).sum(-1)[:, :, None], slope, wide.transpose(1, 2))
        found.append(moved.abs_().mul_(share).unflatten(0, (-1, group)).sum(1))
    return out, found


def _largest(matrix: Tensor, cuts: Sequence[int], dim: int) -> Tensor:
    """Maxima [len(cuts) - 1, ...] of stretches of a dimension."""
    return torch.stack([matrix.narrow(dim, a, b - a).amax(dim) for a, b in pairwise(cuts)])


def _target(damage: Tensor) -> Tensor:
    """See Samples: of all candidates of a time, [kv_heads, C]."""
    target = damage.clamp(min=1e-12).log()
    target = target.maximum(target.quantile(DULL, dim=-1, keepdim=True))
    return (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True).clamp(min=1e-6)


def _chosen(measures: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices [kv_heads, c] of all that are not dull by a measure [kv_heads, C] and of some that are, and how many each
    stands for [c]. Of two measures half as many more are taken, those that rank highest by either."""
    first, count = measures[0], measures[0].shape[-1]
    sharp = count - int(count * DULL)
    if len(measures) > 1:
        first = torch.stack([m.argsort(-1).argsort(-1) for m in measures]).amax(0)
        sharp = min(sharp * 3 // 2, count)
    some = min(int((count - sharp) * RESTING) + 1, count - sharp)
    best = first.topk(sharp, dim=-1).indices
    rest = torch.ones(first.shape).scatter_(-1, best, 0.0).multinomial(some, generator=generator)
    weight = torch.cat([torch.ones(sharp), torch.full((some,), (count - sharp) / some)])
    return torch.cat([best, rest], dim=-1), weight


@torch.inference_mode()
def observe(
    model: Any,
    tokens: Sequence[int],
    shape: ModelShape,
    statistics: QueryStatistics | None,
    *,
    terms: Sequence[Term] = (),
    prompt: int = 0,
    count: int = 3,
    sparse: torch.Generator | None = None,
    effects: bool = False,
) -> Samples | None:
    """Run a text once, and look at `count` times at what later queries miss. None for one that is too short.

    The first `prompt` tokens are never evicted: they are no candidates. With `sparse` only some of the dull ones are
    looked at, drawn from it. `effects` asks for those too, which takes a pass backwards.
    """
    length, first = len(tokens), max(SINKS, prompt)
    times = times_of(length, first, count)
    if not times:
        return None
    cuts = [0, *times, length]
    slopes = gradients(model, tokens, prompt) if effects else {}
    found: list[list[tuple[Tensor, ...]]] = []
    weights: list[Tensor] = []

    def look(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        out, measured = _damages(query, keys, values, scaling, slopes.get(layer))
        later = [_largest(part, cuts, 1).flip(0).cummax(0).values.flip(0) for part in measured]
        del measured
        here = torch.arange(length, device=keys.device).expand(keys.shape[0], -1)
        straight = rotation_undone(shape, keys.float(), here)
        unit = normalize(straight, dim=-1, eps=EPSILON).half().float()
        cosine = unit @ unit.transpose(1, 2)
        cosine.masked_fill_(torch.ones(length, length, dtype=torch.bool, device=keys.device).tril_(), -1.0)
        likes = _largest(cosine, cuts, 2).cummax(0).values
        del cosine
        column = []
        for i, time in enumerate(times):
            free = slice(first, time - WINDOW)
            missed = [part[i + 1][:, free].float().cpu() for part in later]
            rows, many = missed[0].shape
            index, weight = torch.arange(many).expand(rows, many), torch.ones(many)
            if sparse is not None:
                index, weight = _chosen(missed, sparse)
            scores = [
                _scores(shape, statistics, term, layer, keys, values, time, free, prompt) for term in terms
            ]
            features = torch.stack(scores).cpu() if scores else torch.zeros(0, rows, many)
            wide = index[..., None].expand(-1, -1, shape.head_dim).to(keys.device)
            column.append(
                (
                    # Clipped where float16 ends: some models' keys have a few huge dimensions.
                    straight[:, free].gather(1, wide).clamp(-6e4, 6e4).half().cpu(),
                    (time - first - index).float(),
                    likes[i][:, free].cpu().gather(1, index),
                    torch.stack([part.gather(1, index) for part in missed]),
                    torch.stack([_target(part).gather(1, index) for part in missed]),
                    features.gather(2, index.expand(len(terms), -1, -1)),
                )
            )
            if layer == 0:
                weights.append(weight)
        found.append([torch.cat(part, 1 if n < 3 else 2) for n, part in enumerate(zip(*column, strict=True))])
        return out

    ids, where = placed(model, tokens)
    with attention_replaced(model, look):
        model.base_model(input_ids=ids, position_ids=where, use_cache=False)
    columns = list(zip(*found, strict=True))
    keys, age, like = (torch.stack(part) for part in columns[:3])
    damage, target, features = (torch.stack(part, dim=1) for part in columns[3:])
    return Samples(
        keys=keys,
        age=age,
        like=like,
        damage=damage[0],
        target=target[0],
        weight=torch.cat(weights),
        features=features,
        times=[len(weight) for weight in weights],
        effect=damage[1] if effects else None,
        effect_target=target[1] if effects else None,
    )


def _scores(
    shape: ModelShape,
    statistics: QueryStatistics | None,
    term: Term,
    layer: int,
    keys: Tensor,
    values: Tensor,
    time: int,
    free: slice,
    prompt: int,
) -> Tensor:
    """Z-scores [kv_heads, C] of a term among the candidates of a time."""
    ctx = Round(
        model=shape,
        keys=lambda _: keys[:, :time].float(),
        values=lambda _: values[:, :time].float(),
        positions=torch.arange(time, device=keys.device).expand(shape.layers, shape.kv_heads, -1),
        computed=time,
        prompt_len=prompt,
        pin_prompt=prompt > 0,
        statistics=statistics,
    )
    part = term.score(ctx, layer)[:, free].float()
    z = z_score(part, torch.ones(1, part.shape[1], dtype=torch.bool, device=part.device))
    return z.unflatten(0, (shape.kv_heads, -1)).mean(1) if term.per_query_head else z
