"""What to evict when, in integers. Pure: no torch, no engine.

Notation used everywhere in this package, per request and KV cache group:

- ``computed`` (C): logical length, tokens whose KV has been or is being computed;
- ``evicted`` (E): tokens evicted so far;
- ``resident`` (R = C - E): entries in the cache, which occupy rows ``[0, R)`` of the block table;
- ``keep``: resident tokens after a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from triattn.errors import ConfigError


class _Pin(Protocol):
    prompt: bool
    sinks: int
    window: int


class _Policy(Protocol):
    budget: int
    interval: int
    count_prompt: bool
    pin: _Pin


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """One compaction of one request, decided by the scheduler and executed alike by every rank.

    ``copies`` are (row index, source block, destination block) of shared blocks that get a private
    copy before anything is overwritten.
    """

    request_id: str
    computed: int
    resident: int
    previous: int
    """Resident tokens right after the round before (0: none). Rows from here on hold consecutive
    positions: position = row + ``evicted``."""
    evicted: int
    """E before this round."""
    keep: int
    prompt_len: int
    pin_prompt: bool
    copies: tuple[tuple[int, int, int], ...] = ()
    policy: int = 0
    """Which of the policies in force scores it (``triattn.rules.Verdict``)."""
    known: int = 0
    """Rows from 0 on for which terms remember what they found in the round before: ``previous`` where the same
    policy scored that round, else 0."""


def cdiv(a: int, b: int) -> int:
    """Ceiling of a / b for positive b."""
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class Budgeting:
    """The integer part of a policy, bound to an engine's block size (in tokens)."""

    budget: int
    interval: int
    sinks: int
    window: int
    prompt: bool
    count_prompt: bool
    block_size: int

    @classmethod
    def of(cls, policy: _Policy, block_size: int, field: str = "budget") -> Budgeting:
        """Take the integers out of a policy document; ``field`` is where its budget was given.

        Raises:
            ConfigError: the budget cannot hold the pinned tokens and one block.
        """
        self = cls(
            policy.budget,
            policy.interval,
            policy.pin.sinks,
            policy.pin.window,
            policy.pin.prompt,
            policy.count_prompt,
            block_size,
        )
        self.check(field, policy.budget)
        return self

    @property
    def minimum(self) -> int:
        """The smallest budget that works, in tokens."""
        return self.sinks + self.window + self.block_size

    def check(self, field: str, budget: int) -> None:
        """Refuse an impossible budget; 0 (never compress) is always possible.

        Raises:
            ConfigError: with the smallest budget that would work.
        """
        if budget < 0:
            raise ConfigError(field, budget, "must be 0 (never compress) or a number of tokens")
        if 0 < budget < self.minimum:
            raise ConfigError(
                field,
                budget,
                f"too small: {self.sinks} sinks + {self.window} window + one block of {self.block_size} "
                f"tokens need at least {self.minimum} (0 turns compression off)",
            )

    def target(self, prompt_len: int, override: int | None = None) -> int:
        """Resident tokens of a request after a round; 0 when it is never compressed."""
        budget = self.budget if override is None else override
        if budget == 0:
            return 0
        return budget if self.count_prompt else budget + prompt_len

    def trigger(self, prompt_len: int, override: int | None = None) -> int:
        """Resident tokens at which a round fires; 0 when none ever does."""
        target = self.target(prompt_len, override)
        return target + self.interval if target else 0

    def pins_prompt(self, prompt_len: int, keep: int) -> bool:
        """Whether the prompt is pinned for a request that keeps ``keep`` tokens.

        A prompt that would leave no block for generated tokens beside the window is not pinned: it
        competes, so that the budget holds whatever is asked.
        """
        return self.prompt and prompt_len + self.window + self.block_size <= keep

    def peak(self, prompt_len: int, chunk: int, override: int | None = None) -> int | None:
        """Most resident tokens a request can reach, prefilled in chunks of ``chunk`` tokens; None: no bound."""
        trigger = self.trigger(prompt_len, override)
        return trigger - 1 + chunk if trigger else None
