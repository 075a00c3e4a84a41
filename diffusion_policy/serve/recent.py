"""What was worked out of the latest pictures, found again by a key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values that were stored or asked for last; the one that was not for longest goes first.

    Args:
        capacity: how many are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[bytes, Value] = OrderedDict()

    def get(self, key: bytes) -> Value | None:
        """The value of a key; None if it is not kept."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def update(self, entries: Mapping[bytes, Value]) -> None:
        """Keep values."""
        self._values.update(entries)
        while len(self._values) > self._capacity:
            self._values.popitem(last=False)
