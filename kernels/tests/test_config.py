"""Settings: which source wins, what is refused and how the error reads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triattn import wire
from triattn.config import ConfigError, load_settings, parse_policy, preset, reference_table
from triattn.reference_env import from_reference

VECTORS = Path(__file__).parents[2] / "test" / "vectors"
RANDOM = {"name": "mine", "terms": [{"kind": "random"}]}


def test_nothing_turns_it_on() -> None:
    assert load_settings({}, None) is None
    assert load_settings({"TRIATTN_STATS": "x", "TRIATTN_SOCKET": " "}, {"other": 1}) is None


def test_socket_wins_and_names_what_it_overrides() -> None:
    settings = load_settings(
        {"TRIATTN_SOCKET": "ipc:///run/s", "TRIATTN_RUNTIME_KV_BUDGET": "1"},
        {"triattn": {"policy": "random"}},
    )
    assert settings is not None
    assert (settings.source, settings.socket, settings.policy) == ("socket", "ipc:///run/s", None)
    assert [warning.split(":")[0] for warning in settings.warnings] == [
        "additional_config.triattn is not read",
        "TRIATTN_RUNTIME_KV_BUDGET",
    ]


def test_socket_with_the_policy_to_start_with() -> None:
    settings = load_settings({"TRIATTN_SOCKET": "ipc:///run/s", "TRIATTN_POLICY": "keydiff"}, None)
    assert settings is not None
    assert settings.policy == preset("keydiff")
    assert settings.warnings == []


def test_additional_config() -> None:
    settings = load_settings(
        {"TRIATTN_STATS": "/a"}, {"triattn": {"policy": "streaming", "budget": 640, "interval": 64}}
    )
    assert settings is not None and settings.policy is not None
    assert (settings.source, settings.statistics) == ("additional_config", "/a")
    assert settings.policy == msgspec.structs.replace(preset("streaming"), budget=640, interval=64)
    named = load_settings({"TRIATTN_STATS": "/a"}, {"triattn": {"statistics": "/b"}})
    assert named is not None
    assert named.statistics == "/b"
    assert named.policy == preset("auto")


@pytest.mark.parametrize("form", ["name", "inline", "file"])
def test_policy_variable(form: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(RANDOM))
    value = {"name": "random", "inline": json.dumps(RANDOM), "file": str(file)}[form]
    settings = load_settings({"TRIATTN_POLICY": value, "TRIATTN_STATS": "/s"}, None)
    assert settings is not None and settings.policy is not None
    assert settings.policy.terms == [wire.RandomTerm()]
    assert (settings.policy.budget, settings.policy.pin, settings.statistics) == (2048, wire.Pin(), "/s")


BAD: list[tuple[dict[str, str], Any, str, str]] = [
    ({}, {"policy": "nope"}, "policy", "one of auto, blend"),
    ({}, {"policy": 3}, "policy", "a preset"),
    ({}, [], "additional_config.triattn", "a mapping"),
    ({}, {"polcy": "random"}, "additional_config.triattn.polcy", "policy, budget, interval, statistics"),
    ({}, {"statistics": 1}, "additional_config.triattn.statistics", "path"),
    ({}, {"budget": -1}, "policy.budget", "Expected `int` >= 0"),
    ({}, {"budget": 100}, "policy.budget", "at least pin.sinks + pin.window = 132"),
    ({}, {"budget": True}, "policy.budget", "Expected `int`"),
    ({}, {"policy": {**RANDOM, "budgets": 1}}, "policy", "unknown field `budgets`"),
    ({}, {"policy": {"name": "a"}}, "policy", "missing required field `terms`"),
    ({}, {"policy": {**RANDOM, "terms": [{"kind": "h2o"}]}}, "policy.terms.0.kind", "Invalid value 'h2o'"),
    ({}, {"policy": {**RANDOM, "name": "a\n"}}, "policy.name", "matching regex"),
    ({}, {"policy": {**RANDOM, "pin": {"sinks": "4"}}}, "policy.pin.sinks", "Expected `int`, got `str`"),
    ({}, {"policy": {**RANDOM, "schema": 2}}, "policy.schema", "Invalid"),
    ({"TRIATTN_POLICY": "/no/such.json"}, None, "TRIATTN_POLICY", "can be read"),
    ({"TRIATTN_POLICY": "nope"}, None, "TRIATTN_POLICY", "one of auto, blend"),
    ({"TRIATTN_POLICY": "{"}, None, "TRIATTN_POLICY", "valid JSON"),
    ({"TRIATTN_SOCKET": "http://x"}, None, "TRIATTN_SOCKET", "ipc:// or tcp://"),
    ({"TRIATTN_SOCKET": "tcp://x:1"}, None, "TRIATTN_CURVE_SERVER_KEY", "CURVE key"),
    ({"TRIATTN_RUNTIME_KV_BUDGET": "many"}, None, "TRIATTN_RUNTIME_KV_BUDGET", "a whole number"),
    ({"TRIATTN_RUNTIME_KV_BUDGET": "64"}, None, "TRIATTN_RUNTIME_KV_BUDGET", "at least"),
    ({"ENABLE_TRIATTENTION": "maybe"}, None, "ENABLE_TRIATTENTION", "true or false"),
]


@pytest.mark.parametrize(("environ", "additional", "field", "remedy"), BAD)
def test_one_clear_error(environ: dict[str, str], additional: Any, field: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ, None if additional is None else {"triattn": additional})
    assert caught.value.field == field
    assert remedy in caught.value.remedy
    assert str(caught.value).startswith(f"{field} = ")
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_curve_secret_stays_out_of_sight() -> None:
    keys = {f"TRIATTN_CURVE_{name}_KEY": name[0].lower() * 40 for name in ("SERVER", "PUBLIC", "SECRET")}
    settings = load_settings({"TRIATTN_SOCKET": "tcp://host:1", **keys}, None)
    assert settings is not None and settings.curve is not None
    assert settings.curve.public_key == "p" * 40
    assert "s" * 40 not in repr(settings).replace(settings.curve.server_key, "", 1)
    keys["TRIATTN_CURVE_SECRET_KEY"] = "short secret"
    with pytest.raises(ConfigError) as caught:
        load_settings({"TRIATTN_SOCKET": "tcp://host:1", **keys}, None)
    assert "short" not in str(caught.value)


REFERENCE = json.loads((VECTORS / "reference_env.json").read_text("utf-8"))


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: case["name"])
def test_reference_variables(case: dict[str, Any]) -> None:
    """The same vectors hold packages/control/src/reference-env.ts."""
    if "error" in case:
        with pytest.raises(ConfigError) as caught:
            load_settings(case["environment"], None)
        assert caught.value.field == case["error"]
        return
    settings = load_settings(case["environment"], None)
    if case["policy"] is None:
        assert settings is None
        return
    assert settings is not None
    assert msgspec.to_builtins(settings.policy) == case["policy"]
    assert (settings.statistics, settings.warnings) == (case["statistics"], case["warnings"])


def test_reference_table_covers_every_row() -> None:
    """Every row is exercised by a vector."""
    table = reference_table()
    named = {name for case in REFERENCE for name in case["environment"]}
    assert {table["prefix"] + row["variable"] for row in table["rows"]} <= named


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4))
def test_unknown_reference_variables_are_named(extra: dict[str, str]) -> None:
    table = reference_table()
    variables = {f"TRIATTN_RUNTIME_X{name}": value for name, value in extra.items() if value.strip()}
    document, statistics, warnings = from_reference(table, variables)
    assert document == table["base"]
    assert statistics is None
    assert len(warnings) == len(variables)


@given(
    budget=st.integers(-10, 2**25),
    interval=st.integers(-10, 2**21),
    sinks=st.integers(-1, 70000),
    window=st.integers(-1, 2**21),
)
def test_policies_are_whole_or_refused(budget: int, interval: int, sinks: int, window: int) -> None:
    document = {**RANDOM, "budget": budget, "interval": interval, "pin": {"sinks": sinks, "window": window}}
    fits = 0 <= budget <= 16777216 and 1 <= interval <= 1048576
    fits = fits and 0 <= sinks <= 65536 and 0 <= window <= 1048576
    if fits and (budget == 0 or budget >= sinks + window):
        policy = parse_policy(document)
        assert (policy.budget, policy.interval, policy.pin.sinks) == (budget, interval, sinks)
        assert policy.pin.prompt is True
    else:
        with pytest.raises(ConfigError):
            parse_policy(document)


def test_queries_that_are_kept_for_policies_that_observe() -> None:
    def kept(policy: object, asked: str | None = None) -> int:
        environ = {} if asked is None else {"TRIATTN_OBSERVED_QUERIES": asked}
        settings = load_settings(environ, {"triattn": {"policy": policy}})
        assert settings is not None
        return settings.queries

    reserve = {"share": 0.5, "terms": [{"kind": "observed", "window": 4}]}
    mixed = {"name": "m", "terms": [{"kind": "keydiff"}], "normalize": "each", "reserve": reserve}
    assert [kept(p) for p in ("keydiff", "snapkv", "rkv", "h2o", mixed)] == [0, 32, 8, 128, 4]
    assert [kept(p, "16") for p in ("keydiff", "snapkv")] == [16, 32]
    for text in ("many", "-1", "1025"):
        with pytest.raises(ConfigError, match=f"TRIATTN_OBSERVED_QUERIES = '?{text}'?: a number of queries"):
            kept("keydiff", text)
