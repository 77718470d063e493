"""Entry point ``sglang.srt.plugins``: SGLang calls ``register`` once in each of its processes.

SGLang only logs what a plugin throws and goes on without it. So whatever is wrong here ends the process with the
reason (SystemExit is not caught there), and a scheduler starts only once it has seen every hook in place. Without
settings nothing is hooked.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from triattn.config import Settings, load_settings
from triattn.errors import ConfigError

logger = logging.getLogger("sglang.triattn")

EXIT_CODE = 3
"""Of a process that must not run uncompressed."""

current: Any = None
"""The SchedulerHooks of this process, if it has a scheduler."""
_settings: Settings | None = None


def register() -> None:
    """Hook SGLang where triattn is turned on."""
    global _settings
    try:
        _settings = load_settings(os.environ)
        if _settings is None:
            return
        for warning in _settings.warnings:
            logger.warning("triattn: %s", warning)
        _register_hooks()
    except Exception as error:
        print(f"triattn: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from error


def _register_hooks() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from triattn.engines.sglang import probe

    probe.check_targets()
    functions = (
        (_scheduler_init, HookType.AFTER),
        (_event_loop, HookType.BEFORE),
        (_pull_requests, HookType.AFTER),
        (_add_one_request, HookType.AROUND),
        (_add_chunked_request, HookType.AROUND),
        (_running_offset, HookType.AROUND),
        (_next_round_input, HookType.AFTER),
        (_prepare_for_extend, HookType.AROUND),
        (_forward_batch, HookType.AFTER),
        (_cell_size, HookType.AFTER),
        (_validate_request, HookType.AFTER),
    )
    for name, (function, kind) in zip(probe.HOOKED, functions, strict=True):
        HookRegistry.register(f"{probe.PACKAGE}.{name}", function, kind)


def _scheduler_init(_: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    global current
    from triattn.engines.sglang.scheduler import SchedulerHooks

    assert _settings is not None
    current = SchedulerHooks(scheduler, _settings)


def _event_loop(scheduler: Any, *args: Any, **kwargs: Any) -> None:
    if getattr(scheduler, "triattn", None) is None:
        raise ConfigError(
            "hook managers.scheduler.Scheduler.__init__",
            "not applied",
            "the engine's log says why; without it nothing would be compressed",
        )


def _pull_requests(received: list[Any] | None, *args: Any, **kwargs: Any) -> list[Any] | None:
    """A new policy enters where requests do, so that every rank sees it before the same step."""
    if received is not None and current is not None and current.first_rank:
        received.extend(current.to_broadcast())
    return received


def _add_one_request(original: Any, adder: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    from triattn.engines.sglang.admission import add_one_request

    if current is None:
        return original(adder, request, *args, **kwargs)
    return add_one_request(current, original, adder, request, *args, **kwargs)


def _add_chunked_request(original: Any, adder: Any, request: Any) -> Any:
    from triattn.engines.sglang.admission import add_chunked_request

    return (
        original(adder, request)
        if current is None
        else add_chunked_request(current, original, adder, request)
    )


def _running_offset(original: Any, adder: Any, request: Any) -> Any:
    from triattn.engines.sglang.admission import running_offset

    return original(adder, request) if current is None else running_offset(current, original, adder, request)


def _next_round_input(_: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    from triattn.engines.sglang.chunks import refill

    if current is not None:
        refill(request, current.evicted(request))


def _prepare_for_extend(original: Any, batch: Any) -> Any:
    from triattn.engines.sglang.chunks import prepare_for_extend

    return original(batch) if current is None else prepare_for_extend(current.evicted, original, batch)


def _forward_batch(forward_batch: Any, cls: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
    if current is not None:
        current.set_positions(forward_batch, batch)


def _cell_size(size: int, _: Any, kvc: Any, layers: int) -> int:
    """Bytes of a token in SGLang's memory budget: positions, and what terms remember, come out of it as well."""
    from sglang.srt.runtime_context import get_parallel

    from triattn.engines.policy import bytes_beside

    beside = bytes_beside(None if _settings is None else _settings.policy)
    return size + beside * layers * kvc.model_config.get_num_kv_heads(get_parallel().attn_tp_size)


def _validate_request(_: Any, manager: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    from triattn.engines.sglang.requests import check_custom_params
    from triattn.plan import Budgeting

    params = getattr(request, "sampling_params", None)
    options = params.get("custom_params") if isinstance(params, dict) else None
    if not options or _settings is None:
        return
    page = getattr(manager.server_args, "page_size", None) or 1
    check_custom_params(options, Budgeting.of(_settings.policy, page) if _settings.policy else None)
