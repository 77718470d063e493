"""Learned selection and the replay that it rests on, against brute force on a tiny model."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.policies.builders import document, policy, request, shape, statistics
from triattn.calibrate import learn as learning
from triattn.calibrate.errors import CalibrationError
from triattn.calibrate.learn import (
    SINKS,
    WINDOW,
    Samples,
    fit,
    kept,
    learn,
    observe,
    reserved,
    shares_of,
    with_probe,
)
from triattn.calibrate.replay import replay
from triattn.policies import Policy
from triattn.policies.keydiff import KeyDiff
from triattn.statistics import LEARNABLE

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


def test_damage_is_what_losing_one_token_does_to_the_outputs(model) -> None:
    tokens = text(3, 300)
    seen: dict[int, tuple] = {}
    original = learning.attend

    def spying(query, keys, values, scaling):
        result = original(query, keys, values, scaling)
        seen[len(seen)] = (query, keys, values, scaling, *result)
        return result

    learning.attend = spying
    try:
        samples = observe(model, tokens, SHAPE, None, [KeyDiff()])
    finally:
        learning.attend = original
    assert samples is not None and samples.times == [t - SINKS - WINDOW for t in (75, 150, 225)]
    _, _, values, _, out, weights = seen[1]
    for candidate in (0, 40):
        lost = SINKS + candidate
        shift = []
        for head in (2, 3):
            without = weights[head, 150:300].clone()
            without[:, lost] = 0
            without = without / without.sum(-1, keepdim=True)
            shift.append((without @ values[1] - out[head, 150:300]).norm(dim=-1).max())
        at = samples.times[0] + candidate
        assert float(samples.damage[1, 1, at]) == pytest.approx(float(max(shift)), rel=1e-3)


def test_a_prompt_is_no_candidate(model) -> None:
    samples = observe(model, text(3, 300), SHAPE, None, [KeyDiff()], prompt=60)
    assert samples is not None and samples.times == [t - 60 - WINDOW for t in (180, 240)]


def planted(seed: int) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 2, 1, 400, generator=generator)
    log = 2 * features[0] - features[1] + 0.1 * torch.randn(2, 1, 400, generator=generator)
    log[1] = features[2, 1]
    keys = torch.randn(2, 1, 400, 4, generator=generator)
    keys -= torch.cat([part.mean(2, True).expand_as(part) for part in keys.split([150, 250], 2)], 2)
    return Samples(features, log.exp(), keys.half(), [150, 250])


def test_fit_finds_weights_and_signs() -> None:
    weights, probe = fit([planted(i) for i in range(3)])
    assert float(probe.abs().max()) < 0.1 * float(weights.abs().max())
    unit = weights / weights.norm(dim=0)
    wanted = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(unit[..., 0], wanted / wanted.norm(dim=0), rtol=0.1, atol=0.05)


def test_fit_finds_what_keys_say() -> None:
    """Damage that is linear in keys, and in no feature: the probe has it all, whatever the scale of keys."""
    vector = torch.tensor([0.5, 0.0, -2.0, 1.0])
    samples = []
    for seed in range(3):
        sample = planted(seed)
        log = (sample.keys.float() @ vector)[..., 0:400]
        samples.append(dataclasses.replace(sample, damage=log.exp(), keys=(sample.keys * 50).half()))
    weights, probe = fit(samples)
    unit = probe / probe.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(unit, (vector / vector.norm()).expand(2, 1, 4), rtol=0.02, atol=0.02)
    widened, spread = with_probe(samples[0], probe)
    assert widened.features.shape[0] == 4 and widened.keys.shape[-1] == 0
    # Its z-scores times their spread are the prediction again, but for what is the same for all candidates.
    scores = samples[0].keys.float()[:, :, :150] @ probe[..., None]
    centred = (scores - scores.mean(2, True))[..., 0]
    torch.testing.assert_close(
        widened.features[3, :, :, :150] * centred.std(2, correction=0, keepdim=True), centred
    )
    assert spread.shape == (2, 1) and float(spread.min()) > 5 * float(weights.abs().max())


def test_what_is_kept_is_a_part_of_the_use() -> None:
    use = torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0, 0.0]])
    scores = torch.tensor([[0.0, 0.0, 1.0, 2.0, 0.0, 5.0]])
    assert float(kept(scores, use, [4, 2], 0.5)) == pytest.approx(7 / 20)
    assert float(kept(use, use, [4, 2], 1.0)) == 1.0
    promoted = reserved(scores, -scores, [4, 2], 0.5, 1.0)
    assert torch.isposinf(promoted)[0].tolist() == [True, True, False, False, True, False]


def test_the_reserve_costs_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    # More than are tried by default: half of what is free is within the tolerance here, wherever it comes from.
    monkeypatch.setattr(learning, "SHARES", tuple(i / 8 for i in range(7)))
    sample = planted(7)
    weights, _ = fit([sample])
    share = shares_of([sample], weights, [2])
    # In the second layer what is distinct is what is used: the reserve takes all it may.
    assert float(share[1]) == learning.SHARES[-1] and float(share[0]) < 0.75
    own, by = (weights[..., None] * sample.features).sum(0), sample.features[2]
    for fraction in learning.FRACTIONS:
        score = reserved(own[:1], by[:1], sample.times, fraction, float(share[0]))
        alone = kept(own[:1], sample.damage[:1], sample.times, fraction)
        assert float(kept(score, sample.damage[:1], sample.times, fraction)) >= 0.8 * float(alone)


def test_learning_is_repeatable_and_says_what_it_cannot(model) -> None:
    stats = statistics(SHAPE, torch.Generator().manual_seed(1))
    pieces = [text(i, 320) for i in range(4)]
    first, second = (learn(model, pieces, SHAPE, stats) for _ in range(2))
    assert torch.equal(first.weights, second.weights) and first.note == second.note
    assert first.weights.shape == (len(LEARNABLE), 2, 2) and first.share.shape == (2, 2)
    assert first.note.terms == list(LEARNABLE) and first.probe.shape == (2, 2, SHAPE.head_dim)
    assert first.note.kept["possible"] >= max(v for k, v in first.note.kept.items() if k != "possible")
    more = learn(model, pieces, SHAPE, stats, more=("expected",))
    assert more.note.terms == ["superseded", "recency", "trig", "norm", "expected", "probe"]
    assert "expected" in more.note.kept
    assert more.weights.shape == (len(LEARNABLE) + 1, 2, 2)
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
