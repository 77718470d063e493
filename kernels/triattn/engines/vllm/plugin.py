"""Entry point ``vllm.general_plugins``: vLLM calls ``register`` once in each of its processes.

Three constructors are wrapped, so that ``additional_config={"triattn": …}`` can be seen where it
first exists. Without settings they do what they did, and nothing else is ever installed.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from triattn.config import ConfigError, Settings, load_settings

logger = logging.getLogger("vllm.triattn")


def settings_of(config: Any) -> Settings | None:
    """Settings for an engine of this vLLM configuration; None: triattn stays off."""
    additional = config.additional_config
    settings = load_settings(os.environ, additional if isinstance(additional, dict) else None)
    if settings is not None and not getattr(config, "_triattn_warned", False):
        for warning in settings.warnings:
            logger.warning("triattn: %s", warning)
        object.__setattr__(config, "_triattn_warned", True)
    return settings


def wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.name`` by ``make(original)``, once however often a plugin is loaded.

    Raises:
        ConfigError: this vLLM has no such method.
    """
    original = owner.__dict__.get(name)
    if original is None:
        raise ConfigError(
            f"{owner.__module__}.{owner.__name__}.{name}",
            "missing",
            "this vLLM is built differently from what triattn knows; use a version that it supports",
        )
    if getattr(original, "_triattn", False):
        return
    wrapped = functools.wraps(original)(make(original))
    wrapped._triattn = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)


def _scheduler_init(original: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        settings = settings_of(self.vllm_config)
        if settings is not None:
            from triattn.engines.vllm.scheduler import SchedulerHooks

            SchedulerHooks(self, settings)

    return init


def _initialize_kv_caches(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        settings = settings_of(vllm_config)
        if settings is None:
            return original(self, vllm_config, *args, **kwargs)
        from triattn.engines.vllm import startup

        return startup.initialize_kv_caches(self, vllm_config, settings, original, *args, **kwargs)

    return initialize


def _runner_v1(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if settings_of(self.vllm_config) is not None:
            from triattn.engines.vllm.runner_v1 import install

            install(self)

    return initialize


def _runner_v2(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if settings_of(self.vllm_config) is not None:
            from triattn.engines.vllm.runner_v2 import install

            install(self)

    return initialize


def _input_processor_init(original: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if settings_of(self.vllm_config) is not None:
            from triattn.engines.vllm.requests import validate_requests

            validate_requests(self)

    return init


def _available_memory(original: Callable[..., Any]) -> Callable[..., Any]:
    def available(self: Any, *args: Any, **kwargs: Any) -> int:
        memory = original(self, *args, **kwargs)
        config = self.vllm_config
        settings = settings_of(config)
        if settings is None or config.cache_config.kv_cache_memory_bytes is not None:
            return memory
        from triattn.engines.policy import bytes_beside
        from triattn.engines.vllm.startup import without_positions, without_queries

        left = without_queries(memory, config, settings.queries)
        return without_positions(left, config, bytes_beside(settings.policy))

    return available


def _prepare_worker(self: Any, policy: Any) -> None:
    from triattn.engines.vllm.worker import prepare

    prepare(self, policy)


def register() -> None:
    """Make vLLM's processes aware of triattn; idempotent."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1
    from vllm.v1.worker.gpu_worker import Worker

    wrap(Scheduler, "__init__", _scheduler_init)
    wrap(EngineCore, "_initialize_kv_caches", _initialize_kv_caches)
    wrap(RunnerV1, "initialize_kv_cache", _runner_v1)
    wrap(RunnerV2, "initialize_kv_cache", _runner_v2)
    wrap(InputProcessor, "__init__", _input_processor_init)
    wrap(Worker, "determine_available_memory", _available_memory)
    Worker.triattn_prepare = _prepare_worker
