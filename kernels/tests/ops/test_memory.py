"""What terms remember: there while a policy in force needs it, and a clear error where there is no room."""

from __future__ import annotations

import pytest
import torch

from tests.ops.caches import case
from tests.policies.builders import shape
from triattn.config import preset
from triattn.engines import rounds as module
from triattn.engines.policy import PolicyInForce
from triattn.engines.rounds import PolicyRounds
from triattn.errors import ConfigError


def test_memory_comes_and_goes_with_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shape(layers=2, kv_heads=2, group=1, head_dim=16)
    made = case(model, [{"resident": 40, "keep": 30}], block_size=8, gen=torch.Generator().manual_seed(0))
    rank = PolicyRounds(made.caches, made.positions, model, None, 0)  # type: ignore[arg-type]
    rank.use(PolicyInForce(1, preset("keydiff"), None))
    assert rank._memory.shape == (0, *made.positions.shape)
    rank.use(PolicyInForce(2, preset("superseded"), None))
    assert rank._memory.shape == (1, *made.positions.shape)
    held = rank._memory
    rank.of(0).run(made.batch)
    assert bool((held != 0).any())
    rank.use(PolicyInForce(3, preset("random"), None))
    assert len(rank._memory) == 0

    def full(positions: torch.Tensor, count: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "planes", full)
    with pytest.raises(ConfigError, match=r"superseded.* MiB beside the KV cache"):
        rank.use(PolicyInForce(4, preset("superseded"), None))
