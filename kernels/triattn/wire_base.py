"""Base of the generated messages."""

from msgspec import Struct


class Strict(Struct, frozen=True, forbid_unknown_fields=True):
    """A message is a value, and a field that its schema does not have is an error."""
