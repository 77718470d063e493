"""Learned selection and the replay that it rests on, against brute force on a tiny model."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.policies.builders import document, policy, request, shape, statistics
from triattn.calibrate import damage
from triattn.calibrate import learn as learning
from triattn.calibrate.damage import DULL, SINKS, WINDOW, Samples, observe
from triattn.calibrate.errors import CalibrationError
from triattn.calibrate.fitting import fit_probe
from triattn.calibrate.learn import fit, kept, learn, reserved, shares_of, with_probe
from triattn.calibrate.replay import attention_replaced, replay
from triattn.policies import Policy
from triattn.policies.keydiff import KeyDiff
from triattn.policies.superseded import Superseded
from triattn.statistics import BESIDE_KEYS, LEARNABLE, UNITS

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
)
SHAPE = shape(layers=2, kv_heads=2, group=2, head_dim=8)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).float().eval()


def text(seed: int, length: int) -> list[int]:
    return torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_replay_without_eviction_is_the_model(model) -> None:
    tokens = text(1, 60)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    before = model.config._attn_implementation
    for arguments in ({"policy": None}, {"policy": policy({"kind": "random"}), "budget": 60}):
        found = replay(model, tokens, SHAPE, interval=7, **arguments)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == before


def test_a_replay_reads_what_its_policy_left(model) -> None:
    """Recency is known beforehand, so a dense pass with a mask must agree."""
    tokens, prompt, budget, interval = text(2, 50), 4, 16, 8
    chosen = policy(
        {"kind": "recency"},
        normalize="none",
        selection="union",
        pin={"prompt": True, "sinks": 0, "window": 0},
    )
    found = replay(model, tokens, SHAPE, chosen, budget=budget, interval=interval, prompt_len=prompt)
    visible = torch.ones(50, 50, dtype=torch.bool).tril()
    resident: list[int] = []
    for start in [0, *range(prompt, 50, interval)]:
        stop = prompt if start == 0 else min(start + interval, 50)
        gone = torch.ones(start, dtype=torch.bool)
        gone[resident] = False
        visible[start:stop, :start] &= ~gone
        resident += range(start, stop)
        if len(resident) > budget:
            resident = [*range(prompt), *resident[-(budget - prompt) :]]
    mask = torch.zeros(50, 50).masked_fill(~visible, -torch.inf)[None, None]
    with torch.inference_mode():
        expected = model(torch.tensor([tokens]), attention_mask=mask).logits[0].log_softmax(-1)
        dense = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((found - dense).abs().max()) > 1e-3


def test_damage_is_what_losing_one_token_does_to_the_outputs(model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text(3, 300)
    seen: dict[int, tuple] = {}
    original = damage.attend

    def spying(query, keys, values, scaling):
        result = original(query, keys, values, scaling)
        seen[len(seen)] = (query, keys, values, scaling, *result)
        return (*result[:1], result[1].clone())

    monkeypatch.setattr(damage, "attend", spying)
    samples = observe(model, tokens, SHAPE, None, terms=[KeyDiff()])
    assert samples is not None and samples.times == [t - SINKS - WINDOW for t in (78, 152, 226)]
    assert torch.equal(samples.weight, torch.ones(sum(samples.times)))
    _, keys, values, _, out, weights = seen[1]
    for candidate in (0, 40):
        lost = SINKS + candidate
        shift = []
        for head in (2, 3):
            without = weights[head, 152:300].clone()
            without[:, lost] = 0
            without = without / without.sum(-1, keepdim=True)
            shift.append((without @ values[1] - out[head, 152:300]).norm(dim=-1).max())
        at = samples.times[0] + candidate
        assert float(samples.damage[1, 1, at]) == pytest.approx(float(max(shift)), rel=1e-3)
        assert float(samples.age[1, 1, at]) == 152 - lost
    # The largest cosine to a later key that was there at the time, as the policy's term has it.
    ctx = dataclasses.replace(request(SHAPE, 152, torch.Generator()), keys=lambda _: keys[:, :152])
    like = -Superseded("key").score(ctx, 0)[:, SINKS : 152 - WINDOW]
    first = samples.times[0]
    torch.testing.assert_close(samples.like[1, :, first : first + samples.times[1]], like, rtol=0, atol=1e-3)


def test_targets_tell_apart_what_is_missed_most(model) -> None:
    samples = observe(model, text(3, 300), SHAPE, None)
    assert samples is not None
    for target, lost in zip(
        samples.target.split(samples.times, -1), samples.damage.split(samples.times, -1), strict=True
    ):
        dull = lost < lost.quantile(DULL, dim=-1, keepdim=True)
        assert float(target[dull].std()) < 2
        assert torch.equal(target.amax(-1), target.gather(-1, lost.argmax(-1, keepdim=True))[..., 0])
        torch.testing.assert_close(target.mean(-1), torch.zeros(2, 2), atol=1e-4, rtol=0)
        low = target.amin(-1, keepdim=True).expand_as(target)
        assert torch.equal(target[dull], low[dull])


def test_an_effect_is_what_losing_one_token_does_to_the_answers(model) -> None:
    """Against differences: each query's output in each head moves towards what it would be (and, as effects here are
    tiny and norms are float32, beyond), and as far away."""
    tokens, prompt, layer, lost, step = text(3, 160), 60, 0, 64, 4.0
    samples = observe(model, tokens, SHAPE, None, prompt=prompt, count=1, effects=True)
    assert samples is not None and samples.times == [110 - prompt - WINDOW]
    assert samples.effect is not None and samples.effect_target is not None
    exact = copy.deepcopy(model).double()

    def odds(query: int = 0, head: int = 0, by: float = 0.0) -> torch.Tensor:
        def attention(at, queries, keys, values, scaling):
            wide, heads = values.repeat_interleave(2, 0), keys.repeat_interleave(2, 0)
            scores = (queries @ heads.transpose(1, 2) * scaling).masked_fill(~causal, -torch.inf)
            out = scores.softmax(-1) @ wide
            if at == layer and by:
                without = scores[head, query].clone()
                without[lost] = -torch.inf
                out[head, query] += by * (without.softmax(-1) @ wide[head] - out[head, query])
            return out

        causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
        with torch.inference_mode(), attention_replaced(exact, attention):
            logits = exact(torch.tensor([tokens]), use_cache=False).logits[0, prompt - 1 :]
        probability = logits.softmax(-1)
        best = probability.gather(1, top)[:, 0] if by else probability.amax(-1)
        return (best / (1 - best)).log()

    with torch.inference_mode():
        top = exact(torch.tensor([tokens])).logits[0, prompt - 1 :].topk(1).indices
    size = odds().abs() + 1
    for group in range(2):
        effects = []
        for query in range(110, 160):
            moves = [
                odds(query, head, step) - odds(query, head, -step) for head in (2 * group, 2 * group + 1)
            ]
            effects.append(sum(abs(float((move / size).sum())) / (2 * step) for move in moves))
        found = float(samples.effect[layer, group, lost - prompt])
        assert found == pytest.approx(max(effects), rel=5e-3) and found > 0
    assert observe(model, tokens, SHAPE, None, prompt=prompt, count=1).effect is None


def test_the_dull_are_looked_at_in_part(model) -> None:
    tokens = text(3, 400)
    whole = observe(model, tokens, SHAPE, None, terms=[KeyDiff()])
    some = observe(model, tokens, SHAPE, None, terms=[KeyDiff()], sparse=torch.Generator().manual_seed(0))
    assert whole is not None and some is not None
    assert sum(some.times) < 0.6 * sum(whole.times)
    start = 0
    for many, few in zip(whole.times, some.times, strict=True):
        part = slice(start, start + few)
        start += few
        assert float(some.weight[part].sum()) == pytest.approx(many)
        sharp = many - int(many * DULL)
        best = whole.damage.split(whole.times, -1)[whole.times.index(many)].topk(sharp, -1).values
        assert torch.equal(some.damage[..., part][..., :sharp], best)
    # Each keeps what belongs to it.
    of = {float(a): i for i, a in enumerate(whole.damage[1, 1])}
    for at in range(0, sum(some.times), 7):
        there = of[float(some.damage[1, 1, at])]
        for name in ("keys", "age", "like", "target"):
            assert torch.equal(getattr(some, name)[1, 1, at], getattr(whole, name)[1, 1, there]), name
        assert torch.equal(some.features[0, 1, 1, at], whole.features[0, 1, 1, there])


def test_a_pass_backwards_that_does_not_fit_says_so(model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(CalibrationError, match=r"probe-units of 64.*300.*--window, or 32"):
        observe(model, text(3, 300), SHAPE, None, effects=True)
    assert observe(model, text(3, 300), SHAPE, None) is not None


def test_of_two_measures_what_either_misses_is_looked_at(model) -> None:
    tokens = text(3, 400)
    whole = observe(model, tokens, SHAPE, None, effects=True)
    some = observe(model, tokens, SHAPE, None, effects=True, sparse=torch.Generator().manual_seed(0))
    assert whole is not None and some is not None
    many, few = whole.times[0], some.times[0]
    assert float(some.weight[:few].sum()) == pytest.approx(many)
    for name in ("damage", "effect"):
        before, after = (getattr(s, name)[..., :n] for s, n in ((whole, many), (some, few)))
        for count in (1, int(0.1 * many)):
            assert torch.equal(after.topk(count, -1).values, before.topk(count, -1).values), name
        # Targets are of all candidates, whichever are looked at.
        target = "target" if name == "damage" else "effect_target"
        largest = [getattr(s, target)[..., :n].amax(-1) for s, n in ((whole, many), (some, few))]
        assert torch.equal(*largest)


def test_a_prompt_is_no_candidate(model) -> None:
    samples = observe(model, text(3, 300), SHAPE, None, prompt=60)
    assert samples is not None and samples.times == [t - 60 - WINDOW for t in (120, 180, 240)]
    assert observe(model, text(3, 60), SHAPE, None, prompt=40) is None


def planted(seed: int, log=None) -> Samples:
    """Damage that features foretell, of two times; `log` makes it of keys, ages and cosines instead."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 2, 1, 400, generator=generator)
    keys = torch.randn(2, 1, 400, 4, generator=generator)
    age = torch.randint(8, 500, (2, 1, 400), generator=generator).float()
    like = torch.rand(2, 1, 400, generator=generator)
    wanted = 2 * features[0] - features[1] + 0.1 * torch.randn(2, 1, 400, generator=generator)
    wanted[1] = features[2, 1]
    if log is not None:
        wanted = log(keys, age, like)
    target = torch.cat([part - part.mean(-1, True) for part in wanted.split([150, 250], -1)], -1)
    return Samples(keys.half(), age, like, wanted.exp(), target, torch.ones(400), features, [150, 250])


def test_fit_finds_weights_and_signs() -> None:
    weights = fit([planted(i) for i in range(3)])
    unit = weights / weights.norm(dim=0)
    wanted = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(unit[..., 0], wanted / wanted.norm(dim=0), rtol=0.1, atol=0.05)


def test_a_probe_finds_what_is_no_sum() -> None:
    """Of keys' first dimension only while they are young, and only where nothing repeats them."""

    def log(keys, age, like):
        return torch.where((age < 100) & (like < 0.5), 2 * keys[..., 0], -1.0)

    probe = fit_probe([planted(i, log) for i in range(20)], torch.device("cpu"), steps=1500)
    assert probe.shape == (2, 1, 4 + BESIDE_KEYS, UNITS[0])
    other = planted(9, log)
    found = with_probe(other, probe).features[3]
    for part, wanted in zip(found.split([150, 250], -1), other.target.split([150, 250], -1), strict=True):
        for layer in range(2):
            assert float(torch.corrcoef(torch.stack([part[layer, 0], wanted[layer, 0]]))[0, 1]) > 0.6
    again = fit_probe([planted(i, log) for i in range(20)], torch.device("cpu"), steps=1500)
    assert torch.equal(probe, again)


def test_each_sixteen_units_foretell_another_thing() -> None:
    def log(keys, age, like):
        return torch.where((age < 100) & (like < 0.5), 1 + keys[..., 0], -1.0)

    def effect(keys, age, like):
        return torch.where(age > 300, keys[..., 1], -1.0)

    def of_both(seed: int) -> Samples:
        sample, other = planted(seed, log), planted(seed, effect)
        return dataclasses.replace(sample, effect=other.damage, effect_target=other.target)

    samples, device = [of_both(i) for i in range(20)], torch.device("cpu")
    probe = fit_probe(samples, device, units=64, steps=1500)
    assert probe.shape == (2, 1, 4 + BESIDE_KEYS, 64)
    # Smaller probes are its first parts.
    for units in (16, 32):
        assert torch.equal(probe[..., :units], fit_probe(samples, device, units=units, steps=1500))
    other = of_both(30)
    parts = {"damage": (probe[..., :16], probe[..., 16:32]), "effect": (probe[..., 32:48], probe[..., 48:])}
    for name, of in parts.items():
        missed = getattr(other, name)

        def avoided(scores, missed=missed):
            return kept(scores, missed, other.times, 0.125)

        possible, chance = avoided(missed), avoided(torch.rand(missed.shape))
        # Both ways together, each by itself, and the whole, which has another thing to foretell too.
        for part, least in ((torch.cat(of, -1), 0.75), *((half, 0.75) for half in of), (probe, 0.5)):
            found = avoided(with_probe(other, part).features[3])
            assert bool((found > least * possible).all()) and bool((found > 1.5 * chance).all()), (
                name,
                found,
            )
    assert torch.equal(probe, fit_probe(samples, device, units=64, steps=1500))


def test_what_is_kept_is_a_part_of_the_use() -> None:
    use = torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0, 0.0]])
    scores = torch.tensor([[0.0, 0.0, 1.0, 2.0, 0.0, 5.0]])
    assert float(kept(scores, use, [4, 2], 0.5)) == pytest.approx(7 / 20)
    assert float(kept(use, use, [4, 2], 1.0)) == 1.0
    promoted = reserved(scores, -scores, [4, 2], 0.5, 1.0)
    assert torch.isposinf(promoted)[0].tolist() == [True, True, False, False, True, False]


def test_a_reserve_must_be_worth_it() -> None:
    sample = planted(7)
    weights = fit([sample])
    # In the second layer weights and distinctness find the same; in the first only the weights do.
    sample.like = -sample.features[2]
    assert shares_of([sample], weights).tolist() == [[0.0], [0.0]]
    # What only distinctness finds.
    share = shares_of([sample], weights * torch.tensor([[[1.0], [-1.0]]]))
    assert float(share[0]) == 0 and float(share[1]) == learning.SHARES[-1]


def test_learning_is_repeatable_and_says_what_it_cannot(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_probe, "__kwdefaults__", {**fit_probe.__kwdefaults__, "steps": 60})
    stats = statistics(SHAPE, torch.Generator().manual_seed(1))
    pieces = [text(i, 320) for i in range(4)]
    steps: list[tuple[int, int]] = []
    first, second = (
        learn(model, pieces, SHAPE, stats, fitting=lambda *done: steps.append(done)) for _ in range(2)
    )
    assert torch.equal(first.probe, second.probe) and first.note == second.note
    assert steps == 2 * [(50, 60), (60, 60)]
    assert torch.equal(first.weights, torch.ones(1, 2, 2)) and first.share.shape == (2, 2)
    assert first.note.terms == list(LEARNABLE) == ["probe"]
    assert first.probe.shape == (2, 2, SHAPE.head_dim + BESIDE_KEYS, UNITS[0])
    assert first.note.kept["possible"] >= max(v for k, v in first.note.kept.items() if k != "possible")
    more = learn(model, pieces, SHAPE, stats, more=("expected", "superseded"))
    assert more.note.terms == ["expected", "superseded", "probe"] and "expected" in more.note.kept
    assert more.weights.shape == (3, 2, 2) and float(more.weights.abs().min()) > 0
    wide = learn(model, pieces, SHAPE, stats, units=UNITS[-1])
    assert wide.probe.shape == (2, 2, SHAPE.head_dim + BESIDE_KEYS, UNITS[-1])
    with pytest.raises(CalibrationError, match="two pieces"):
        learn(model, pieces[:1], SHAPE, stats)


def test_a_policy_takes_what_was_learned_or_does_without() -> None:
    gen = torch.Generator().manual_seed(2)
    auto = Policy.of(
        document(
            {"kind": "trig"},
            {"kind": "recency"},
            normalize="each",
            groupAggregation="mean",
            selection="per_layer_per_head",
            learned=True,
            statistics="optional",
            reserve={"share": 0.5, "terms": [{"kind": "superseded"}]},
            pin={"prompt": False, "sinks": 0, "window": 2},
        )
    )
    assert auto.uses_statistics and not auto.needs_statistics
    bare = auto.with_statistics(None)
    assert [type(t).__name__ for _, t in bare.terms] == ["Recency"] and bare.reserve
    alone = dataclasses.replace(auto, terms=auto.terms[:1]).with_statistics(None)
    assert [type(t).__name__ for _, t in alone.terms] == ["Superseded"] and not alone.reserve
    stats = statistics(SHAPE, gen)
    assert auto.with_statistics(stats) == auto
    weights = torch.randn(2, 2, 2, generator=gen)
    share = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    known = SimpleNamespace(
        **vars(stats), learned_terms=("trig", "keydiff"), learned_weights=weights, learned_share=share
    )
    ctx = request(SHAPE, 40, gen, computed=60, statistics=known)
    compiled = auto.with_statistics(known)
    scores = compiled.scores(ctx)
    one = [
        policy({"kind": kind}, normalize="each", groupAggregation="mean", selection="per_layer_per_head",
               pin={"prompt": False, "sinks": 0, "window": 2}).scores(ctx)
        for kind in ("trig", "keydiff")
    ]  # fmt: skip
    wanted = weights[0][..., None] * one[0] + weights[1][..., None] * one[1]
    free = torch.isfinite(scores)
    torch.testing.assert_close(scores[free], wanted[free], rtol=1e-4, atol=1e-4)
    reserve = torch.isposinf(compiled.final(ctx, 22)) & free
    pinned = (~free).sum(-1)
    assert torch.equal(reserve.sum(-1), ((22 - pinned) * share).long())


def test_one_learned_term_needs_no_sums() -> None:
    """With a probe alone and no reserve scores are the probe's, which keep what z-scores of it would keep."""
    gen = torch.Generator().manual_seed(3)
    auto = Policy.of(
        document(
            {"kind": "recency"},
            normalize="each",
            groupAggregation="mean",
            selection="per_layer_per_head",
            learned=True,
            reserve={"share": 0.5, "terms": [{"kind": "superseded"}]},
            pin={"prompt": False, "sinks": 0, "window": 2},
        )
    )
    learned = {"learned_terms": ("probe",), "learned_weights": torch.ones(1, 2, 2)}
    stats = statistics(SHAPE, gen)
    alone, beside = (
        SimpleNamespace(**vars(stats), **learned, learned_share=torch.full((2, 2), share))
        for share in (0.0, 0.25)
    )
    plain, summed = auto.with_statistics(alone), auto.with_statistics(beside)
    assert plain.normalize == "none" and not plain.reserve and plain.remembered
    assert summed.normalize == "each" and summed.reserve
    ctx = request(SHAPE, 40, gen, computed=60, statistics=alone)
    summed = dataclasses.replace(summed, reserve=(), reserve_share=0)
    assert torch.equal(plain.select(ctx, 22), summed.select(ctx, 22))
    assert not torch.equal(plain.scores(ctx), summed.scores(ctx))
    negative = SimpleNamespace(**{**vars(alone), "learned_weights": -torch.ones(1, 2, 2)})
    assert auto.with_statistics(negative).normalize == "each"
