"""Time of one round of compaction on a GPU, beside its memory floor and a random round.

    python -m triattn.bench.rounds ['{"budgets": [2048], "requests": [1, 16, 64], "units": 16}']

Qwen3-8B shape, bfloat16, random keys and values, blocks scattered over the cache. The floor is the time in which
a plain copy moves as many bytes as a round must: K of every scored token read once, and K, V of the moved entries
read and written. Times are of the GPU alone: launches are queued behind a kernel that keeps it busy meanwhile.
The last line printed is the result as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import torch

from triattn.config import preset
from triattn.ops.interface import RoundBatch, StridedCache
from triattn.ops.queries import QueryRing
from triattn.ops.triton_rounds import TritonRounds
from triattn.plan import RoundPlan, cdiv
from triattn.policies import ModelShape, Policy
from triattn.statistics import BESIDE_KEYS, LEARNABLE, UNITS

LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, BLOCK = 36, 32, 8, 128, 16
ITEM = 2
REPEATS = 30


@dataclass
class Statistics:
    """Random numbers in the place of a model's statistics: the cost does not depend on them."""

    q_mean_real: torch.Tensor
    q_mean_imag: torch.Tensor
    q_abs_mean: torch.Tensor
    q_covariance: torch.Tensor
    learned_probe: torch.Tensor
    learned_weights: torch.Tensor
    learned_share: torch.Tensor
    learned_terms: tuple[str, ...] = LEARNABLE

    @classmethod
    def draw(cls, units: int) -> Statistics:
        """`units`: hidden units of the probe."""
        shape = (LAYERS, QUERY_HEADS, HEAD_DIM // 2)
        real, imag = torch.randn(shape), torch.randn(shape)
        size = torch.hypot(real, imag) * 1.5
        rows = (LAYERS, KV_HEADS)
        return cls(
            q_mean_real=real,
            q_mean_imag=imag,
            q_abs_mean=size,
            q_covariance=torch.stack([size, size, size / 2]) * size,
            learned_probe=torch.randn(*rows, HEAD_DIM + BESIDE_KEYS, units) * HEAD_DIM**-0.5,
            learned_weights=torch.ones(len(LEARNABLE), *rows),
            learned_share=torch.zeros(rows),
        )


def gpu_microseconds(work: Any) -> list[float]:
    """GPU time of `work`, several times, in microseconds."""
    times = []
    for _ in range(REPEATS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # About two milliseconds, in which the host queues everything that follows.
        torch.cuda._sleep(4_000_000)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return times[3:]


def copy_bandwidth() -> float:
    """Bytes a second of a large device-to-device copy, bytes read plus bytes written."""
    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    micro = statistics.median(gpu_microseconds(lambda: target.copy_(source)))
    return 2 * source.numel() / micro * 1e6


class Rig:
    """Caches of all layers and the requests that lie in them."""

    def __init__(self, requests: int, resident: int) -> None:
        device = torch.device("cuda")
        rows = cdiv(resident, BLOCK)
        blocks = requests * rows + 1
        shape = (blocks, KV_HEADS, BLOCK, 2 * HEAD_DIM)
        # As vLLM lays FlashAttention's cache out: tokens outside heads.
        storage = [
            torch.randn((blocks, BLOCK, KV_HEADS, 2 * HEAD_DIM), dtype=torch.bfloat16, device=device)
            for _ in range(LAYERS)
        ]
        views = [s.transpose(1, 2) for s in storage]
        assert tuple(views[0].shape) == shape
        self.caches = [StridedCache(v[..., :HEAD_DIM], v[..., HEAD_DIM:]) for v in views]
        self.positions = torch.zeros((LAYERS, KV_HEADS, blocks, BLOCK), dtype=torch.int32, device=device)
        order = torch.randperm(blocks - 1, device=device)[: requests * rows] + 1
        self.tables = order.reshape(requests, rows).int()
        inv_freq = 1e6 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        self.shape = ModelShape(
            tuple(range(LAYERS)),
            tuple(range(KV_HEADS)),
            tuple(range(QUERY_HEADS)),
            HEAD_DIM,
            HEAD_DIM,
            inv_freq,
        )

    def queries(self, length: int, requests: int) -> tuple[QueryRing | None, list[tuple[int, int]] | None]:
        """The last `length` queries of every request, random, and where they are; nothing for 0."""
        if not length:
            return None, None
        device = self.positions.device
        scales = [HEAD_DIM**-0.5] * LAYERS
        ring = QueryRing(self.shape, requests, length, 1, torch.bfloat16, scales, device, kernels=True)
        ring.buffer.normal_()
        return ring, [(row, length) for row in range(requests)]


def measure(
    requests: int, budget: int, interval: int, names: list[str], units: int, bandwidth: float
) -> list[dict[str, Any]]:
    """Every policy on the same caches, the arms one after another."""
    resident = budget + interval
    rig = Rig(requests, resident)
    plans = [
        RoundPlan(
            request_id=str(i),
            computed=resident + 5000,
            resident=resident,
            previous=budget,
            evicted=5000,
            keep=budget,
            prompt_len=100,
            pin_prompt=False,
            known=budget,
        )
        for i in range(requests)
    ]
    per_head = requests * LAYERS * KV_HEADS * HEAD_DIM * ITEM
    moved = per_head * interval * 2 * 2
    keys = per_head * resident
    results = []
    statistic = Statistics.draw(units)
    for name in names:
        policy = Policy.of(preset(name))
        ring, recent = rig.queries(policy.observes, requests)
        rounds = TritonRounds(rig.caches, rig.positions, rig.shape, policy, statistic, ring=ring)
        rounds.warm_up()
        batch = RoundBatch.of(plans, rig.tables, range(requests), recent)
        times = gpu_microseconds(lambda rounds=rounds, batch=batch: rounds.run(batch))
        median = statistics.median(times)
        needed = moved + (keys if policy.reads_keys else 0)
        floor = needed / bandwidth * 1e6
        results.append(
            {
                "policy": name,
                "requests": requests,
                "budget": budget,
                "interval": interval,
                "microseconds": round(median, 1),
                "spread": round((max(times) - min(times)) / median, 3),
                "bytes": needed,
                "floorMicroseconds": round(floor, 1),
                "timesFloor": round(median / floor, 2),
            }
        )
        del rounds, ring
    random = next((r["microseconds"] for r in results if r["policy"] == "random"), None)
    for result in results:
        result["timesRandom"] = None if random is None else round(result["microseconds"] / random, 2)
        print(json.dumps(result), file=sys.stderr, flush=True)
    return results


def main() -> None:
    """Measure what the JSON of the first argument asks for."""
    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    names = options.get("policies", ["random", "triattention", "keydiff", "blend", "streaming"])
    interval, units = options.get("interval", 128), options.get("units", UNITS[0])
    bandwidth = copy_bandwidth()
    results = [
        result
        for budget in options.get("budgets", [2048])
        for requests in options.get("requests", [1, 16, 64])
        for result in measure(requests, budget, interval, names, units, bandwidth)
    ]
    device = torch.cuda.get_device_name()
    print(json.dumps([{"device": device, "copyBytesPerSecond": bandwidth, **result} for result in results]))


if __name__ == "__main__":
    main()
