"""What the GPU tests of SGLang run. The scenarios of ``sglang_engine.cases`` are the CPU tests' own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.policies import plugin
from engine.scenario import Request
from gpu import specs  # noqa: F401
from sglang_engine import cases
from sglang_engine.life import POLICIES, Life
from sglang_engine.rig import prompt
from sglang_engine.scenario import Scenario

TOKENS = 150
MODELS = ("gqa1-64", "gqa4-128", "gqa8-64")
BACKENDS = ("fa3", "flashinfer")

# preset: (model, page size, changes to the preset made small)
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "triattention": ("gqa4-128", 16, {}),
    "random": ("gqa1-64", 1, {}),
    "streaming": ("gqa4-128", 1, {}),
    "keydiff": ("gqa8-64", 16, {}),
    "blend": ("gqa1-64", 16, {}),
    "expected-attention": ("gqa4-128", 1, {}),
    "knorm": ("gqa8-64", 1, {}),
    "leverage": ("gqa1-64", 1, {}),
    "superseded": ("gqa4-128", 16, {}),
    "vase": ("gqa8-64", 16, {}),
    "triattention-redundancy": ("gqa1-64", 16, {}),
    "segments": ("gqa4-128", 1, {"selection": "union"}),
    "auto": ("gqa8-64", 1, {"pin": {"prompt": False}}),
}


def scenario(model: str, preset: str | None, page: int = 1, **changes: Any) -> Scenario:
    """Six requests that generate past ten rounds each, with a shared prefix and prompts beyond the budget and the
    chunk; drawn at temperature 1, or ``greedy``."""
    shared = prompt(7, 64)
    greedy = changes.pop("greedy", None)
    requests = [
        Request(f"r{i}", (shared if i % 2 else []) + prompt(i, n), TOKENS, arrive=5 * i, greedy=greedy)
        for i, n in enumerate((20, 40, 75, 100, 130, 190))
    ]
    policy = changes.pop("policy", {})
    return Scenario(
        f"bf16-{model}",
        None if preset is None else plugin(f"bf16-{model}", preset, **policy),
        requests=requests,
        chunk=128,
        page=page,
        max_model_len=1024,
        max_running=16,
        device="cuda",
        pages=False,
        **changes,
    )


def case(item: Scenario, **changes: Any) -> Scenario:
    """A scenario of the CPU tests on the GPU; its policy needs no statistics."""
    assert item.plugin is None or "statistics" not in item.plugin
    return replace(item, model="bf16-gqa4-128", device="cuda", pages=False, **changes)


def life(page: int, seed: int, steps: int) -> Scenario:
    """Hundreds of requests come and go, the policy changes, and SGLang retracts."""
    return Scenario(
        "bf16-gqa4-128",
        control=POLICIES[0],
        on_step=Life(seed, steps, most=40, pages=50),
        tokens=960,
        max_model_len=512,
        chunk=96,
        max_running=24,
        page=page,
        device="cuda",
        pages=False,
        max_steps=4 * steps,
    )


def all_of(steps: int) -> dict[str, Scenario]:
    """By name, the longest first. Those that end in a backend's name need it; "fp8" is of the KV cache."""
    found = {"soak": life(1, 1, steps), "soak pages": life(16, 2, steps)}
    found |= {f"plain {model}": scenario(model, None) for model in MODELS}
    found |= {
        f"{preset} {model}{' pages' if page > 1 else ''}": scenario(model, preset, page, policy=changes)
        for preset, (model, page, changes) in FAMILIES.items()
    }
    for backend in (*BACKENDS, "fp8"):
        server = {"kv_cache_dtype": "fp8_e4m3"} if backend == "fp8" else {"attention_backend": backend}
        found[f"plain gqa4-128 {backend}"] = scenario("gqa4-128", None, server=server)
        found[f"keydiff gqa4-128 {backend}"] = scenario("gqa4-128", "keydiff", server=server)
    found |= {
        "unmodified gqa4-128": scenario("gqa4-128", None, greedy=True),
        "idle gqa4-128": scenario("gqa4-128", "random", policy={"budget": 0}, greedy=True),
        "never-due gqa4-128": scenario("gqa4-128", "random", policy={"budget": 1000}, greedy=True),
        # Every decode step, and every prefill chunk of up to 128 tokens, is a replay.
        "keydiff gqa4-128 prefill-graphs": scenario(
            "gqa4-128",
            "keydiff",
            server={"disable_prefill_cuda_graph": False, "cuda_graph_max_bs_prefill": 128},
        ),
    }
    for page in (1, 16):
        end = " pages" if page > 1 else ""
        found |= {
            f"shared prompts{end}": case(cases.shared_prompts(page)),
            f"aborts{end}": case(cases.aborts(page)),
            f"retracted{end}": case(cases.retracted(page)),
            f"beyond the pool{end}": case(cases.beyond_the_pool(page)),
            f"resumed beyond the pool{end}": case(cases.resumed_beyond_the_pool(page)),
        }
    return found
