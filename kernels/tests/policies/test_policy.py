"""Assembly, pins and selection of a policy against a brute force over single numbers."""

from __future__ import annotations

import dataclasses
import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.policies.builders import document, policy, request, shape, statistics
from triattn.policies import Policy, PolicyError
from triattn.policies import policy as policies
from triattn.policies.policy import z_score
from triattn.policies.select import keep_highest

TERMS = [
    {"kind": "trig"},
    {"kind": "trig", "offsets": "max", "maxOffset": 64},
    {"kind": "norm"},
    {"kind": "norm", "residual": False, "weight": -0.5},
    {"kind": "keydiff", "weight": 2.0},
    {"kind": "random", "weight": 0.25},
    {"kind": "recency", "weight": 0.01},
    {"kind": "superseded"},
    {"kind": "vrange", "weight": -0.5},
    {"kind": "gumbel", "weight": 0.1},
]


def brute_scores(compiled: Policy, ctx) -> list[list[list[float]]]:
    """The assembled scores by loops over Python floats, from the terms' own scores."""
    model = ctx.model
    n = ctx.positions.shape[-1]
    query_level = any(t.per_query_head for _, t in compiled.terms)
    group = model.group if query_level else 1

    def z(row: list[float], free: list[bool]) -> list[float]:
        chosen = [x for x, ok in zip(row, free, strict=True) if ok]
        mean = math.fsum(chosen) / max(len(chosen), 1)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in chosen) / max(len(chosen), 1))
        return [(x - mean) / max(std, 1e-6) for x in row]

    layers = []
    for layer in range(model.layers):
        heads = []
        for head in range(model.kv_heads):
            where = ctx.positions[layer, head].tolist()
            pinned = [
                p < compiled.sinks
                or p >= ctx.computed - compiled.window
                or (ctx.pin_prompt and p < ctx.prompt_len)
                for p in where
            ]
            free = [not p for p in pinned]
            rows = []
            for member in range(group):
                total = [0.0] * n
                for weight, term in compiled.terms:
                    scores = term.score(ctx, layer)
                    row = scores[head * model.group + member if term.per_query_head else head].tolist()
                    if compiled.normalize == "each":
                        row = z(row, free)
                    total = [a + weight * b for a, b in zip(total, row, strict=True)]
                rows.append(z(total, free) if compiled.normalize == "sum" else total)
            combine = max if compiled.group_aggregation == "max" else lambda xs: sum(xs) / len(xs)
            row = [combine([r[i] for r in rows]) for i in range(n)]
            heads.append([math.inf if p else x for x, p in zip(row, pinned, strict=True)])
        layers.append(heads)
    if compiled.selection == "union":
        return [[[max(h[i] for heads in layers for h in heads) for i in range(n)]]]
    if compiled.selection == "per_head":
        combine = max if compiled.layer_aggregation == "max" else lambda xs: sum(xs) / len(xs)
        return [[[combine([h[j][i] for h in layers]) for i in range(n)] for j in range(model.kv_heads)]]
    return layers


@pytest.mark.parametrize("selection", ["per_layer_per_head", "per_head", "union"])
@pytest.mark.parametrize(
    "item",
    [*TERMS, *({"kind": kind} for kind in ("expected", "leverage", "probe"))],
    ids=lambda item: item["kind"],
)
def test_layers_scored_together_score_as_one_after_another(item, selection):
    gen = torch.Generator().manual_seed(len(item))
    model = shape(layers=3, kv_heads=2, group=2, head_dim=8)
    compiled = policy(item, {"kind": "random", "weight": 0.3}, normalize="none", selection=selection)
    # Factors of single layers and heads, as learned weights have them.
    own = tuple((w * torch.rand(3, 2, generator=gen), t) for w, t in compiled.terms)
    ctx = request(model, 17, gen, computed=40, statistics=statistics(model, gen))
    for made in (compiled, dataclasses.replace(compiled, terms=own)):
        together = made.scores(ctx)
        with mock.patch.object(policies, "FOLDED", 0):
            torch.testing.assert_close(together, made.scores(ctx), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    chosen=st.lists(st.sampled_from(TERMS), min_size=1, max_size=4),
    normalize=st.sampled_from(["none", "sum", "each"]),
    group_aggregation=st.sampled_from(["max", "mean"]),
    layer_aggregation=st.sampled_from(["max", "mean"]),
    selection=st.sampled_from(["per_layer_per_head", "per_head", "union"]),
    group=st.integers(1, 3),
    n=st.integers(2, 24),
    pins=st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()),
)
def test_scores_equal_a_brute_force(
    seed, chosen, normalize, group_aggregation, layer_aggregation, selection, group, n, pins
):
    # Two keys are equally far from their mean: a z-score of that is of rounding alone.
    assume(n > 2 or all(item["kind"] != "keydiff" for item in chosen))
    gen = torch.Generator().manual_seed(seed)
    model = shape(layers=2, kv_heads=2, group=group, head_dim=8)
    sinks, window, prompt = pins
    compiled = policy(
        *chosen,
        normalize=normalize,
        groupAggregation=group_aggregation,
        layerAggregation=layer_aggregation,
        selection=selection,
        pin={"prompt": prompt, "sinks": sinks, "window": window},
    )
    ctx = request(
        model, n, gen, computed=2 * n, statistics=statistics(model, gen), prompt_len=3, pin_prompt=prompt
    )
    # One layer after another, as the loops: z-scores of nearly equal numbers magnify what the order of a sum changes.
    with mock.patch.object(policies, "FOLDED", 0):
        actual = compiled.scores(ctx)
    expected = torch.tensor(brute_scores(compiled, ctx))
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)
    keep = max(1, n // 2)
    kept = compiled.select(ctx, keep)
    assert kept.shape == (2, 2, n)
    assert bool((kept.sum(-1) == keep).all())


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(
        st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 2.0, 3.0, math.inf]), min_size=1, max_size=30
    ),
    data=st.data(),
)
def test_the_highest_are_kept_and_ties_go_to_the_lower_index(scores, data):
    keep = data.draw(st.integers(0, len(scores)))
    kept = keep_highest(torch.tensor(scores)[None], keep)[0].tolist()
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep]
    assert [i for i, k in enumerate(kept) if k] == sorted(expected)


def test_pins_hold_and_everything_unpinned_can_go():
    gen = torch.Generator().manual_seed(0)
    model = shape()
    ctx = request(model, 40, gen, computed=40, prompt_len=6, pin_prompt=True)
    compiled = policy({"kind": "keydiff"}, pin={"prompt": True, "sinks": 2, "window": 5})
    kept = compiled.select(ctx, 11)
    assert kept[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 35, 36, 37, 38, 39]
    kept = compiled.select(dataclasses.replace(ctx, pin_prompt=False), 7)
    assert kept[0, 0].nonzero().flatten().tolist() == [0, 1, 35, 36, 37, 38, 39]


def test_a_shared_choice_keeps_what_any_of_its_layers_pins():
    """Rows of layers that chose apart before hold different tokens; a later shared choice still keeps every pin."""
    gen = torch.Generator().manual_seed(1)
    ctx = request(shape(layers=2, kv_heads=1, group=1), 10, gen, computed=50)
    positions = torch.arange(30, 40).repeat(2, 1, 1)
    positions[0, 0, 3], positions[1, 0, 6] = 48, 49
    ctx = dataclasses.replace(ctx, positions=positions)
    for selection in ("per_head", "union"):
        compiled = policy(
            {"kind": "keydiff"}, selection=selection, pin={"prompt": True, "sinks": 0, "window": 2}
        )
        assert compiled.select(ctx, 2)[0, 0].nonzero().flatten().tolist() == [3, 6]


def test_not_a_number_is_the_lowest_score():
    gen = torch.Generator().manual_seed(2)
    ctx = request(shape(layers=1, kv_heads=1, group=1), 6, gen)
    keys = torch.randn(1, 6, 8, generator=gen)
    keys[0, 2] = math.nan
    ctx = dataclasses.replace(ctx, keys=lambda _: keys)
    compiled = policy({"kind": "keydiff"}, normalize="none", pin={"sinks": 0, "window": 1, "prompt": False})
    scores = compiled.scores(ctx)
    assert not bool(scores.isnan().any())
    assert bool(compiled.select(ctx, 2)[0, 0, 5])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=50))
def test_z_score_has_mean_0_and_deviation_1_over_the_evictable(entries):
    x = torch.tensor([v for v, _ in entries])
    free = torch.tensor([f for _, f in entries])
    z = z_score(x[None], free[None])[0][free].double()
    if len(z) and float(x[free].double().std(correction=0)) > 1e-2:
        assert abs(float(z.mean())) < 1e-3 and abs(float(z.std(correction=0)) - 1) < 1e-3


def test_equal_terms_merge_and_weight_0_drops():
    compiled = policy({"kind": "trig"}, {"kind": "trig", "weight": 2}, {"kind": "random", "weight": 0})
    assert len(compiled.terms) == 1 and compiled.terms[0][0] == 3.0
    assert compiled.needs_statistics and compiled.reads_keys
    assert not policy({"kind": "random"}).reads_keys


@pytest.mark.parametrize(
    ("terms", "selection", "tp", "pp", "field"),
    [
        ([{"kind": "trig"}], "per_head", 1, 1, "statistics"),
        ([{"kind": "keydiff"}], "union", 2, 1, "selection"),
        ([{"kind": "keydiff"}], "per_head", 1, 2, "selection"),
        ([{"kind": "keydiff"}], "per_head", 2, 1, None),
        ([{"kind": "keydiff"}], "per_layer_per_head", 2, 2, None),
        ([{"kind": "recency"}], "union", 2, 2, None),
    ],
)
def test_what_cannot_work_is_refused_by_name(terms, selection, tp, pp, field):
    compiled = Policy.of(document(*terms, selection=selection))
    if field is None:
        compiled.validate(shape(), tp_size=tp, pp_size=pp)
        return
    with pytest.raises(PolicyError) as caught:
        compiled.validate(shape(), tp_size=tp, pp_size=pp)
    assert caught.value.field == field and caught.value.remedy


def test_statistics_of_another_shape_and_models_without_rotary_are_refused():
    gen = torch.Generator().manual_seed(3)
    compiled = policy({"kind": "norm"})
    with pytest.raises(PolicyError, match="layers, query heads and bands"):
        compiled.validate(shape(), tp_size=1, pp_size=1, statistics=statistics(shape(layers=3), gen))
    with pytest.raises(PolicyError, match="no rotary"):
        compiled.validate(shape(rotary_dim=0), tp_size=1, pp_size=1, statistics=statistics(shape(), gen))
    compiled.validate(shape(), tp_size=1, pp_size=1, statistics=statistics(shape(), gen))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    selection=st.sampled_from(["per_layer_per_head", "per_head", "union"]),
    share=st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]),
    quotas=st.sampled_from([None, (1, 0.5), (3, 1.0), (4, 0.7)]),
    n=st.integers(4, 30),
    keep=st.integers(1, 30),
    window=st.integers(0, 3),
)
def test_reserve_and_quotas_against_plain_lists(seed, selection, share, quotas, n, keep, window):
    gen = torch.Generator().manual_seed(seed)
    model = shape(layers=2, kv_heads=2, group=2, head_dim=8)
    fields = {"selection": selection, "normalize": "each", "pin": {"sinks": 1, "window": window}}
    terms = [{"kind": "trig"}, {"kind": "random", "weight": 0.5}]
    reserved = [{"kind": "keydiff"}, {"kind": "vnorm", "weight": -1}]
    ctx = request(model, n, gen, computed=2 * n, statistics=statistics(model, gen))
    main = policy(*terms, **fields).scores(ctx)
    by = policy(*reserved, **fields).scores(ctx)
    compiled = policy(
        *terms,
        **fields,
        reserve=None if share is None else {"share": share, "terms": reserved},
        segments=None if quotas is None else {"count": quotas[0], "share": quotas[1]},
    )
    kept = compiled.select(ctx, keep)
    assert bool((kept.sum(-1) == min(n, keep)).all())
    for i in range(main.shape[0]):
        for j in range(main.shape[1]):
            where = ctx.positions[i, j].tolist()
            chosen = {e for e in range(n) if math.isinf(main[i, j, e])}

            def take(scores, places, among, chosen=chosen):
                order = sorted((e for e in among if e not in chosen), key=lambda e: (-float(scores[e]), e))
                chosen.update(order[: max(places, 0)])

            everyone = range(n)
            if share is not None:
                take(by[i, j], (keep - len(chosen)) * round(share * 65536) // 65536, everyone)
            if quotas is not None:
                each = max(keep - len(chosen), 0) * round(quotas[1] * 65536) // 65536 // quotas[0]
                span = max(2 * n - window - 1, 1)
                for segment in range(quotas[0]):
                    mine = [e for e in everyone if (where[e] - 1) * quotas[0] // span == segment]
                    take(main[i, j], each, mine)
            take(main[i, j], keep - len(chosen), everyone)
            if len(chosen) <= keep:
                rows = slice(None) if main.shape[0] == 1 else i, slice(None) if main.shape[1] == 1 else j
                picked = kept[rows].reshape(-1, n)
                expected = [e in chosen for e in range(n)]
                assert all(row.tolist() == expected for row in picked)


def test_a_reserve_needs_scores_of_one_unit():
    from triattn.config import parse_policy
    from triattn.errors import ConfigError

    reserve = {"share": 0.5, "terms": [{"kind": "keydiff"}]}
    with pytest.raises(ConfigError) as caught:
        parse_policy({"name": "a", "terms": [{"kind": "random"}], "reserve": reserve})
    assert caught.value.field == "policy.normalize"
