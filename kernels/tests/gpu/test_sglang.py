"""Real SGLang on a GPU, as it is served: overlap scheduling, CUDA graphs for decode, radix cache, Triton attention
(and others where their kernels are installed). Log-probs against the masked dense oracle, which is float32; the
engine computes in bfloat16 with the same weights, so the tolerance is measured: what the unmodified engine differs by.

Every scenario runs in a process of its own, up to 16 at once; nothing makes the host wait for the device that would not
in service, apart from SGLang's check of every page in the soaks, now and then.

    cd kernels && python -m pytest tests/gpu/test_sglang.py

TRIATTN_SOAK_STEPS: of each soak. TRIATTN_TEST_LOGS: a directory for the engines' logs. TRIATTN_SGLANG_DEVICE=cpu tries
the tests themselves on the engine of the CPU tests, slowly.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.oracle import Round
from engine.rig import Report
from engine.scenario import Run
from gpu import sglang_scenarios
from gpu.sglang_engines import missing, run_all
from gpu.sglang_scenarios import BACKENDS
from sglang_engine import cases, rig

DEVICE = os.environ.get("TRIATTN_SGLANG_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed"),
]

STEPS = int(os.environ.get("TRIATTN_SOAK_STEPS", "2500"))
SCENARIOS = sglang_scenarios.all_of(STEPS)
if DEVICE == "cpu":
    kept = {n: s for n, s in SCENARIOS.items() if not n.endswith((*BACKENDS, "fp8", "graphs"))}
    SCENARIOS = {n: replace(s, device="cpu", server={"dtype": "bfloat16"}) for n, s in kept.items()}
COMPRESSED = [
    name
    for name, item in SCENARIOS.items()
    if len(item.requests) == 6 and item.plugin and "gqa" in name and not name.startswith(("idle", "never"))
]
OTHERS = [f"{name}{end}" for name in ("shared prompts", "aborts", "retracted") for end in ("", " pages")]
BEYOND = [f"{name}{end}" for name in ("beyond the pool", "resumed beyond the pool") for end in ("", " pages")]
SOAKS = ["soak", "soak pages"]


def unmodified(name: str) -> str:
    """The run of the unmodified engine that a scenario is compared with."""
    if name.startswith(("idle", "never-due")):
        return "unmodified gqa4-128"
    server = SCENARIOS[name].server
    backend = "fp8" if "kv_cache_dtype" in server else server.get("attention_backend", "")
    return f"plain {SCENARIOS[name].model.removeprefix('bf16-')} {backend}".rstrip()


class Runs:
    """What came of the scenarios of these names, and of those that they are compared with."""

    def __init__(self, names: set[str]) -> None:
        torch.set_num_threads(4)
        names = names | {unmodified(name) for name in names}
        reasons = {
            backend: missing(backend) for backend in BACKENDS if any(n.endswith(backend) for n in names)
        }
        self.skipped = {n: r for b, r in reasons.items() if r for n in names if n.endswith(b)}
        wanted = {n: s for n, s in SCENARIOS.items() if n in names and n not in self.skipped}
        self.done, self.failed = run_all(wanted, timeout=450 if DEVICE == "cuda" else 3000)
        self.baselines: dict[str, Report] = {}
        for name, text in self.failed.items():
            print(f"=== {name}\n{text}")

    def __getitem__(self, name: str) -> Run:
        if name in self.skipped:
            pytest.skip(self.skipped[name])
        if name not in self.done:
            pytest.fail(f"{name}: the engine failed: {self.failed[name][-4000:]}")
        return self.done[name]

    def baseline(self, name: str) -> Report:
        """What the unmodified engine of the same model and attention differs from the oracle by."""
        plain = unmodified(name)
        if plain not in self.baselines:
            self.baselines[plain] = rig.compare(self[plain])
        return self.baselines[plain]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Runs:
    """Of what the chosen tests need, and no more."""
    items = [item for item in request.session.items if item.path == request.path]
    return Runs({item.callspec.params["name"] for item in items})


WORST, MEAN = 2.0, 1.6
"""Largest and mean difference of a log-prob from the oracle's, in units of the unmodified engine's."""


def check(runs: Runs, name: str, rounds: int = 0, each: int = 0, worst: float = WORST) -> Run:
    """The oracle agrees, nothing leaked, and compression fired."""
    run = runs[name]
    plain = runs.baseline(name)
    report = rig.check(run, rounds, each, worst * plain.worst)
    print(
        f"{name}: worst {report.worst:.3f} ({plain.worst:.3f} unmodified), mean {report.mean:.4f} "
        f"({plain.mean:.4f}), {report.rounds} rounds, {run.preemptions} retractions, "
        f"{run.graph_steps} of {run.steps} steps replayed a graph, {run.seconds:.0f} s"
    )
    assert report.mean <= MEAN * plain.mean
    return run


@pytest.mark.parametrize("name", COMPRESSED)
def test_log_probs_are_the_masked_models(runs: Runs, name: str) -> None:
    check(runs, name, rounds=60, each=5)


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_check_bites(runs: Runs, name: str) -> None:
    """An oracle that ignores a request's evictions, or the later half of its rounds, differs by far more."""
    run = runs[name]
    outcome, plain = run["r5"], runs.baseline(name)

    def difference(rounds: list[Round]) -> np.ndarray:
        return np.abs(outcome.log_probs - rig.oracle_log_probs(run, outcome, {0: rounds}))

    rounds = outcome.rounds[0]
    nothing = difference([])
    late = difference(rounds[: len(rounds) // 2])
    print(f"{name}: {nothing.max():.2f}, half of the rounds {late.max():.2f}, unmodified {plain.worst:.3f}")
    assert nothing.max() > WORST * plain.worst
    assert nothing.mean() > MEAN * plain.mean
    if not name.endswith("fp8"):
        assert nothing.max() > 5 * WORST * plain.worst
        assert late.max() > WORST * plain.worst


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", COMPRESSED)
def test_decode_steps_replay_cuda_graphs(runs: Runs, name: str) -> None:
    run = runs[name]
    # All but the prefill chunks.
    assert run.graph_steps > 0.8 * run.steps


@pytest.mark.parametrize("name", ["idle gqa4-128", "never-due gqa4-128"])
def test_nothing_evicted_is_the_unmodified_engine(runs: Runs, name: str) -> None:
    plain, idle = runs[unmodified(name)], runs[name]
    assert idle.rounds == 0
    assert idle.steps == plain.steps
    for request, outcome in plain.outcomes.items():
        assert idle[request].tokens == outcome.tokens
        assert np.array_equal(idle[request].log_probs, outcome.log_probs)


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_scheduler_does(runs: Runs, name: str) -> None:
    """Shared prompts in the radix tree, aborts at every age, retraction and resumption."""
    run = check(runs, name, rounds=8)
    if name.startswith("shared"):
        cases.check_shared_prompts(run)
    elif name.startswith("retracted"):
        cases.check_retracted(run)


@pytest.mark.parametrize("name", BEYOND)
def test_rounds_between_chunks(runs: Runs, name: str) -> None:
    """Prompts, and what a retracted request had, beyond what the pool holds."""
    run = check(runs, name, rounds=20)
    if name.startswith("resumed"):
        cases.check_resumed_beyond_the_pool(run)
    else:
        cases.check_beyond_the_pool(run)


@pytest.mark.parametrize("name", SOAKS)
def test_soak(runs: Runs, name: str) -> None:
    """Hundreds of requests, retractions, aborts, policies; SGLang checks its pool after every step."""
    # The worst of so many more tokens.
    run = check(runs, name, rounds=STEPS // 10, worst=2 * WORST)
    print(f"{name}: {len(run.outcomes)} requests, up to {run.peak_running} running")
    assert run.steps >= STEPS
    assert len(run.outcomes) >= STEPS // 15
    assert run.preemptions >= 1
    assert len(run.acks) >= 2
    assert run.free_blocks == run.total_blocks
