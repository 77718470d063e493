"""The error of a policy that cannot work."""

from __future__ import annotations

from triattn.errors import ConfigError


class PolicyError(ConfigError):
    """A policy that this model or this rank cannot carry out. Names the field, the value and the remedy."""
