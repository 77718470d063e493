"""Errors that a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triattn import wire


class ConfigError(ValueError):
    """A setting that cannot be used: which one, what was given, and what would be accepted."""

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field} = {_shown(value)}: {remedy}")

    def __reduce__(self):  # the default would call __init__ with the text alone
        return type(self), (self.field, self.value, self.remedy)


class LinkError(RuntimeError):
    """The control plane gave no policy to start with."""


class LinkTimeout(LinkError):
    """No control plane answered in time."""


class LinkRejected(LinkError):
    """The control plane will not serve this engine."""


class PolicyRefused(LinkError):
    """This engine cannot use the first policy it was given; `refusal` says why."""

    def __init__(self, refusal: wire.Refusal) -> None:
        super().__init__(f"{refusal.field_} = {refusal.value}: {refusal.remedy}")
        self.refusal = refusal


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
