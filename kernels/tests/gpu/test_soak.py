"""Requests arriving, leaving, being aborted and preempted at random, invariants checked at every step."""

from __future__ import annotations

import os
import random

import pytest
import torch
from engine import rig
from engine.models import SPECS
from engine.policies import plugin
from engine.scenario import Request, Scenario
from gpu import specs  # noqa: F401
from gpu.engines import run_all

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

STEPS = int(os.environ.get("TRIATTN_SOAK_STEPS", "20000"))
MODEL = "gqa4-128"


def requests(steps: int) -> list[Request]:
    """About one request every nine steps: 30 at a time, and every so often 200 at once."""
    draw = random.Random(0)
    shared = [rig.prompt(1000 + i, 96) for i in range(3)]
    found: list[Request] = []
    at = 0
    while at < steps:
        burst = 200 if draw.random() < 0.001 else 1
        for _ in range(burst):
            name = f"r{len(found)}"
            prompt = rig.prompt(len(found), draw.randrange(8, 300))
            if draw.random() < 0.3:
                prompt = draw.choice(shared) + prompt
            abort = draw.randrange(1, 200) if draw.random() < 0.15 else None
            budget = draw.choice([None, None, None, 128, 200, 0])
            found.append(
                Request(name, prompt, draw.randrange(20, 500), arrive=at, budget=budget, abort_after=abort)
            )
        at += draw.randrange(3, 15)
    return found


def test_nothing_is_lost_or_leaked() -> None:
    blocks = 420
    item = Scenario(
        model=MODEL,
        runner="v2",
        plugin=plugin(MODEL, "triattention"),
        requests=requests(STEPS),
        block_size=16,
        chunk=512,
        max_model_len=1024,
        max_num_seqs=256,
        prefix_caching=True,
        async_scheduling=True,
        log_probs=False,
        max_steps=10 * STEPS,
        engine_args={
            "dtype": "float16",
            "enforce_eager": False,
            "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
            "gpu_memory_utilization": 0.05,
            "kv_cache_memory_bytes": blocks * SPECS[MODEL].block_bytes(16) // 2,
        },
    )
    done, failed = run_all({"soak": item}, timeout=580)
    assert not failed, failed["soak"]
    run = done["soak"]
    print(
        f"{run.steps} steps in {run.seconds:.0f} s, {len(run.outcomes)} requests, {run.rounds} rounds, "
        f"{run.preemptions} preemptions, up to {run.peak_running} running"
    )
    assert run.steps >= STEPS
    assert run.rounds > STEPS // 20
    assert run.preemptions > 0
    assert run.free_blocks == run.total_blocks
    for outcome in run.outcomes.values():
        assert outcome.finish in ("length", "abort"), (outcome.request.id, outcome.finish, outcome.error)
        if outcome.finish == "length":
            assert len(outcome.tokens) == outcome.request.max_tokens
