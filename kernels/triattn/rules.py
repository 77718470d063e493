"""Which policy and which budget a request gets. Pure: no torch, no engine.

The first rule that matches a request decides its policy and its budget; a budget that the request itself asks
for wins over the rule's. What a rule leaves out comes from the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from triattn.errors import ConfigError
from triattn.plan import Budgeting

if TYPE_CHECKING:
    from triattn import wire

BUDGET_OPTION = "triattn_budget"
TAGS_OPTION = "triattn_tags"
PREFIX = "triattn_"
"""Request options that begin with this are triattn's; one that is not known is refused."""

LARGEST_BUDGET = 16_777_216
MOST_TAGS = 16
LONGEST_TAG = 64
"""Characters, as in the protocol's rules."""

_TAGS_REMEDY = (
    f"must be up to {MOST_TAGS} tags of 1 to {LONGEST_TAG} printable characters: text with commas "
    'between them, as in "batch,low", or a list'
)


class _SetPolicy(Protocol):
    @property
    def policy(self) -> wire.PolicyDocument: ...
    @property
    def rules(self) -> Sequence[wire.EngineRule]: ...
    @property
    def policies(self) -> Sequence[wire.PolicyDocument]: ...


def parse_budget(value: Any) -> int:
    """A request's own budget in tokens; 0: never compress.

    Raises:
        ConfigError: not a whole number from 0 to LARGEST_BUDGET.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_BUDGET:
        remedy = f"must be a whole number of tokens from 0 (never compress) to {LARGEST_BUDGET}"
        raise ConfigError(BUDGET_OPTION, value, remedy)
    return value


def parse_tags(value: Any) -> tuple[str, ...]:
    """A request's tags, in their order, each once; () for None and for blank text.

    Raises:
        ConfigError: not tags as TAGS_OPTION takes them.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise ConfigError(TAGS_OPTION, value, _TAGS_REMEDY)
    tags: dict[str, None] = {}
    for part in parts:
        tag = part.strip() if isinstance(part, str) else ""
        if not 0 < len(tag) <= LONGEST_TAG or not tag.isprintable() or "," in tag:
            raise ConfigError(TAGS_OPTION, value, _TAGS_REMEDY)
        tags[tag] = None
    if len(tags) > MOST_TAGS:
        raise ConfigError(TAGS_OPTION, value, _TAGS_REMEDY)
    return tuple(tags)


def check_options(options: dict[str, Any]) -> tuple[int | None, tuple[str, ...]]:
    """Own budget (None: none asked for) and tags from a request's options, whatever else is among them.

    Raises:
        ConfigError: an option that begins with PREFIX is unknown or cannot be read.
    """
    for name, value in options.items():
        if name.startswith(PREFIX) and name not in (BUDGET_OPTION, TAGS_OPTION):
            remedy = f"no such request option; there are {BUDGET_OPTION} and {TAGS_OPTION}"
            raise ConfigError(name, value, remedy)
    own = parse_budget(options[BUDGET_OPTION]) if BUDGET_OPTION in options else None
    return own, parse_tags(options.get(TAGS_OPTION))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds for one request until the next revision of the policy."""

    rule: str | None
    """Name of the rule that matched."""
    policy: int
    """0: the policy itself; i + 1: number i of the policies that rules name."""
    keep: int
    """Resident tokens after a round; 0: never compressed."""
    trigger: int
    """Resident tokens at which a round fires; 0: none ever does."""


@dataclass(frozen=True, slots=True)
class Case:
    """A policy with a budget that some requests will get; ``field`` names where it was asked for."""

    field: str
    policy: int
    budget: int


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    least: int | None
    most: int | None
    tags: frozenset[str]
    budget: int | None
    policy: int


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy, the policies beside it and the rules between them, bound to an engine's block size."""

    budgetings: tuple[Budgeting, ...]
    """Of the policy itself, then of the policies that rules name."""
    rules: tuple[_Rule, ...] = ()

    @classmethod
    def of(cls, message: _SetPolicy, block_size: int) -> Rules:
        """Take the integers out of a SetPolicy message, or of anything with its policy, rules and policies.

        Raises:
            ConfigError: a budget cannot hold the pinned tokens and one block, or a rule cannot work.
        """
        budgetings = [Budgeting.of(message.policy, block_size)]
        for number, policy in enumerate(message.policies):
            budgetings.append(Budgeting.of(policy, block_size, f"policies[{number}].budget"))
        rules: list[_Rule] = []
        for number, rule in enumerate(message.rules):
            field = f"rules[{number}]"
            index = 0 if rule.policy is None else rule.policy + 1
            if index >= len(budgetings):
                remedy = f"no such policy: {len(message.policies)} came with the rules, numbered from 0"
                raise ConfigError(f"{field}.policy", rule.policy, remedy)
            if rule.budget is not None:
                budgetings[index].check(f"{field}.budget", rule.budget)
            least, most = rule.min_priority, rule.max_priority
            if least is not None and most is not None and least > most:
                remedy = f"must not exceed maxPriority = {most}, or the rule matches nothing"
                raise ConfigError(f"{field}.minPriority", least, remedy)
            if any(rule.name == other.name for other in rules):
                raise ConfigError(
                    f"{field}.name", rule.name, "another rule has this name; rename one of them"
                )
            rules.append(_Rule(rule.name, least, most, frozenset(rule.tags), rule.budget, index))
        return cls(tuple(budgetings), tuple(rules))

    def cases(self) -> Iterator[Case]:
        """Every policy and budget that a request without a budget of its own can get."""
        yield Case("budget", 0, self.budgetings[0].budget)
        for number, rule in enumerate(self.rules):
            own = self.budgetings[rule.policy].budget
            if rule.budget is not None:
                yield Case(f"rules[{number}].budget", rule.policy, rule.budget)
            elif rule.policy:
                yield Case(f"policies[{rule.policy - 1}].budget", rule.policy, own)

    def largest_trigger(self) -> int:
        """Most resident tokens, prompt not counted where a policy does not count it, at which a round fires."""
        return max(self.budgetings[case.policy].trigger(0, case.budget) for case in self.cases())

    def match(self, priority: int, tags: Sequence[str]) -> _Rule | None:
        """The first rule for a request of this priority number and these tags."""
        for rule in self.rules:
            if rule.least is not None and priority < rule.least:
                continue
            if rule.most is not None and priority > rule.most:
                continue
            if rule.tags.issubset(tags):
                return rule
        return None

    def decide(self, prompt_len: int, own: int | None, priority: int, tags: Sequence[str]) -> Verdict:
        """What holds for a request of ``prompt_len`` tokens that asks for the budget ``own`` (None: for none).

        A budget of its own that is too small for the policy that a rule gives it counts as the smallest that
        works there: whoever checked the request could not know the rule.
        """
        rule = self.match(priority, tags) if self.rules else None
        index = 0 if rule is None else rule.policy
        budgeting = self.budgetings[index]
        budget = own
        if own:
            budget = max(own, budgeting.minimum)
        elif own is None and rule is not None:
            budget = rule.budget
        return Verdict(
            None if rule is None else rule.name,
            index,
            budgeting.target(prompt_len, budget),
            budgeting.trigger(prompt_len, budget),
        )
