"""Who gets which policy and budget, by property."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triattn import wire
from triattn.config import preset
from triattn.errors import ConfigError
from triattn.rules import LARGEST_BUDGET, MOST_TAGS, Rules, Verdict, check_options, parse_tags

BLOCK = 32


def document(**changes: Any) -> wire.PolicyDocument:
    return msgspec.structs.replace(preset("random"), **changes)


def rule(name: str = "r", **given: Any) -> wire.EngineRule:
    empty = {"min_priority": None, "max_priority": None, "tags": [], "budget": None, "policy": None}
    return wire.EngineRule(name=name, **{**empty, **given})


def message(
    rules: list[wire.EngineRule], policies: tuple[wire.PolicyDocument, ...] = (), **changes: Any
) -> wire.SetPolicy:
    return wire.SetPolicy(
        revision=1, policy=document(**changes), statistics=None, rules=rules, policies=list(policies)
    )


priorities = st.one_of(st.none(), st.integers(-5, 5))
tag_lists = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=3)


@st.composite
def messages(draw: st.DrawFn) -> wire.SetPolicy:
    policies = draw(
        st.lists(
            st.builds(
                document,
                budget=st.sampled_from([0, 512, 1024]),
                interval=st.integers(1, 200),
                count_prompt=st.booleans(),
            ),
            max_size=3,
        )
    )
    rules = []
    for number in range(draw(st.integers(0, 6))):
        least, most = draw(priorities), draw(priorities)
        if least is not None and most is not None and least > most:
            least, most = most, least
        rules.append(
            rule(
                f"r{number}",
                min_priority=least,
                max_priority=most,
                tags=draw(tag_lists),
                budget=draw(st.one_of(st.none(), st.sampled_from([0, 256, 4096]))),
                policy=draw(st.one_of(st.none(), st.integers(0, len(policies) - 1))) if policies else None,
            )
        )
    return message(rules, policies, budget=2048)


@given(
    messages(),
    st.integers(1, 5000),
    st.one_of(st.none(), st.integers(0, 5000)),
    st.integers(-6, 6),
    tag_lists,
)
def test_against_the_rule_read_aloud(
    sent: wire.SetPolicy, prompt: int, own: int | None, priority: int, tags: list[str]
) -> None:
    verdict = Rules.of(sent, BLOCK).decide(prompt, own, priority, tags)
    found = [
        r
        for r in sent.rules
        if (r.min_priority is None or r.min_priority <= priority)
        and (r.max_priority is None or priority <= r.max_priority)
        and set(r.tags) <= set(tags)
    ]
    first = found[0] if found else None
    assert verdict.rule == (first and first.name)
    index = None if first is None else first.policy
    policy = sent.policy if index is None else sent.policies[index]
    assert verdict.policy == (0 if index is None else index + 1)
    budget = policy.budget
    if own is not None:
        budget = own and max(own, policy.pin.sinks + policy.pin.window + BLOCK)
    elif first is not None and first.budget is not None:
        budget = first.budget
    keep = budget and budget + (0 if policy.count_prompt else prompt)
    assert (verdict.keep, verdict.trigger) == (keep, keep and keep + policy.interval)


@given(messages(), st.integers(-6, 6), tag_lists)
def test_every_verdict_is_one_of_the_cases(sent: wire.SetPolicy, priority: int, tags: list[str]) -> None:
    rules = Rules.of(sent, BLOCK)
    verdict = rules.decide(0, None, priority, tags)
    assert (verdict.policy, verdict.keep) in {(c.policy, c.budget) for c in rules.cases()}
    assert verdict.trigger <= rules.largest_trigger()


def test_without_rules_the_policy_holds() -> None:
    rules = Rules.of(message([]), BLOCK)
    assert rules.decide(10, None, 7, ("a",)) == Verdict(None, 0, 2048, 2048 + 128)
    assert rules.decide(10, 0, 0, ()) == Verdict(None, 0, 0, 0)


@pytest.mark.parametrize(
    ("sent", "field", "value"),
    [
        (message([rule(policy=0)]), "rules[0].policy", 0),
        (message([rule("a"), rule("b", policy=1)], (document(),)), "rules[1].policy", 1),
        (message([rule(budget=100)]), "rules[0].budget", 100),
        (
            message([rule(budget=600, policy=0)], (document(pin=wire.Pin(window=700)),)),
            "rules[0].budget",
            600,
        ),
        (message([], (document(budget=100),)), "policies[0].budget", 100),
        (message([rule(min_priority=2, max_priority=1)]), "rules[0].minPriority", 2),
        (message([rule("x"), rule("x")]), "rules[1].name", "x"),
        (message([], budget=1), "budget", 1),
    ],
)
def test_rules_that_cannot_work_are_named(sent: wire.SetPolicy, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Rules.of(sent, BLOCK)
    assert (caught.value.field, caught.value.value) == (field, value)


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (None, ()),
        ("", ()),
        (" ", ()),
        ("batch", ("batch",)),
        (" batch, low ,batch", ("batch", "low")),
        (["b", "a"], ("b", "a")),
        ([], ()),
        ("ü-1", ("ü-1",)),
    ],
)
def test_tags(value: object, tags: tuple[str, ...]) -> None:
    assert parse_tags(value) == tags


@pytest.mark.parametrize(
    "value",
    [
        5,
        True,
        {"a": 1},
        "a,,b",
        ",",
        "x" * 65,
        ["a", 1],
        ["a,b"],
        ["a\nb"],
        [""],
        [["a"]],
        ",".join(f"t{i}" for i in range(MOST_TAGS + 1)),
    ],
)
def test_what_is_no_tag_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"triattn_tags = .*: must be up to 16 tags"):
        parse_tags(value)


@given(st.lists(st.text(min_size=1, max_size=64), max_size=20))
def test_tags_that_are_taken_can_be_matched(parts: list[str]) -> None:
    try:
        tags = parse_tags(parts)
    except ConfigError:
        return
    assert parse_tags(",".join(tags)) == tags
    assert len(tags) <= MOST_TAGS
    if tags:
        assert Rules.of(message([rule(tags=list(tags))]), BLOCK).match(0, tags) is not None


def test_options() -> None:
    assert check_options({"other": 1}) == (None, ())
    assert check_options({"triattn_budget": 512, "triattn_tags": "a"}) == (512, ("a",))
    assert check_options({"triattn_budget": LARGEST_BUDGET}) == (LARGEST_BUDGET, ())
    with pytest.raises(ConfigError, match="there are triattn_budget and triattn_tags"):
        check_options({"triattn_tag": "a"})
