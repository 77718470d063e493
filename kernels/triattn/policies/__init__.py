"""Policies: score terms, their combination and the selection, in plain torch."""

from triattn.policies.context import ModelShape, QueryStatistics, Round
from triattn.policies.errors import PolicyError
from triattn.policies.policy import Policy

__all__ = ["ModelShape", "Policy", "PolicyError", "QueryStatistics", "Round"]
