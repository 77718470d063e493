"""The fingerprint that ties statistics to the model they were measured on.

The first 32 hexadecimal digits of the SHA-256 of a canonical JSON text: keys sorted, no spaces, whole numbers
without a point, other numbers as their shortest decimal. packages/control/src/stats/fingerprint.ts is the
same in TypeScript; test/vectors/fingerprints.json holds both to it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def canonical_json(value: Any) -> str:
    """`value` as the JSON text that fingerprints are taken over; ASCII keys and strings, finite numbers
    only."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(k)}:{canonical_json(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return str(int(value)) if value == int(value) else format(Decimal(repr(value)), "f")
    return json.dumps(value)


def fingerprint(value: Mapping[str, Any]) -> str:
    """Fingerprint (32 hexadecimal digits) of an `identity`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]
