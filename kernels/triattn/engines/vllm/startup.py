"""Start-up of an engine core: admit a context longer than the cache, prepare the workers' kernels.

vLLM sources: ``vllm/v1/engine/core.py`` (``EngineCore._initialize_kv_caches``) and
``vllm/v1/core/kv_cache_utils.py`` (``_check_enough_kv_cache_memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triattn.config import ConfigError, Settings
from triattn.engines.policy import PolicyInForce
from triattn.engines.vllm import probe


def initialize_kv_caches(
    core: Any, vllm_config: Any, settings: Settings, original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run vLLM's own initialisation with its length check bounded by the budget, then warm the workers.

    Raises:
        ConfigError: the engine is configured in a way that is not supported.
    """
    probe.check_config(vllm_config)
    policy = settings.policy
    if policy is None:
        return original(core, vllm_config, *args, **kwargs)
    with bounded_length_check(vllm_config, policy):
        result = original(core, vllm_config, *args, **kwargs)
    core.model_executor.collective_rpc(
        "triattn_prepare", args=(PolicyInForce(0, policy, settings.statistics),)
    )
    return result


@contextmanager
def bounded_length_check(vllm_config: Any, policy: Any) -> Iterator[None]:
    """Within this context, vLLM asks the cache to hold one request inside its budget, not max_model_len.

    Only a policy that bounds every request lifts the check: a budget that counts the prompt.
    """
    from vllm.v1.core import kv_cache_utils

    if not policy.budget or not policy.count_prompt:
        yield
        return
    name = "_check_enough_kv_cache_memory"
    check = getattr(kv_cache_utils, name, None)
    if check is None:
        raise ConfigError(
            f"kv_cache_utils.{name}", "missing", "this vLLM is built differently from what triattn knows"
        )
    longest = vllm_config.model_config.max_model_len
    # The smallest prefill chunk is one block; longer ones are cut to what the cache leaves (SchedulerHooks).
    bounded = min(longest, policy.budget + policy.interval + vllm_config.cache_config.block_size)

    def check_bounded(
        available: int, get_needed_memory: Callable[[], int], *rest: Any, **kwargs: Any
    ) -> None:
        def needed() -> int:
            return -(-get_needed_memory() * bounded // longest)

        check(available, needed, *rest, **kwargs)

    setattr(kv_cache_utils, name, check_bounded)
    try:
        yield
    finally:
        setattr(kv_cache_utils, name, check)


def without_positions(memory: int, vllm_config: Any, beside: int) -> int:
    """Bytes left for the KV cache where every entry of a KV head takes ``beside`` bytes more (``bytes_beside``)."""
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

    cache, model = vllm_config.cache_config, vllm_config.model_config
    dtype = model.dtype if cache.cache_dtype == "auto" else STR_DTYPE_TO_TORCH_DTYPE[cache.cache_dtype]
    entry = 2 * model.get_head_size() * dtype.itemsize
    return memory * entry // (entry + beside)


def without_queries(memory: int, vllm_config: Any, length: int) -> int:
    """Bytes left beside the last ``length`` queries of every request that may run.

    Raises:
        ConfigError: nothing is.
    """
    if not length:
        return memory
    from triattn.engines.vllm.query_ring import ring_bytes

    needed = ring_bytes(vllm_config, length)
    if needed >= memory:
        raise ConfigError(
            "max_num_seqs",
            vllm_config.scheduler_config.max_num_seqs,
            f"the last {length} queries of as many requests, which the policy observes, take "
            f"{needed / 2**30:.1f} GiB of the {memory / 2**30:.1f} that are free; lower --max-num-seqs, or use a "
            "policy without the terms observed and accumulated",
        )
    return memory - needed
