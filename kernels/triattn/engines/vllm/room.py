"""Whether the cache can hold one request at its largest, and the prefill chunks that make it so."""

from __future__ import annotations

from triattn.errors import ConfigError
from triattn.rules import Rules


def check_room(rules: Rules, room: int, longest: int, block_size: int, *, chunked_prefill: bool) -> None:
    """Refuse a policy or rule under which a request could never be scheduled.

    Args:
        room: the cache, in tokens; longest: ``max_model_len``.

    Raises:
        ConfigError: with the field that asks for too much.
    """
    if longest <= room:
        return
    if not chunked_prefill:
        raise ConfigError(
            "enable_chunked_prefill", False, "prompts beyond the cache need chunked prefill; turn it on"
        )
    for case in rules.cases():
        budgeting = rules.budgetings[case.policy]
        if not case.budget:
            raise ConfigError(
                case.field,
                0,
                f"nothing is compressed, but max_model_len {longest} exceeds the cache of {room} tokens; "
                "set a budget or lower --max-model-len",
            )
        if not budgeting.count_prompt:
            raise ConfigError(
                f"policies[{case.policy - 1}].countPrompt" if case.policy else "countPrompt",
                False,
                f"prompts are not bounded, but max_model_len {longest} exceeds the cache of {room} tokens; "
                "count the prompt or lower --max-model-len",
            )
        trigger = budgeting.trigger(0, case.budget)
        if room - trigger < block_size:
            raise ConfigError(
                case.field,
                case.budget,
                f"budget + interval = {trigger} leaves no room in a cache of {room} tokens; "
                "use a smaller budget or give the cache more memory",
            )


def chunk_limit(rules: Rules, room: int, longest: int, block_size: int) -> int | None:
    """Most tokens of a step where a request may be longer than the cache, so that no prefill chunk overflows it."""
    if longest <= room:
        return None
    chunk = room - rules.largest_trigger()
    return chunk - chunk % block_size
