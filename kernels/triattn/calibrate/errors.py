"""The error of calibration."""

from __future__ import annotations

from triattn.errors import ConfigError


class CalibrationError(ConfigError):
    """A model or text that cannot be measured: `field` has `value`; `remedy` says what to do."""
