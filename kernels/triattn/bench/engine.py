"""One engine process of `triattn bench engine`: measures decode steps of a real vLLM, prints one JSON line.
(SGLang's is ``triattn.bench.sglang_engine``, with the same arms.)

    python -m triattn.bench.engine '{"arms": ["bound", "full"], …}'     the engine as it is
    python -m triattn.bench.engine '{"arms": ["idle", "random", …], …}' the same engine with triattn in it

Weights are random (``load_format=dummy``): decode time does not depend on them. Prompts are random tokens,
no two alike, of staggered lengths, so that rounds spread over the steps as they do in service.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 12288,
    },
    "qwen3-14b": {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 17408,
    },
    "tiny": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 512},
}


def write_model(shape: str, directory: Path) -> str:
    """A Hugging Face directory with nothing but the configuration of a Qwen3 model."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 128,
        "num_key_value_heads": 2 if shape == "tiny" else 8,
        "vocab_size": 1024 if shape == "tiny" else 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **SHAPES[shape],
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def random_statistics(model: str) -> str:
    """Statistics of the model's geometry with random numbers: what a round costs does not depend on them."""
    import torch

    from triattn.model import geometry, identity, inv_freq
    from triattn.statistics import BESIDE_KEYS, LEARNABLE, UNITS, Learned, save

    config = json.loads((Path(model) / "config.json").read_text())
    frequencies, _ = inv_freq(config)
    shape = (config["num_hidden_layers"], config["num_attention_heads"], len(frequencies))
    rows = (config["num_hidden_layers"], config["num_key_value_heads"])
    real, imag = torch.randn(shape), torch.randn(shape)
    spread = torch.hypot(real, imag) * 1.5
    tensors = {
        "q_mean_real": real,
        "q_mean_imag": imag,
        "q_abs_mean": spread,
        "q_covariance": torch.stack([spread, spread, spread / 2]) * spread,
        "inv_freq": frequencies,
        "learned_weights": torch.ones(len(LEARNABLE), *rows),
        "learned_share": torch.zeros(rows),
        "learned_probe": torch.randn(*rows, config["head_dim"] + BESIDE_KEYS, UNITS[0]) / 16,
    }
    path = Path(model).with_suffix(".statistics.safetensors")
    save(
        path,
        tensors,
        geometry(config, model),
        identity(config),
        tokens=None,
        source="random numbers",
        license="",
        created_by="triattn.bench",
        learned=Learned(terms=list(LEARNABLE), tokens=1, seed=0, kept={}),
    )
    return str(path)


class Bench:
    """One engine, stepped by hand: no front end, no detokenizer, the scheduler and the GPU alone."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self.shape: str = options["model"]
        model = write_model(self.shape, Path(options["scratch"]) / self.shape)
        arguments = {
            "model": model,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_model_len": 36864,
            "max_num_seqs": 384,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "seed": 0,
            **options.get("engine", {}),
        }
        if any(arm not in ("bound", "full") for arm in options["arms"]):
            options["statistics"] = options.get("statistics") or random_statistics(model)
            arguments["additional_config"] = {
                "triattn": {"policy": "triattention", "budget": 0, "statistics": options["statistics"]}
            }
        start = time.monotonic()
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self.start_seconds = time.monotonic() - start
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.vocab = self.engine.model_config.get_vocab_size()
        self.random = random.Random(0)
        self.added = 0
        cache = self.scheduler.kv_cache_config
        self.block_size: int = cache.kv_cache_groups[0].kv_cache_spec.block_size
        self.most_requests: int = arguments["max_num_seqs"]
        self.cache_tokens = (cache.num_blocks - 1) * self.block_size

    def add(self, length: int, tokens: int = 30000) -> None:
        """Queue one request of `length` random prompt tokens that generates `tokens`."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        prompt = [self.random.randrange(10, self.vocab) for _ in range(length)]
        self.engine.add_request(f"bench-{self.added}", {"prompt_token_ids": prompt}, params)
        self.added += 1

    def step(self) -> int:
        """One engine step; tokens that came out."""
        outputs = self.engine.engine_core.get_output()
        return sum(len(output.new_token_ids) for output in outputs.outputs)

    def drain(self) -> None:
        """Abort everything and step until the engine is empty."""
        names = list(self.scheduler.requests)
        self.engine.engine_core.abort_requests(names)
        for _ in range(8):
            self.step()
        assert not self.scheduler.requests, "requests left after an abort"
        self.scheduler.reset_prefix_cache()

    def prefill(self, lengths: list[int]) -> None:
        """Admit requests of these lengths and step until each decodes."""
        for length in lengths:
            self.add(length)
        waiting = True
        while waiting:
            self.step()
            waiting = bool(self.scheduler.waiting) or any(
                r.num_output_tokens < 1 for r in self.scheduler.running
            )
        if len(self.scheduler.running) != len(lengths):
            raise SystemExit(
                f"{len(self.scheduler.running)} of {len(lengths)} requests run: the cache is too small"
            )

    def window(self, steps: int, skip: int = 16) -> dict[str, float]:
        """Time `steps` decode steps after `skip`: tokens a second, and the median and spread of a step."""
        for _ in range(skip):
            self.step()
        times, tokens = [], 0
        last = start = time.perf_counter()
        for _ in range(steps):
            tokens += self.step()
            now = time.perf_counter()
            times.append(now - last)
            last = now
        parts = [statistics.fmean(times[i : i + 32]) for i in range(0, steps - 31, 32)]
        return {
            "tokensPerSecond": tokens / (last - start),
            "stepMs": 1e3 * statistics.fmean(times),
            "medianStepMs": 1e3 * statistics.median(times),
            "spread": (max(parts) - min(parts)) / statistics.fmean(parts),
            "seconds": last - start,
        }

    def first_token(self, length: int, repeats: int = 9) -> float:
        """Median milliseconds from admission to the first token of a lone request."""
        times = []
        for _ in range(repeats):
            self.add(length, tokens=1)
            start = time.perf_counter()
            while not self.step():
                pass
            times.append(1e3 * (time.perf_counter() - start))
            for _ in range(3):
                self.step()
        return statistics.median(times[2:])

    @property
    def hooks(self) -> Any:
        """The plugin's, where it is loaded."""
        return getattr(self.scheduler, "triattn", None)

    def lengths(self) -> list[int]:
        """Logical lengths of the running requests."""
        return [r.num_computed_tokens for r in self.scheduler.running]

    def resident(self) -> list[int]:
        """Resident tokens of the running requests."""
        evicted = self.hooks.blocks.evicted
        return [r.num_computed_tokens - evicted(r.request_id) for r in self.scheduler.running]

    def use(self, policy: Any, *, warm_up: bool) -> None:
        """Put a policy in force, its kernels compiled."""
        if warm_up:
            rank = self.core.model_executor.driver_worker.worker.model_runner.triattn.rounds
            rank.use(policy, warm_up=True)
        self.hooks._use(policy)

    def counters(self) -> Any:
        """The plugin's."""
        return self.hooks.counters()

    def about(self) -> dict[str, str]:
        """The engine."""
        import vllm

        v2 = getattr(self.engine.vllm_config, "use_v2_model_runner", False)
        return {"name": "vllm", "version": vllm.__version__, "runner": "v2" if v2 else "v1"}

    def counts(self) -> dict[str, int]:
        """Counters of the plugin."""
        if self.hooks is None:
            return {"rounds": 0, "tokensEvicted": 0, "preemptions": 0}
        c = self.counters()
        return {"rounds": c.rounds, "tokensEvicted": c.tokens_evicted, "preemptions": c.preemptions}

    def fired(self, before: dict[str, int]) -> dict[str, int]:
        """What happened since ``before`` was taken with ``counts``."""
        return {key: value - before[key] for key, value in self.counts().items()}


def staggered(count: int, low: int, high: int) -> list[int]:
    """`count` lengths evenly over [low, high), in a fixed shuffled order."""
    lengths = [low + (high - low) * i // count for i in range(count)]
    random.Random(1).shuffle(lengths)
    return lengths


def bound(bench: Bench, name: str, budget: int) -> dict[str, Any]:
    """As many sequences that really are as long as a compressed one is on average, nothing compressed."""
    options = bench.options
    interval = steps = options["interval"]
    # Over the window of `steps` steps the mean length passes through budget + interval / 2. Prefill takes
    # steps in which the first ones already decode, so begin shorter and wait.
    start = budget + interval // 2 - 16 - steps // 2
    lengths = staggered(options["requests"], start - 2 * interval, start - interval)
    bench.prefill(lengths)

    def mean_length() -> float:
        return statistics.fmean(bench.lengths())

    while mean_length() < start:
        bench.step()
    mean = mean_length() + 16 + steps / 2
    before = bench.counts()
    result = bench.window(steps)
    fired = bench.fired(before)
    bench.drain()
    return {"name": name, "budget": budget, "meanResident": mean, **result, **fired}


def full(bench: Bench, length: int) -> dict[str, Any]:
    """Generations of `length` tokens at every age, as many as the cache holds."""
    count = int(bench.cache_tokens * 0.97 / (length / 2 + 200))
    count = min(count, bench.most_requests)
    bench.prefill(staggered(count, 256, length - 256))
    before = bench.counts()
    result = bench.window(bench.options["interval"])
    fired = bench.fired(before)
    bench.drain()
    return {"name": "full", "generation": length, "requests": count, **result, **fired}


def compressed(bench: Bench, budget: int, arms: list[str]) -> list[dict[str, Any]]:
    """Every arm on the same running requests, turn by turn; each request is past `rounds` rounds before."""
    from msgspec.structs import replace

    from triattn.config import preset
    from triattn.engines.policy import PolicyInForce

    options, hooks = bench.options, bench.hooks
    interval = options["interval"]

    def use(name: str) -> None:
        document = preset(name)
        document = replace(
            document, budget=budget, interval=interval, pin=replace(document.pin, prompt=False)
        )
        policy = PolicyInForce(hooks.policy.revision + 1, document, options.get("statistics"))
        bench.use(policy, warm_up=True)

    use(arms[0])
    bench.prefill(staggered(options["requests"], budget - interval, budget))
    for _ in range(options["rounds"] * interval):
        bench.step()
    turns: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(options["turns"]):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            use(arm)
            before = bench.counts()
            # Every request has a round of the new policy first: terms that remember begin anew with it.
            result = bench.window(2 * interval, skip=interval + 16)
            fired = bench.fired(before)
            if not fired["rounds"]:
                raise SystemExit(f"arm {arm}: compression did not fire")
            turns[arm].append({**result, **fired})
    resident = statistics.fmean(bench.resident())
    bench.drain()
    merged = []
    for arm, results in turns.items():
        rates = [r["tokensPerSecond"] for r in results]
        merged.append(
            {
                "name": arm,
                "budget": budget,
                "meanResident": resident,
                "tokensPerSecond": statistics.median(rates),
                "stepMs": statistics.median(r["stepMs"] for r in results),
                "medianStepMs": statistics.median(r["medianStepMs"] for r in results),
                "spread": (max(rates) - min(rates)) / statistics.median(rates),
                "turns": rates,
                **{key: sum(r[key] for r in results) for key in ("rounds", "tokensEvicted", "preemptions")},
            }
        )
    return merged


def device_name() -> str:
    """Name of the GPU, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Run the arms of the options given as JSON in the first argument; the last line printed is the result."""
    options = json.loads(sys.argv[1])
    measure(Bench(options), options)


def measure(bench: Bench, options: dict[str, Any]) -> None:
    """Run the arms on an engine; the last line printed is the result."""
    arms: list[dict[str, Any]] = []

    def note(result: dict[str, Any]) -> None:
        arms.append(result)
        print(json.dumps(result), file=sys.stderr, flush=True)

    ttft = bench.first_token(2000)
    scoring = [arm for arm in options["arms"] if arm not in ("bound", "full", "idle")]
    for budget in options["budgets"]:
        for name in ("bound", "idle"):
            if name in options["arms"]:
                note(bound(bench, name, budget))
        if scoring:
            for result in compressed(bench, budget, scoring):
                note(result)
            from msgspec.structs import replace

            from triattn.engines.policy import PolicyInForce

            before = bench.hooks.policy
            off = PolicyInForce(before.revision + 1, replace(before.document, budget=0), None)
            bench.use(off, warm_up=False)
    if "full" in options["arms"]:
        for length in options["generations"]:
            note(full(bench, length))
    print(
        json.dumps(
            {
                "model": options["model"],
                "device": device_name(),
                "engine": bench.about(),
                "requests": options["requests"],
                "interval": options["interval"],
                "arms": arms,
                "firstTokenMs": ttft,
                "startSeconds": bench.start_seconds,
                "cacheTokens": bench.cache_tokens,
                "blockSize": bench.block_size,
            }
        )
    )


if __name__ == "__main__":
    main()
