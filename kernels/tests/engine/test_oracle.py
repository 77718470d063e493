"""The oracle itself: against transformers, and against a literal cache from which entries are deleted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .models import SPECS, ModelSpec, checkpoint
from .oracle import BadRound, Oracle, Round, check_rounds


def random_rounds(spec: ModelSpec, length: int, budget: int, interval: int, seed: int) -> list[Round]:
    """Rounds that keep random tokens, each layer and KV head its own."""
    rng = np.random.default_rng(seed)
    resident = [[np.arange(0) for _ in range(spec.kv_heads)] for _ in range(spec.layers)]
    rounds, known = [], 0
    for computed in range(budget + interval, length, interval):
        kept = np.empty((spec.layers, spec.kv_heads, budget), np.int64)
        for layer in range(spec.layers):
            for head in range(spec.kv_heads):
                here = np.concatenate([resident[layer][head], np.arange(known, computed)])
                kept[layer, head] = rng.permutation(here)[:budget]
                resident[layer][head] = kept[layer, head]
        rounds.append(Round(computed, computed - budget, kept))
        known = computed
    return rounds


def deleting_cache(oracle: Oracle, tokens: list[int], rounds: list[Round], prefill: int) -> torch.Tensor:
    """Token by token (after a first chunk) over a cache that really loses its entries."""
    spec = oracle.spec
    due = {r.computed: r for r in rounds}
    cache = [[(torch.empty(0, dtype=torch.int64), None, None)] * spec.kv_heads for _ in range(spec.layers)]
    rows = []
    at = 0
    while at < len(tokens):
        if at in due:
            for layer in range(spec.layers):
                for head in range(spec.kv_heads):
                    positions, k, v = cache[layer][head]
                    stay = torch.isin(positions, torch.from_numpy(due[at].kept[layer, head]))
                    cache[layer][head] = positions[stay], k[stay], v[stay]
        end = min([prefill if at == 0 else at + 1, *(c for c in due if c > at)])
        positions = torch.arange(at, end)
        x = oracle.embed(tokens[at:end])
        for layer in range(spec.layers):
            q, k, v = oracle.qkv(layer, oracle.norm_in(layer, x), positions)
            out = torch.empty_like(q)
            for head in range(spec.kv_heads):
                p, old_k, old_v = cache[layer][head]
                p = torch.cat([p, positions])
                all_k = k[head] if old_k is None else torch.cat([old_k, k[head]])
                all_v = v[head] if old_v is None else torch.cat([old_v, v[head]])
                cache[layer][head] = p, all_k, all_v
                for i in range(head * spec.group, (head + 1) * spec.group):
                    scores = (q[i] @ all_k.T) * spec.head_dim**-0.5
                    scores[p[None, :] > positions[:, None]] = float("-inf")
                    out[i] = scores.softmax(-1) @ all_v
            x = oracle.finish_layer(layer, x, out)
        rows.append(oracle.log_probs(x))
        at = end
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mha", "yarn", "moe"])
def test_without_rounds_it_is_transformers(name: str) -> None:
    from transformers import AutoModelForCausalLM

    spec = SPECS[name]
    tokens = torch.randint(0, spec.vocab, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint(spec), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert (Oracle(spec)(tokens) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_masking_is_deleting(name: str) -> None:
    spec = SPECS[name]
    oracle = Oracle(spec)
    tokens = torch.randint(0, spec.vocab, (160,), generator=torch.Generator().manual_seed(2)).tolist()
    rounds = random_rounds(spec, len(tokens), budget=48, interval=16, seed=3)
    check_rounds(spec, rounds)
    assert len(rounds) >= 5
    with torch.no_grad():
        literal = deleting_cache(oracle, tokens, rounds, prefill=40)
    masked = oracle(tokens, rounds)
    assert (masked - literal).abs().max() < 5e-5
    # One eviction ignored, in one layer and head, must show by far.
    gone = next(p for p in range(64) if p not in rounds[0].kept[0, 0])
    lax = [Round(r.computed, r.evicted_total, r.kept.copy()) for r in rounds]
    lax[0].kept[0, 0, 0] = gone
    assert (oracle(tokens, lax[:1]) - oracle(tokens, rounds[:1])).abs().max() > 0.1


def test_impossible_rounds_are_found() -> None:
    spec = SPECS["llama"]
    good = random_rounds(spec, 200, budget=48, interval=16, seed=4)
    check_rounds(spec, good)

    def spoilt(index: int, change) -> list[Round]:
        rounds = [Round(r.computed, r.evicted_total, r.kept.copy()) for r in good]
        change(rounds[index].kept)
        return rounds

    evicted = next(p for p in range(64) if p not in good[0].kept[1, 1])
    newest = next(i for i, p in enumerate(good[1].kept[1, 1]) if p != evicted)
    for index, change, message in (
        (1, lambda kept: kept.__setitem__((1, 1, newest), evicted), "evicted earlier"),
        (0, lambda kept: kept.__setitem__((0, 0, 0), kept[0, 0, 1]), "twice"),
        (0, lambda kept: kept.__setitem__((0, 0, 0), 64), "kept positions"),
    ):
        with pytest.raises(BadRound, match=message):
            check_rounds(spec, spoilt(index, change))
    with pytest.raises(BadRound, match="counts"):
        check_rounds(spec, [Round(64, 15, good[0].kept)])
