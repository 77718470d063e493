"""What the server is asked to do, by capability: supported, or refused with the reason and the way out.

Nothing here looks at a version string. What is not recognised is refused at start-up, never run uncompressed.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from triattn import wire
from triattn.errors import ConfigError

PACKAGE = "sglang.srt"

HOOKED = (
    "managers.scheduler.Scheduler.__init__",
    "managers.scheduler.Scheduler.run_event_loop",
    "managers.scheduler_components.request_receiver.SchedulerRequestReceiver._pull_raw_reqs",
    "managers.schedule_policy.PrefillAdder.add_one_req",
    "managers.schedule_policy.PrefillAdder.add_chunked_req",
    "managers.schedule_policy.PrefillAdder._get_running_request_total_token_offset",
    "managers.schedule_batch.Req.init_next_round_input",
    "managers.schedule_batch.ScheduleBatch.prepare_for_extend",
    "model_executor.forward_batch_info.ForwardBatch.init_new",
    "model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
    "managers.tokenizer_manager.TokenizerManager._validate_one_request",
)
"""What the plugin hooks, below sglang.srt."""


def engine_version() -> str:
    """SGLang's version, for people to read."""
    import sglang

    return str(getattr(sglang, "__version__", "unknown"))


def _refuse(field: str, value: object, remedy: str) -> None:
    raise ConfigError(field, value, remedy)


def _missing(name: str) -> None:
    _refuse(
        name,
        "missing",
        f"SGLang {engine_version()} is built differently from what triattn knows; use a version that it supports",
    )


def check_targets() -> None:
    """SGLang only logs a hook that it cannot apply: look before it tries.

    Raises:
        ConfigError: one of HOOKED is not there.
    """
    for name in HOOKED:
        target = f"{PACKAGE}.{name}"
        owner, _, attribute = target.rpartition(".")
        try:
            found = attribute in vars(pkgutil.resolve_name(owner))
        except (ImportError, AttributeError):
            found = False
        if not found:
            _missing(target)


def check_applied() -> None:
    """Every hook is in place.

    Raises:
        ConfigError: SGLang has logged why one is not, and gone on.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    for name in HOOKED:
        if f"{PACKAGE}.{name}" not in HookRegistry._patched:
            _refuse(
                f"hook {name}",
                "not applied",
                "the engine's log says why; without it nothing would be compressed",
            )


# (attribute of ServerArgs, values that are fine, what it is, the remedy).
_REFUSED = (
    ("speculative_algorithm", (None,), "speculative decoding is not supported; drop --speculative-algorithm"),
    ("disaggregation_mode", ("null", None), "prefill-decode disaggregation is not supported; drop it"),
    (
        "enable_hierarchical_cache",
        (False,),
        "HiCache stores entries by position; drop --enable-hierarchical-cache",
    ),
    ("enable_lmcache", (False,), "LMCache stores entries by position; drop --enable-lmcache"),
    ("enable_flexkv", (False,), "FlexKV stores entries by position; drop --enable-flexkv"),
    ("enable_streaming_session", (False,), "streaming sessions are not supported; drop the flag"),
    ("enable_session_radix_cache", (False,), "session caches are not supported; drop the flag"),
    ("enable_dp_attention", (False,), "data-parallel attention is not supported; drop --enable-dp-attention"),
    ("enable_mixed_chunk", (False,), "it mixes prefill into decode batches; drop --enable-mixed-chunk"),
    ("enable_pdmux", (False,), "PD multiplexing is not supported; drop --enable-pdmux"),
    ("enable_hisparse", (False,), "hierarchical sparse attention is not supported; drop --enable-hisparse"),
    ("enable_unified_memory", (False,), "its pool moves entries by itself; drop --enable-unified-memory"),
    ("enable_two_batch_overlap", (False,), "two-batch overlap is not supported; drop the flag"),
    ("enable_return_routed_experts", (False,), "it reads KV slots by logical position; drop the flag"),
    ("dllm_algorithm", (None,), "diffusion language models are not supported; serve it without triattn"),
    ("kv_events_config", (None, ""), "KV events describe uncompressed caches; drop --kv-events-config"),
    ("radix_cache_backend", (None, "", "default"), "other radix caches are not supported; drop the flag"),
    ("pp_size", (1,), "pipeline parallelism is not supported; use --tp-size instead"),
    ("attn_cp_size", (1,), "context parallelism is not supported; set it to 1"),
    ("dcp_size", (1,), "decode context parallelism is not supported; set it to 1"),
)


def check_arguments(arguments: Any) -> None:
    """Refuse server arguments that change the KV cache in ways that compaction does not follow yet.

    Raises:
        ConfigError: naming the argument and how to go without it.
    """
    for name, fine, remedy in _REFUSED:
        value = getattr(arguments, name, fine[0])
        if value not in fine:
            _refuse(name, value, remedy)
    if int(getattr(arguments, "dp_size", 1)) > 1:
        _refuse("dp_size", arguments.dp_size, "data parallelism is not supported; start one server for each")
    backends = [
        getattr(arguments, name, None)
        for name in ("attention_backend", "decode_attention_backend", "prefill_attention_backend")
    ]
    for name in backends:
        if name in ("dual_chunk_flash_attn", "double_sparsity", "nsa", "dsa", "ascend", "aiter", "wave"):
            _refuse("attention_backend", name, "use triton, fa3 or flashinfer")


def check_model(config: Any) -> None:
    """Refuse models whose cache is not one full-attention cache per layer.

    Raises:
        ConfigError: naming what the model has.
    """
    without = "serve this model without triattn"
    name = config.model_path
    if getattr(config.attention_arch, "name", "MHA") != "MHA":
        _refuse("model", name, f"multi-head latent attention is not supported; {without}")
    for attribute, what in (
        ("is_hybrid_swa", "hybrid sliding-window caches are"),
        ("is_encoder_decoder", "cross-attention is"),
        ("model_is_mrope", "rotary positions of several dimensions are"),
    ):
        if getattr(config, attribute, False):
            _refuse("model", name, f"{what} not supported; {without}")
    if not getattr(config, "is_generation", True):
        _refuse("model", name, f"only generation has a KV cache to compress; {without}")
    for attribute in ("sliding_window_size", "attention_chunk_size"):
        if getattr(config, attribute, None) is not None:
            _refuse(attribute, getattr(config, attribute), f"windowed attention is not supported; {without}")


_SCHEDULER = (
    "update_running_batch",
    "get_next_batch_to_run",
    "process_input_requests",
    "stash_chunked_request",
    "init_req_max_new_tokens",
    "max_req_len",
    "max_req_input_len",
    "max_total_num_tokens",
    "chunked_prefill_size",
    "chunked_req",
    "token_to_kv_pool_allocator",
    "req_to_token_pool",
    "tree_cache",
    "running_batch",
    "waiting_queue",
    "forward_stream",
)
_ALLOCATOR = ("alloc", "available_size", "free_segment", "page_size", "size", "get_kvcache")
_TREE = ("cache_finished_req", "evictable_size", "is_chunk_cache", "disable", "evict")
_RADIX = ("dec_lock_ref", "inc_lock_ref", "root_node", "_delete_leaf")


def _require(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if not hasattr(owner, name):
            _missing(f"{type(owner).__name__}.{name}")


def check_scheduler(scheduler: Any) -> None:
    """Probe a scheduler after its start.

    Raises:
        ConfigError: something is not supported, or not where it is expected.
    """
    check_arguments(scheduler.server_args)
    check_model(scheduler.model_config)
    if getattr(scheduler, "is_hybrid_ssm", False):
        _refuse(
            "model",
            scheduler.model_config.model_path,
            "Mamba layers are not supported; serve it without triattn",
        )
    _require(scheduler, _SCHEDULER)
    _require(scheduler.token_to_kv_pool_allocator, _ALLOCATOR)
    _require(scheduler.tree_cache, _TREE)
    if not scheduler.tree_cache.disable:
        _require(scheduler.tree_cache, _RADIX)
    kind = type(scheduler.tree_cache).__name__
    if kind not in ("RadixCache", "ChunkCache"):
        _refuse("tree_cache", kind, "only SGLang's own radix cache, or none, is supported; drop its variants")
    allocator = type(scheduler.token_to_kv_pool_allocator).__name__
    if allocator not in ("TokenToKVPoolAllocator", "PagedTokenToKVPoolAllocator"):
        _refuse("allocator", allocator, "this KV pool is not supported; use the default one")


def model_geometry(config: Any) -> wire.ModelGeometry:
    """Numbers of the served model, with its fingerprint.

    Raises:
        ConfigError: the model's configuration does not say how it rotates its keys.
    """
    from triattn.model import geometry

    return geometry(config.hf_text_config, config.model_path, name=str(config.model_path), need_rotary=False)


def capabilities(scheduler: Any) -> list[str]:
    """Names of what is on in this engine, for the control plane to show."""
    arguments = scheduler.server_args
    decode = getattr(getattr(arguments, "cuda_graph_config", None), "decode", None)
    found = {
        "overlap-scheduling": bool(scheduler.enable_overlap),
        "chunked-prefill": bool(scheduler.chunked_prefill_size),
        "prefix-caching": not scheduler.tree_cache.disable,
        "cuda-graphs": scheduler.device == "cuda" and getattr(decode, "backend", "disabled") != "disabled",
        "tensor-parallel": arguments.tp_size > 1,
    }
    return [f"attention-{arguments.attention_backend}", *(name for name, on in found.items() if on)]
