"""What the engine is asked to do, by capability: supported, or refused with the reason and the way out.

Nothing here looks at a version string. What is not recognised is refused at start-up, never run uncompressed.
"""

from __future__ import annotations

from typing import Any

from triattn import wire
from triattn.config import ConfigError


def engine_version() -> str:
    """vLLM's version, for people to read."""
    import vllm

    return str(getattr(vllm, "__version__", "unknown"))


def uses_v2_runner(config: Any) -> bool:
    """Whether the engine runs vLLM's V2 model runner."""
    return bool(getattr(config, "use_v2_model_runner", False))


def runner_name(config: Any) -> str:
    """``v1`` or ``v2``."""
    return "v2" if uses_v2_runner(config) else "v1"


def model_geometry(config: Any) -> wire.ModelGeometry:
    """Numbers of the served model, with its fingerprint.

    Raises:
        ConfigError: the model's configuration does not say how it rotates its keys.
    """
    from triattn.model import geometry

    model = config.model_config
    return geometry(model.hf_text_config, model.model, name=str(model.model), need_rotary=False)


def _refuse(field: str, value: object, remedy: str) -> None:
    raise ConfigError(field, value, remedy)


def check_config(config: Any) -> None:
    """Refuse engine features that change the KV cache in ways that compaction does not follow yet.

    Raises:
        ConfigError: naming the feature and how to go without it.
    """
    parallel, cache, model = config.parallel_config, config.cache_config, config.model_config
    if getattr(model, "use_mla", False):
        _refuse(
            "model", model.model, "multi-head latent attention is not supported; serve it without triattn"
        )
    if getattr(model, "is_encoder_decoder", False):
        _refuse("model", model.model, "cross-attention is not supported; serve it without triattn")
    if getattr(model, "runner_type", "generate") != "generate":
        _refuse(
            "runner",
            model.runner_type,
            "only generation has a KV cache to compress; serve it without triattn",
        )
    if config.speculative_config is not None:
        _refuse(
            "speculative_config", "set", "speculative decoding is not supported; drop --speculative-config"
        )
    if config.kv_transfer_config is not None:
        _refuse("kv_transfer_config", "set", "KV connectors are not supported; drop --kv-transfer-config")
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            _refuse(name, getattr(parallel, name), "context parallelism is not supported; set it to 1")
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "num_ubatches", 1) > 1:
        _refuse("enable_dbo", True, "micro-batching is not supported; drop --enable-dbo")
    if getattr(model, "enable_return_routed_experts", False):
        _refuse("enable_return_routed_experts", True, "it reads KV slots by logical position; drop the flag")
    if getattr(cache, "kv_sharing_fast_prefill", False):
        _refuse("kv_sharing_fast_prefill", True, "layers that share a cache are not supported; drop the flag")
    if str(cache.cache_dtype) not in ("auto", "bfloat16", "float16", "half", "float", "fp8", "fp8_e4m3"):
        _refuse("kv_cache_dtype", cache.cache_dtype, "use auto, bfloat16, float16 or fp8_e4m3")


def check_groups(kv_cache_config: Any) -> int:
    """Index of the KV cache group to compress.

    Raises:
        ConfigError: the model keeps other caches besides full attention.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in groups)
        _refuse("kv_cache_groups", kinds, "hybrid caches are not supported; serve this model without triattn")
    spec = groups[0].kv_cache_spec
    if type(spec) is not FullAttentionSpec:
        _refuse(
            "kv_cache_spec",
            type(spec).__name__,
            "only full attention of one shape is supported; serve this model without triattn",
        )
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(spec, name, None) is not None:
            _refuse(
                name,
                getattr(spec, name),
                "windowed attention is not supported; serve this model without triattn",
            )
    if getattr(spec, "non_causal", False):
        _refuse("non_causal", True, "non-causal attention is not supported; serve this model without triattn")
    return 0


_MANAGER_METHODS = (
    "get_num_blocks_to_allocate",
    "allocate_new_blocks",
    "cache_blocks",
    "pop_blocks_for_free",
    "req_to_blocks",
    "block_pool",
)
_POOL_METHODS = ("get_new_blocks", "free_blocks", "evict_blocks", "get_num_free_blocks", "num_gpu_blocks")
_SCHEDULER_METHODS = (
    "max_num_scheduled_tokens",
    "schedule",
    "_preempt_request",
    "_free_request",
    "requests",
    "running",
    "kv_cache_manager",
)


def _require(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if not hasattr(owner, name):
            _refuse(
                f"{type(owner).__name__}.{name}",
                "missing",
                f"vLLM {engine_version()} is built differently from what triattn knows; use a vLLM that it supports",
            )


def check_scheduler(scheduler: Any) -> int:
    """Probe a scheduler instance; index of the KV cache group to compress.

    Raises:
        ConfigError: something is not supported, or not where it is expected.
    """
    check_config(scheduler.vllm_config)
    group = check_groups(scheduler.kv_cache_config)
    _require(scheduler, _SCHEDULER_METHODS)
    manager = scheduler.kv_cache_manager.coordinator.single_type_managers[group]
    _require(manager, _MANAGER_METHODS)
    _require(manager.block_pool, _POOL_METHODS)
    if getattr(scheduler, "connector", None) is not None:
        _refuse("kv_transfer_config", "set", "KV connectors are not supported; drop --kv-transfer-config")
    return group


_RUNNER_V1 = (
    "execute_model",
    "sample_tokens",
    "_prepare_inputs",
    "requests",
    "input_batch",
    "seq_lens",
    "optimistic_seq_lens_cpu",
)


def check_runner_v1(runner: Any) -> None:
    """Refuse a V1 model runner, on a CPU or a GPU, whose lengths and slots are not where they are expected.

    Attention must read its lengths from one buffer on the runner's device, whose address full CUDA graphs have
    captured, after ``_prepare_inputs`` filled it; slots must come from ``compute_slot_mapping``.

    Raises:
        ConfigError: naming what is different.
    """
    _require(runner, _RUNNER_V1)
    table = runner.input_batch.block_table[0]
    _require(runner.input_batch.block_table, ("compute_slot_mapping",))
    _require(table, ("block_table", "block_size", "num_blocks_per_row"))
    for name, device in (("seq_lens", runner.device.type), ("optimistic_seq_lens_cpu", "cpu")):
        found = getattr(getattr(runner, name), "device", None)
        if getattr(found, "type", None) != device:
            _refuse(
                f"{type(runner).__name__}.{name}",
                f"on {found}",
                f"vLLM {engine_version()} is built differently from what triattn knows; "
                "use a vLLM that it supports, or its V2 runner (VLLM_USE_V2_MODEL_RUNNER=1)",
            )
    if getattr(runner, "cascade_attn_enabled", False):
        _refuse(
            "disable_cascade_attn",
            False,
            "cascade attention is not supported; leave --disable-cascade-attn on, as it is by default",
        )


def capabilities(config: Any) -> list[str]:
    """Names of what is on in this engine, for the control plane to show."""
    scheduler, cache = config.scheduler_config, config.cache_config
    found = {
        "async-scheduling": bool(scheduler.async_scheduling),
        "chunked-prefill": bool(scheduler.enable_chunked_prefill),
        "prefix-caching": bool(cache.enable_prefix_caching),
        "tensor-parallel": config.parallel_config.tensor_parallel_size > 1,
    }
    return [f"runner-{runner_name(config)}", "rules", "watch", *(name for name, on in found.items() if on)]
