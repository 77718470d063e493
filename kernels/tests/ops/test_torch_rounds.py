"""The plain-torch round against set semantics: what is kept, where it lies, and that nothing else moved."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.caches import LAYOUTS, case
from tests.policies.builders import policy, shape, statistics
from triattn.ops.interface import FIELDS
from triattn.ops.torch_rounds import TorchRounds, moves
from triattn.policies.superseded import rotation_undone

requests = st.lists(
    st.builds(
        lambda keep, more, previous, evicted, prompt, pin: {
            "resident": keep + more,
            "keep": keep,
            "previous": min(previous, keep + more) if evicted else 0,
            "evicted": evicted,
            "prompt_len": prompt,
            "pin": pin,
        },
        st.integers(1, 20),
        st.integers(0, 14),
        st.integers(0, 30),
        st.integers(0, 9),
        st.integers(0, 6),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)
policies = st.sampled_from(
    [
        ([{"kind": "random"}], {"selection": "per_layer_per_head", "normalize": "none"}),
        ([{"kind": "trig"}, {"kind": "norm"}], {"selection": "per_head"}),
        ([{"kind": "keydiff"}, {"kind": "trig"}], {"selection": "per_layer_per_head", "normalize": "each"}),
        ([{"kind": "recency"}], {"selection": "union", "normalize": "none"}),
    ]
)


@settings(max_examples=60, deadline=None)
@given(requests, policies, st.sampled_from(LAYOUTS), st.sampled_from([1, 4, 5]), st.integers(0, 2**31))
def test_a_round_keeps_the_selected_entries_and_moves_only_the_tail(
    planned, chosen, layout, block_size, seed
):
    gen = torch.Generator().manual_seed(seed)
    model = shape(layers=2, kv_heads=2, group=2, head_dim=4)
    compiled = policy(*chosen[0], **chosen[1], pin={"prompt": True, "sinks": 1, "window": 2})
    made = case(model, planned, layout=layout, block_size=block_size, gen=gen)
    rounds = TorchRounds(made.caches, made.positions, model, compiled, statistics(model, gen))
    before = [made.entries(i, p.resident) for i, p in enumerate(made.plans)]
    untouched = copy.deepcopy((made.caches, made.positions))
    kept = []
    for i, values in enumerate(made.batch.fields.tolist()):
        fields = dict(zip(FIELDS, values, strict=True))
        kept.append(rounds.select(fields, made.batch.block_tables[fields["row"]])[0])
        assert bool((kept[-1].sum(-1) == min(made.plans[i].keep, made.plans[i].resident)).all())
    rounds.run(made.batch)
    size = block_size
    used: set[int] = set()
    for i, plan in enumerate(made.plans):
        table = made.batch.block_tables[int(made.batch.fields[i, 0])]
        used |= set(table[: -(-plan.resident // size)].tolist())
        if plan.keep >= plan.resident:
            continue
        index = torch.arange(plan.keep)
        blocks, offsets = table[index // size].long(), index % size
        for layer in range(2):
            keys, values = (made.caches[layer].read(w, blocks, offsets) for w in ("k", "v"))
            for head in range(2):
                k0, v0, p0 = (x[layer, head] for x in before[i])
                mask = kept[i][layer, head]
                where = made.positions[layer, head, blocks, offsets]
                now = [
                    (tuple(k.tolist()), tuple(v.tolist()), int(p))
                    for k, v, p in zip(keys[head], values[head], where, strict=True)
                ]
                old = [
                    (tuple(k.tolist()), tuple(v.tolist()), int(p)) for k, v, p in zip(k0, v0, p0, strict=True)
                ]
                assert sorted(now) == sorted(e for e, m in zip(old, mask, strict=True) if m)
                # A kept entry below the new length lies where it lay; the rest filled the holes in order.
                tail = iter(e for e, m in zip(old[plan.keep :], mask[plan.keep :], strict=True) if m)
                pairs = zip(old[: plan.keep], mask[: plan.keep], strict=True)
                assert now == [e if m else next(tail) for e, m in pairs]
    others = torch.tensor([b for b in range(made.positions.shape[2]) if b not in used])
    for cache, old in zip(made.caches, untouched[0], strict=True):
        for block in others.tolist():
            where = (torch.full((size,), block), torch.arange(size))
            assert all(torch.equal(cache.read(w, *where), old.read(w, *where)) for w in ("k", "v"))
    assert torch.equal(made.positions[:, :, others], untouched[1][:, :, others])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_moves_pair_the_kept_tail_with_the_holes(kept):
    keep = sum(kept)
    (source,), destination = moves(torch.tensor(kept), keep)
    assert source.tolist() == [i for i in range(keep, len(kept)) if kept[i]]
    assert destination.tolist() == [i for i in range(keep) if not kept[i]]


def test_a_pin_outlives_many_rounds():
    """Sinks and prompt stay, in place, however often a request is compacted, and the window slides."""
    gen = torch.Generator().manual_seed(0)
    model = shape(layers=2, kv_heads=2, group=2, head_dim=4)
    compiled = policy(
        {"kind": "random"},
        normalize="none",
        selection="per_layer_per_head",
        pin={"prompt": True, "sinks": 0, "window": 3},
    )
    made = case(model, [{"resident": 20, "keep": 12, "prompt_len": 5, "pin": True}], gen=gen)
    rounds = TorchRounds(made.caches, made.positions, model, compiled)
    rounds.run(made.batch)
    fields = made.batch.fields
    for evicted in range(8, 80, 8):
        # Eight more tokens arrived in the rows after the kept twelve.
        fields[0] = torch.tensor([int(fields[0, 0]), 20, 12, evicted, 12, 20 + evicted, 5, 1, 0])
        rounds.run(made.batch)
        table = made.batch.block_tables[int(fields[0, 0])]
        index = torch.arange(12)
        where = made.positions[:, :, table[index // 4].long(), index % 4]
        assert bool((where[..., :5] == torch.arange(5)).all())
        for row in where.flatten(0, 1).tolist():
            assert set(range(17 + evicted, 20 + evicted)) <= set(row) and len(set(row)) == 12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copied_blocks_carry_keys_values_and_positions(layout):
    gen = torch.Generator().manual_seed(1)
    model = shape(layers=2, kv_heads=2, group=1, head_dim=4)
    made = case(model, [{"resident": 16, "keep": 8, "previous": 16, "evicted": 5}], layout=layout, gen=gen)
    rounds = TorchRounds(made.caches, made.positions, model, policy({"kind": "random"}))
    table = made.batch.block_tables[int(made.batch.fields[0, 0])]
    spare = [b for b in range(made.positions.shape[2]) if b not in set(table[:4].tolist())]
    rounds.copy_blocks(
        torch.tensor([[int(table[1]), spare[0]], [int(table[3]), spare[1]]], dtype=torch.int32)
    )
    index = torch.arange(4)
    for source, copied in ((table[1], spare[0]), (table[3], spare[1])):
        for cache in made.caches:
            for which in ("k", "v"):
                a, b = (cache.read(which, torch.full((4,), int(x)), index) for x in (source, copied))
                assert torch.equal(a, b)
        assert torch.equal(made.positions[:, :, int(source)], made.positions[:, :, copied])


def test_an_fp8_cache_is_scored_by_its_values_and_moved_as_bytes():
    gen = torch.Generator().manual_seed(2)
    model = shape(layers=1, kv_heads=1, group=1, head_dim=4)
    compiled = policy(
        {"kind": "keydiff"},
        normalize="none",
        selection="per_layer_per_head",
        pin={"prompt": False, "sinks": 0, "window": 0},
    )
    made = case(model, [{"resident": 12, "keep": 5}], dtype=torch.float8_e4m3fn, gen=gen)
    before = made.entries(0, 12)[0][0, 0].float()
    TorchRounds(made.caches, made.positions, model, compiled).run(made.batch)
    unit = torch.nn.functional.normalize(before, dim=-1)
    wanted = (unit @ unit.mean(0)).argsort()[:5]
    after = made.entries(0, 5)[0][0, 0].float()
    assert sorted(map(tuple, after.tolist())) == sorted(map(tuple, before[wanted].tolist()))


@pytest.mark.parametrize("space", ["key", "value"])
def test_superseded_remembers_all_that_came_later(space: str) -> None:
    """After every round an entry's memory is its largest cosine to any later one, those evicted since included."""
    gen = torch.Generator().manual_seed(5)
    model = shape(layers=1, kv_heads=2, group=1, head_dim=16)
    compiled = policy(
        {"kind": "superseded", "space": space},
        normalize="none",
        selection="per_layer_per_head",
        pin={"prompt": False, "sinks": 1, "window": 4},
    )
    made = case(model, [{"resident": 60, "keep": 24}], block_size=8, gen=gen)
    rounds = TorchRounds(made.caches, made.positions, model, compiled)
    table = made.batch.block_tables[int(made.batch.fields[0, 0])]
    every: list[torch.Tensor] = []
    evicted, previous, known = 0, 0, 0
    for number in range(4):
        resident = previous + (60 if number == 0 else 20)
        index = torch.arange(previous, resident)
        blocks, offsets = table[index // 8].long(), index % 8
        for part in (made.caches[0].k, made.caches[0].v):
            part[blocks, :, offsets] = torch.randn(len(index), 2, 16, generator=gen)
        keys = made.caches[0].read("k", blocks, offsets).float()
        where = (index + evicted).expand(2, -1)
        new = (
            rotation_undone(model, keys, where)
            if space == "key"
            else made.caches[0].read("v", blocks, offsets)
        )
        every.append(torch.nn.functional.normalize(new.float(), dim=-1))
        fields = [
            int(made.batch.fields[0, 0]),
            resident,
            previous,
            evicted,
            24,
            resident + evicted,
            0,
            0,
            known,
        ]
        made.batch.fields[0] = torch.tensor(fields)
        rounds.run(made.batch)
        evicted, previous, known = evicted + resident - 24, 24, 24
        rows = torch.arange(24)
        blocks, offsets = table[rows // 8].long(), rows % 8
        unit = torch.cat(every, dim=1)
        like = unit @ unit.transpose(1, 2)
        later = torch.ones(unit.shape[1], unit.shape[1]).triu(1).bool()
        best = torch.where(later, like, -1.0).amax(-1)
        for head in range(2):
            kept = made.positions[0, head, blocks, offsets].long()
            found = rounds.memory[0, 0, head, blocks, offsets]
            torch.testing.assert_close(found, best[head, kept], atol=2e-3, rtol=0)
