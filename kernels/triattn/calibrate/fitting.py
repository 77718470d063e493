"""Fitting a probe: a small network a layer and KV head, from a key, its age and its repetition to how it is missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from triattn.calibrate.damage import Samples
from triattn.policies.probe import beside_keys
from triattn.statistics import UNITS

STEPS = 2500
EPOCHS = 30
"""Times that a candidate is looked at, at most: little text takes smaller batches."""
BATCH = 4096
"""Candidates of each layer and KV head that a step looks at."""
LEAST = 64
RATE = 4e-3
DECAY = 1e-3
LARGE = 1.0
"""Error of a damage, in units of its root mean square, from which on it counts by its size, no longer by its square."""
FORETOLD = ("target", "damage", "effect_target", "effect")
"""Of Samples, what each sixteen units foretell, in this order."""
SIZES = ("damage", "effect")
"""Of those, what is foretold in units of its root mean square in the layer and head; the others are logarithms."""
LARGEST = 1 << 23
"""Most numbers that a step puts in: models with many heads take smaller batches."""


def inputs_of(keys: Tensor, age: Tensor, like: Tensor) -> Tensor:
    """What a probe looks at, float32 [rows, C, head_dim + 3]: see triattn.policies.probe."""
    return torch.cat([keys.float(), torch.stack(beside_keys(age, like), dim=-1)], dim=-1)


def foretold(units: int) -> tuple[str, ...]:
    """What a probe of so many hidden units foretells, by its names in Samples."""
    return FORETOLD[: units // UNITS[0]]


def fit_probe(
    samples: Sequence[Samples],
    device: torch.device,
    *,
    units: int = UNITS[0],
    seed: int = 0,
    steps: int = STEPS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Probe float32 [layers, kv_heads, head_dim + 6, units] that foretells damage with the least weighted error.

    Sixteen units each foretell one thing (FORETOLD); the score is the sum. The logarithm alone spends a network on
    telling little from less, the size alone on the few largest. The same bits for the same samples, seed and machine.
    """

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(s, name).flatten(0, 1) for s in samples], dim=1).to(device)

    keys, age, like = (joined(name) for name in ("keys", "age", "like"))
    weight = torch.cat([s.weight for s in samples]).to(device)

    def goal(name: str) -> tuple[Tensor, float]:
        value = joined(name)
        if name not in SIZES:
            return value, torch.inf
        mean_square = (weight * value.square()).sum(-1, keepdim=True) / weight.sum()
        return value / mean_square.sqrt().clamp(min=1e-12), LARGE

    goals = [goal(name) for name in foretold(units)]
    parts = [
        _fit(
            *(keys, age, like, weight, wanted, large),
            units=units // len(goals),
            seed=seed + number,
            steps=steps,
            progress=lambda done, before=number * steps: progress(before + done, len(goals) * steps),
        )
        for number, (wanted, large) in enumerate(goals)
    ]
    return torch.cat(parts, dim=-1).unflatten(0, samples[0].keys.shape[:2]).float().cpu().contiguous()


def _fit(
    keys: Tensor,
    age: Tensor,
    like: Tensor,
    weight: Tensor,
    target: Tensor,
    large: float,
    *,
    units: int,
    seed: int,
    steps: int,
    progress: Callable[[int], None],
) -> Tensor:
    """Networks [rows, head_dim + 6, units] that foretell `target` [rows, candidates]: AdamW with a falling rate, under
    Huber's loss where errors from `large` on count by their size."""
    generator, device = torch.Generator().manual_seed(seed), keys.device
    rows, count, dim = keys.shape
    size = max(min(BATCH, LARGEST // (rows * dim), EPOCHS * count // steps), min(LEAST, count))

    def batch(index: Tensor) -> Tensor:
        return inputs_of(keys[:, index], age[:, index], like[:, index])

    some = torch.randperm(count, generator=generator)[: 8 * size].to(device)
    seen = batch(some)
    centre = seen.mean(1, keepdim=True)
    spread = seen.std(1, keepdim=True).clamp(min=1e-3)
    del seen

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * shape[-2] ** -0.5).to(device)

    into, out = drawn(rows, dim + 3, units), drawn(rows, units, 1)
    bias, level = torch.zeros(rows, 1, units, device=device), torch.zeros(rows, 1, 1, device=device)
    parameters = [p.requires_grad_() for p in (into, out, bias, level)]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    order, at = torch.randperm(count, generator=generator), 0
    for step in range(steps):
        if at + size > count:
            order, at = torch.randperm(count, generator=generator), 0
        index = order[at : at + size].to(device)
        at += size
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        with torch.enable_grad():
            x = (batch(index) - centre) / spread
            found = (silu(torch.baddbmm(bias, x, into)) @ out + level)[..., 0]
            # The sum over rows: each is a network of its own.
            error = (found - target[:, index]).abs()
            # Huber's loss, twice: beyond `large` an error counts by its size, so that a few huge ones are not all.
            least = error.clamp(max=large)
            loss = (weight[index] * least * (2 * error - least)).mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49 or step + 1 == steps:
            progress(step + 1)
    with torch.no_grad():
        into = into / spread.transpose(1, 2)
        bias = bias - centre @ into
        longest = age.amax().log().expand(rows, 1, units)
        return torch.cat([into, bias, out.transpose(1, 2), longest], dim=1)
