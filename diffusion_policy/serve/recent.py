"""A cache of what was computed from the latest pictures, by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The most recently used values; the least recently used one is evicted first.

    Args:
        capacity: number of values that are kept.
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
