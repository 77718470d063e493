"""Interpreter of reference_env.json, the table of the reference plugin's environment variables.

packages/control/src/reference-env.ts reads the same table; test/vectors/reference_env.json holds both to it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from triattn.errors import ConfigError

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def boolean(name: str, text: str) -> bool:
    """Raises ConfigError for anything but 1, true, yes, on, 0, false, no and off."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ConfigError(name, text, "true or false")


def from_reference(
    table: Mapping[str, Any], variables: Mapping[str, str]
) -> tuple[dict[str, Any], str | None, list[str]]:
    """The policy document, the statistics path and warnings for `variables` (names with the prefix).

    What a variable does not say keeps the reference's default, not this project's.
    """
    prefix = table["prefix"]
    document = copy.deepcopy(table["base"])
    beside: dict[str, str] = {}
    warnings: list[str] = []
    for row in table["rows"]:
        name = prefix + row["variable"]
        if name not in variables:
            continue
        text = variables[name].strip()
        if row["type"] == "integer":
            _assign(document, row["field"], _integer(name, text))
        elif row["type"] == "string":
            beside[row["field"]] = text
        elif row["type"] == "ignored":
            if not any(_same(text, silent) for silent in row["silent"]):
                warnings.append(f"{name}={text} has no effect: {row['reason']}")
        else:
            for field, value in _chosen(name, text, row, document).items():
                _assign(document, field, value)
    known = {prefix + row["variable"] for row in table["rows"]}
    for name in sorted(set(variables) - known):
        warnings.append(f"{name} is not known and has no effect")
    return document, beside.get("statistics"), warnings


def _chosen(name: str, text: str, row: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    if row["type"] == "boolean":
        key = "true" if boolean(name, text) else "false"
    else:
        key = text.lower()
        refused = row.get("refused", {})
        if key in refused:
            raise ConfigError(name, text, refused[key])
        if key not in row["set"]:
            raise ConfigError(name, text, f"one of {', '.join(row['set'])}")
    for field, value in row.get("when", {}).items():
        if document[field] != value:
            return {}
    return row["set"][key]


def _integer(name: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15):
        raise ConfigError(name, text, "a whole number")
    return int(text)


def _same(text: str, silent: str) -> bool:
    for words in (_TRUE, _FALSE):
        if silent in words:
            return text.lower() in words
    return text == silent


def _assign(document: dict[str, Any], field: str, value: Any) -> None:
    """`a.b` is a path; `terms.KIND.FIELD` addresses the term of that kind; None removes a term."""
    path = field.split(".")
    if path[0] == "terms":
        kept = [term for term in document["terms"] if term["kind"] != path[1] or value is not None]
        for term in kept:
            if term["kind"] == path[1]:
                term[path[2]] = value
        document["terms"] = kept
        return
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
