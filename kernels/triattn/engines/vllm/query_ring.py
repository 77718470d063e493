"""The last queries of each request, for policies that observe attention: memory, the hook in attention, rows.

vLLM source: ``vllm/model_executor/layers/attention/attention.py``. A layer calls ``impl.forward`` inside vLLM's
opaque attention operator, so torch.compile sees nothing of the hook, and full CUDA graphs capture its one launch.
Nothing here is called, and no layer is touched, where no policy observes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from triattn.config import ConfigError
from triattn.engines.rounds import uses_kernels
from triattn.ops.queries import QueryRing
from triattn.policies import ModelShape

logger = logging.getLogger("vllm.triattn")


def ring_bytes(config: Any, length: int) -> int:
    """Bytes of one rank's ring of ``length`` queries for every request that may run."""
    model, parallel = config.model_config, config.parallel_config
    layers, heads = model.get_num_layers(parallel), model.get_num_attention_heads(parallel)
    query = heads * model.get_head_size() * model.dtype.itemsize
    return layers * config.scheduler_config.max_num_seqs * length * query


def attach(runner: Any, names: Sequence[str], shape: ModelShape, length: int) -> QueryRing:
    """Make a ring and have every attention layer of ``names`` write into it.

    Raises:
        ConfigError: attention is more than a softmax of scaled products of queries as the layer gets them.
    """
    config, device = runner.vllm_config, runner.device
    layers = [runner.compilation_config.static_forward_context[name] for name in names]
    for name, layer in zip(names, layers, strict=True):
        check_layer(name, layer)
    ring = QueryRing(
        shape,
        runner.max_num_reqs,
        length,
        # Graphs are captured for no more tokens than this.
        runner.max_num_tokens,
        config.model_config.dtype,
        [float(layer.impl.scale) for layer in layers],
        device,
        kernels=uses_kernels(device.type),
    )
    for index, layer in enumerate(layers):
        hook(ring, index, layer.impl)
    logger.info(
        "triattn: keeping the last %d queries of up to %d requests for policies that observe attention: %.2f GiB "
        "on this rank, taken out of the KV cache's memory",
        length,
        runner.max_num_reqs,
        ring.bytes / 2**30,
    )
    return ring


def check_layer(name: str, layer: Any) -> None:
    """Refuse a layer whose attention the ring's queries would not tell.

    Raises:
        ConfigError: with the way out.
    """
    remedy = "a policy that looks at queries (observed, accumulated) cannot follow this; use one without"
    impl = layer.impl
    if getattr(layer, "query_quant", None) is not None:
        raise ConfigError(
            "kv_cache_dtype",
            getattr(layer, "kv_cache_dtype", "fp8"),
            f"{name} gets quantised queries, and {remedy}, or --kv-cache-dtype auto",
        )
    for field in ("alibi_slopes", "sinks"):
        if getattr(impl, field, None) is not None:
            raise ConfigError(field, f"set in {name}", remedy)
    if getattr(impl, "logits_soft_cap", None):
        raise ConfigError("logits_soft_cap", impl.logits_soft_cap, remedy)
    if not isinstance(getattr(impl, "scale", None), float):
        raise ConfigError(f"{type(impl).__name__}.scale", getattr(impl, "scale", "missing"), remedy)


def hook(ring: QueryRing, index: int, impl: Any) -> None:
    """Have one layer's attention keep its queries before it runs."""
    forward = impl.forward

    def observed(layer: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        ring.write(index, query)
        return forward(layer, query, *args, **kwargs)

    impl.forward = observed


class RingRows:
    """Which row of the ring a request has, and from which position on its queries are in it.

    Used by the V1 runner, whose own rows change when requests finish; the V2 runner's state rows stay.
    """

    def __init__(self, rows: int) -> None:
        self._free = list(range(rows))
        self._taken: dict[str, tuple[int, int]] = {}

    def begin(self, request_id: str, computed: int) -> None:
        """A request gets its blocks; ``computed`` tokens of it are there already (prefix cache)."""
        row = self._taken[request_id][0] if request_id in self._taken else self._free.pop()
        self._taken[request_id] = row, computed

    def end(self, request_id: str) -> None:
        """It gives them back."""
        known = self._taken.pop(request_id, None)
        if known is not None:
            self._free.append(known[0])

    def row(self, request_id: str) -> int:
        """Its row."""
        return self._taken[request_id][0]

    def recent(self, request_id: str, computed: int, length: int) -> tuple[int, int]:
        """Its row, and how many of the queries before position ``computed`` are in it."""
        row, first = self._taken[request_id]
        return row, queries_there(computed, first, length)


def queries_there(computed: int, first: int, length: int) -> int:
    """Queries in a ring of a request whose first computed position is ``first``."""
    count = min(computed - first, length)
    assert count > 0, f"a round at {computed} follows a step of its request, which began at {first}"
    return count


def places(rows: np.ndarray, computed: np.ndarray, scheduled: np.ndarray, length: int) -> np.ndarray:
    """Where each token's query of a step goes, int32 [tokens]: what ``QueryRing.place`` computes, on the host.

    Args:
        rows, computed, scheduled: by request of the batch: row of the ring, first position of the step, tokens in it.
    """
    ends = np.cumsum(scheduled)
    total = int(ends[-1]) if len(ends) else 0
    offset = np.arange(total) - np.repeat(ends - scheduled, scheduled)
    position = np.repeat(computed, scheduled) + offset
    kept = offset >= np.repeat(scheduled - length, scheduled)
    return np.where(kept, np.repeat(rows, scheduled) * length + position % length, -1).astype(np.int32)
