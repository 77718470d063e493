"""Settings of the plugin inside an engine: where its policy comes from, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from triattn import wire
from triattn.errors import ConfigError
from triattn.reference_env import boolean, from_reference

SOCKET = "TRIATTN_SOCKET"
POLICY = "TRIATTN_POLICY"
STATISTICS = "TRIATTN_STATS"
QUERIES = "TRIATTN_OBSERVED_QUERIES"
CURVE_SERVER = "TRIATTN_CURVE_SERVER_KEY"
CURVE_PUBLIC = "TRIATTN_CURVE_PUBLIC_KEY"
CURVE_SECRET = "TRIATTN_CURVE_SECRET_KEY"

_ADDITIONAL_KEYS = ("policy", "budget", "interval", "statistics")


@dataclass(frozen=True)
class Curve:
    """CURVE keys of a tcp link, each 40 characters of Z85 text."""

    server_key: str
    public_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True)
class Settings:
    """How this engine was asked to run.

    Without ``socket`` the policy is fixed for the run. With it the control plane gives the policy, and
    ``policy``, if any, is what the engine prepares for while it starts.
    """

    policy: wire.PolicyDocument | None
    statistics: str | None
    socket: str | None
    source: str
    """``socket``, ``additional_config``, ``TRIATTN_POLICY`` or ``TRIATTN_RUNTIME_*``."""
    warnings: list[str] = field(default_factory=list)
    curve: Curve | None = None
    queries: int = 0
    """Last queries of every request that the engine keeps for policies that observe attention."""


def load_settings(
    environ: Mapping[str, str], additional_config: Mapping[str, Any] | None = None
) -> Settings | None:
    """Settings from a control plane's socket, the engine's ``additional_config["triattn"]``,
    ``TRIATTN_POLICY`` or the reference's ``TRIATTN_RUNTIME_*``, the first of these that is there.

    Returns None when nothing turns the plugin on; the engine must then be left as it is.
    ``warnings`` names what was given and is not used. ``queries`` is as many as the policy observes, or as
    TRIATTN_OBSERVED_QUERIES asks for, so that policies can come that observe.

    Raises ConfigError for a value that cannot be used.
    """
    settings = _load(environ, additional_config)
    if settings is None:
        return None
    start = 0 if settings.policy is None else queries_observed(settings.policy)
    return replace(settings, queries=max(start, _queries(environ.get(QUERIES, "").strip())))


def queries_observed(policy: wire.PolicyDocument) -> int:
    """Most recent queries of a request that a policy looks at."""
    return max(
        (
            term.window
            for term in _all_terms(policy)
            if isinstance(term, wire.ObservedTerm | wire.AccumulatedTerm)
        ),
        default=0,
    )


def _all_terms(policy: wire.PolicyDocument) -> list[wire.ScoreTerm]:
    """A policy's own terms, then the reserve's."""
    return policy.terms + (policy.reserve.terms if policy.reserve else [])


MOST_QUERIES = 1024
"""Longest window of a term that looks at queries (``accumulated``)."""


def _queries(text: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) > MOST_QUERIES:
        raise ConfigError(QUERIES, text, f"a number of queries from 0 to {MOST_QUERIES}")
    return int(text)


def _load(environ: Mapping[str, str], additional_config: Mapping[str, Any] | None) -> Settings | None:
    table = reference_table()
    prefix = table["prefix"]
    reference = {name: value for name, value in environ.items() if name.startswith(prefix) and value.strip()}
    additional = (additional_config or {}).get("triattn")
    given = {
        SOCKET: environ.get(SOCKET, "").strip(),
        "additional_config.triattn": additional,
        POLICY: environ.get(POLICY, "").strip(),
    }
    source = next((name for name, value in given.items() if value not in ("", None)), None)
    warnings = [
        f"{name} is not read: {source} gives the policy"
        for name, value in given.items()
        if value not in ("", None) and name != source and (source, name) != (SOCKET, POLICY)
    ]
    if source is not None and reference:
        names = ", ".join(sorted(reference))
        warnings.append(f"{names}: not read, {source} gives the policy")

    statistics = environ.get(STATISTICS, "").strip() or None
    if source == SOCKET:
        policy = _from_variable(given[POLICY]) if given[POLICY] else None
        return Settings(policy, statistics, given[SOCKET], "socket", warnings, _curve(environ, given[SOCKET]))
    if source == "additional_config.triattn":
        policy, named = _from_additional(additional)
        return Settings(policy, named or statistics, None, "additional_config", warnings)
    if source == POLICY:
        return Settings(_from_variable(given[POLICY]), statistics, None, POLICY, warnings)

    switch = environ.get(table["switch"], "").strip()
    enabled = boolean(table["switch"], switch) if switch else None
    if enabled is False or (enabled is None and not reference):
        return None
    document, named, unused = from_reference(table, reference)
    try:
        policy = parse_policy(document)
    except ConfigError as error:
        for row in table["rows"]:
            name = prefix + row["variable"]
            if error.field == f"policy.{row.get('field')}" and name in reference:
                raise ConfigError(name, reference[name], error.remedy) from None
        raise
    return Settings(policy, named or statistics, None, f"{prefix}*", warnings + unused)


def parse_policy(document: Any) -> wire.PolicyDocument:
    """A complete policy from a document given in part: a mapping with the wire's camelCase names.

    Raises ConfigError naming the field, its value and what would be accepted.
    """
    if not isinstance(document, Mapping):
        raise ConfigError("policy", document, f"a preset ({_names()}) or a document with name and terms")
    try:
        policy = msgspec.convert(document, wire.PolicyDocument)
    except msgspec.ValidationError as error:
        raise _explain(error, document) from None
    check_policy(policy)
    return policy


def check_policy(policy: wire.PolicyDocument) -> None:
    """Raises ConfigError when the policy contradicts itself, whatever the engine."""
    pinned = policy.pin.sinks + policy.pin.window
    if 0 < policy.budget < pinned:
        remedy = f"at least pin.sinks + pin.window = {pinned}, or 0 to never compress"
        raise ConfigError("policy.budget", policy.budget, remedy)
    if (policy.reserve is not None or policy.learned) and policy.normalize != "each":
        remedy = "must be each where a reserve is given or weights are learned: scores need one unit"
        raise ConfigError("policy.normalize", policy.normalize, remedy)
    terms = _all_terms(policy)
    if policy.statistics == "optional" and all(isinstance(t, wire.TrigTerm | wire.NormTerm) for t in terms):
        remedy = "must be required where every term needs them"
        raise ConfigError("policy.statistics", policy.statistics, remedy)
    for term in terms:
        if isinstance(term, wire.AccumulatedTerm) and term.window < policy.interval:
            remedy = (
                f"must not exceed the window of the term accumulated, {term.window}: queries between rounds would be "
                "left out"
            )
            raise ConfigError("policy.interval", policy.interval, remedy)


def preset(name: str) -> wire.PolicyDocument:
    """The complete document of a named policy. Raises ConfigError for a name that is not there."""
    document = _presets().get(name)
    if document is None:
        raise ConfigError("policy", name, f"one of {_names()}")
    return msgspec.convert(document, wire.PolicyDocument)


@cache
def reference_table() -> dict[str, Any]:
    return json.loads(files("triattn").joinpath("reference_env.json").read_text("utf-8"))


@cache
def _presets() -> dict[str, Any]:
    return json.loads(files("triattn").joinpath("presets.json").read_text("utf-8"))


def _names() -> str:
    return ", ".join(sorted(_presets()))


def _from_additional(config: Any) -> tuple[wire.PolicyDocument, str | None]:
    where = "additional_config.triattn"
    if not isinstance(config, Mapping):
        raise ConfigError(where, config, f"a mapping with {', '.join(_ADDITIONAL_KEYS)}")
    for key in config:
        if key not in _ADDITIONAL_KEYS:
            raise ConfigError(f"{where}.{key}", config[key], f"one of the keys {', '.join(_ADDITIONAL_KEYS)}")
    statistics = config.get("statistics")
    if statistics is not None and not (isinstance(statistics, str) and statistics):
        raise ConfigError(f"{where}.statistics", statistics, "the path of a statistics file")
    chosen = config.get("policy", "auto")
    policy = preset(chosen) if isinstance(chosen, str) else parse_policy(chosen)
    changes = {key: config[key] for key in ("budget", "interval") if key in config}
    return parse_policy({**msgspec.to_builtins(policy), **changes}), statistics


def _from_variable(text: str) -> wire.PolicyDocument:
    if text in _presets():
        return preset(text)
    if not text.startswith("{"):
        if not text.endswith(".json"):
            raise ConfigError(POLICY, text, f"one of {_names()}, a JSON document or the path of a .json file")
        try:
            with open(text, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(POLICY, text, f"a JSON file that can be read ({error})") from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(POLICY, text, f"valid JSON ({error})") from None
    return parse_policy(document)


def _curve(environ: Mapping[str, str], endpoint: str) -> Curve | None:
    if endpoint.startswith("ipc://"):
        return None
    if not endpoint.startswith("tcp://"):
        raise ConfigError(SOCKET, endpoint, "an address that begins with ipc:// or tcp://")
    keys = []
    for name in (CURVE_SERVER, CURVE_PUBLIC, CURVE_SECRET):
        key = environ.get(name, "")
        if len(key) != 40:
            # The secret key must not end up in a log.
            shown = "unset" if not key else f"{len(key)} characters"
            raise ConfigError(name, shown, "a CURVE key of 40 characters: tcp is never used without")
        keys.append(key)
    return Curve(*keys)


def _explain(error: msgspec.ValidationError, document: Mapping[str, Any]) -> ConfigError:
    """msgspec says "MESSAGE - at `$.terms[0].weight`"; the value at that path completes it."""
    message, _, path = str(error).partition(" - at `$")
    steps = path.rstrip("`").replace("[", ".").replace("]", "").strip(".")
    value: Any = document
    for step in filter(None, steps.split(".")):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, (list, tuple)) and step.isdigit():
            value = value[int(step)]
    return ConfigError(f"policy.{steps}" if steps else "policy", value, message)
