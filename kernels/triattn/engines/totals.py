"""What engines count, and the limits of what they report."""

from __future__ import annotations

from dataclasses import dataclass

REPORT_SECONDS = 0.5
"""Interval of reports to the control plane."""
MOST_REQUESTS = 4096
"""In one report, as in the protocol."""
LONGEST_ID = 512
"""Characters of a request's id in a report; a client that chooses longer ones is left out and counted."""
SAFE_INTEGER = 2**53 - 1
"""Largest priority in a report: what every reader's numbers hold exactly."""


@dataclass(slots=True)
class Totals:
    """Since the engine started; seconds are of the process that counts but for ``round_seconds``."""

    step: int = 0
    peak_resident: int = 0
    peak_blocks: int = 0
    resident: int = 0
    tokens_generated: int = 0
    finished: int = 0
    preemptions: int = 0
    rounds: int = 0
    evicted: int = 0
    reclaimed: int = 0
    skipped: int = 0
    batches: int = 0
    """Steps in which at least one round ran."""
    plan_seconds: float = 0.0
    round_seconds: float = 0.0
    """Of the worker whose output the scheduler reads."""
