"""Real vLLM on a GPU, V2 runner, async scheduling, full CUDA graphs: log-probs against the masked dense oracle.

The oracle is float32, the engine is not, so the tolerance is measured: what the unmodified engine differs by.
Every scenario runs in a process of its own, all of them at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine import rig
from engine.models import SPECS
from engine.policies import plugin
from engine.scenario import Request, Run, Scenario
from engine.selection import agreement
from gpu import specs  # noqa: F401
from gpu.engines import run_all

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

EAGER_PREFILL = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
TOKENS = 200


def scenario(model: str, preset: str | None, **changes: Any) -> Scenario:
    """Six requests that generate past ten rounds each, with a shared prefix and prompts beyond the budget."""
    shared = rig.prompt(7, 64)
    lengths = (20, 40, 75, 100, 130, 190)
    requests = [
        Request(f"r{i}", (shared if i % 2 else []) + rig.prompt(i, n), TOKENS, arrive=5 * i)
        for i, n in enumerate(lengths)
    ]
    engine = {
        "dtype": "float16",
        "enforce_eager": False,
        "compilation_config": EAGER_PREFILL,
        "gpu_memory_utilization": 0.05,
        **changes.pop("engine_args", {}),
    }
    blocks = changes.pop("memory_blocks", 400)
    return Scenario(
        model=model,
        runner=changes.pop("runner", "v2"),
        plugin=None if preset is None else plugin(model, preset, **changes.pop("policy", {})),
        requests=changes.pop("requests", requests),
        block_size=16,
        chunk=128,
        max_model_len=1024,
        prefix_caching=True,
        async_scheduling=True,
        engine_args={"kv_cache_memory_bytes": blocks * SPECS[model].block_bytes(16) // 2, **engine},
        **changes,
    )


FP8 = {"kv_cache_dtype": "fp8_e4m3", "dtype": "bfloat16"}
TRITON = {"attention_backend": "TRITON_ATTN"}
SCENARIOS: dict[str, Scenario] = {
    f"plain {model}": scenario(model, None) for model in ("gqa1-64", "gqa4-128", "gqa8-64")
}
SCENARIOS |= {
    f"{policy} {model}": scenario(model, policy)
    for model, policy in (
        ("gqa1-64", "random"),
        ("gqa4-128", "triattention"),
        ("gqa8-64", "keydiff"),
        ("gqa4-128", "streaming"),
        ("gqa1-64", "blend"),
        ("gqa8-64", "superseded"),
        ("gqa4-128", "auto"),
    )
}
SCENARIOS |= {
    "keydiff gqa4-128 triton": scenario("gqa4-128", "keydiff", engine_args=TRITON),
    "idle gqa4-128": scenario("gqa4-128", "random", policy={"budget": 0}),
    # All are admitted with two blocks each, and grow to seven.
    "preempted gqa4-128": scenario(
        "gqa4-128",
        "random",
        memory_blocks=20,
        requests=[Request(f"r{i}", rig.prompt(i, 20), TOKENS) for i in range(6)],
    ),
    # Queries are kept by a kernel that full graphs have captured, mixed batches of prefill and decoding among them.
    "snapkv gqa4-128": scenario("gqa4-128", "snapkv"),
    "rkv gqa8-64": scenario("gqa8-64", "rkv"),
    "h2o gqa4-128": scenario("gqa4-128", "h2o"),
    "blend gqa4-128 v1": scenario("gqa4-128", "blend", runner="v1"),
    "plain gqa4-128 fp8": scenario("gqa4-128", None, engine_args=FP8),
    "triattention gqa4-128 fp8": scenario("gqa4-128", "triattention", engine_args=FP8),
}


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Every scenario's run."""
    done, failed = run_all(SCENARIOS, timeout=150)
    for name, text in failed.items():
        print(f"=== {name}\n{text}")
    return done


def get(runs: dict[str, Run], name: str) -> Run:
    if name not in runs:
        pytest.fail(f"{name}: the engine failed, see above")
    return runs[name]


def baseline(runs: dict[str, Run], item: Scenario) -> float:
    """What the unmodified engine of the same model and cache differs from the oracle by."""
    suffix = " fp8" if "kv_cache_dtype" in item.engine_args else ""
    return rig.compare(get(runs, f"plain {item.model}{suffix}")).worst


COMPRESSED = [name for name, s in SCENARIOS.items() if s.plugin and s.plugin["policy"]["budget"]]


@pytest.mark.parametrize("name", COMPRESSED)
def test_log_probs_are_the_masked_models(runs: dict[str, Run], name: str) -> None:
    run = get(runs, name)
    limit = 2 * baseline(runs, run.scenario)
    report = rig.check(run, each=5, tolerance=limit)
    print(f"{name}: {report.worst:.4f} of {limit:.4f}, {report.rounds} rounds, {run.preemptions} preemptions")
    if name.startswith("preempted"):
        assert run.preemptions > 0


@pytest.mark.parametrize("name", [n for n in COMPRESSED if "preempted" not in n])
def test_the_check_bites(runs: dict[str, Run], name: str) -> None:
    """Told to ignore one round's evictions, the oracle differs by far more than the tolerance."""
    run = get(runs, name)
    limit = 2 * baseline(runs, run.scenario)
    outcome = run["r5"]
    ignored = {k: [] for k in outcome.rounds}
    worst = float(np.abs(outcome.log_probs - rig.oracle_log_probs(run, outcome, ignored)).max())
    assert worst > 5 * limit


@pytest.mark.parametrize("name", ["snapkv gqa4-128", "rkv gqa8-64", "h2o gqa4-128"])
def test_what_is_observed_is_what_the_dense_models_queries_say(runs: dict[str, Run], name: str) -> None:
    """But for near scores: the engine is not float32. With queries from elsewhere other tokens would have stayed."""
    run = get(runs, name)
    now, before = agreement(run), agreement(run, late=8)
    print(f"{name}: {now:.3f} of the oracle's entries, {before:.3f} with queries of eight positions before")
    assert now > 0.97
    assert 1 - now < (1 - before) / 3


def test_idle_is_the_unmodified_engine(runs: dict[str, Run]) -> None:
    plain, idle = get(runs, "plain gqa4-128"), get(runs, "idle gqa4-128")
    assert idle.rounds == 0
    for name, outcome in plain.outcomes.items():
        assert idle[name].tokens == outcome.tokens
        assert np.array_equal(idle[name].log_probs, outcome.log_probs)
