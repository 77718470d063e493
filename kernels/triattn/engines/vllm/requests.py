"""The API process: a request's own budget and tags are checked where the client can still be told.

vLLM source: ``vllm/v1/engine/input_processor.py``. vLLM answers its own validation errors with a 400.
"""

from __future__ import annotations

from typing import Any

from triattn.errors import ConfigError
from triattn.plan import Budgeting
from triattn.rules import BUDGET_OPTION, PREFIX, check_options


def check_extra_args(
    extra: dict[str, Any] | None, budgeting: Budgeting | None, cache_tokens: int | None, length: int
) -> None:
    """Refuse unknown ``triattn_*`` names, tags that are none, and impossible budgets.

    Args:
        extra: the request's ``extra_args`` (``vllm_xargs`` in the OpenAI API).
        budgeting: of the start-up policy, if known here; cache_tokens: size of the cache, if known.
        length: the longest this request may become, in tokens.

    Raises:
        ValueError: one line with field, value and remedy.
    """
    if not extra:
        return
    value, _ = check_options(extra)
    if value is None:
        return
    if budgeting is not None:
        budgeting.check(BUDGET_OPTION, value)
    if cache_tokens is None or length <= cache_tokens:
        return
    if value == 0:
        raise ConfigError(
            BUDGET_OPTION,
            value,
            f"uncompressed, this request may grow to {length} tokens, but the cache holds {cache_tokens}; "
            "give it a budget or fewer max_tokens",
        )
    # Prefill chunks are cut to what the policy's own budget leaves of the cache (SchedulerHooks).
    if budgeting is not None and value > budgeting.budget:
        raise ConfigError(
            BUDGET_OPTION,
            value,
            f"this request may grow to {length} tokens, but the cache holds {cache_tokens}; "
            f"ask for at most {budgeting.budget}, the policy's budget, or for fewer max_tokens",
        )


def validate_requests(processor: Any) -> None:
    """Wrap the ``process_inputs`` of one input processor."""
    from vllm.exceptions import VLLMValidationError

    from triattn.engines.vllm.plugin import settings_of

    process_inputs = processor.process_inputs
    config = processor.vllm_config
    settings = settings_of(config)
    policy = settings.policy if settings is not None else None

    def check(request: Any) -> None:
        if getattr(request, "resumable", False):
            raise ConfigError("resumable", True, "streaming sessions are not supported; send whole requests")
        params = request.sampling_params
        extra = params.extra_args if params is not None else None
        if not extra or not any(name.startswith(PREFIX) for name in extra):
            return
        cache = config.cache_config
        tokens = cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None
        budgeting = Budgeting.of(policy, cache.block_size) if policy is not None else None
        longest = config.model_config.max_model_len
        length = min(longest, len(request.prompt_token_ids or ()) + (params.max_tokens or longest))
        check_extra_args(extra, budgeting, tokens, length)

    def process(*args: Any, **kwargs: Any) -> Any:
        request = process_inputs(*args, **kwargs)
        try:
            check(request)
        except ConfigError as error:
            raise VLLMValidationError(str(error)) from error
        return request

    processor.process_inputs = process
