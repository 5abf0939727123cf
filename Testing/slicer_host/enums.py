"""Flat enums: qt.Qt.AlignLeft instead of Qt.AlignmentFlag.AlignLeft, and values that are ints."""

from __future__ import annotations

import enum
from functools import cache
from typing import Any


class EnumInt(int):
    """An int that remembers the PySide enum member it stands for."""

    member: enum.Enum

    def __new__(cls, member: enum.Enum) -> EnumInt:
        value = super().__new__(cls, member.value)
        value.member = member
        return value

    def _combine(self, other: Any, operation: str) -> int:
        if isinstance(other, EnumInt) and type(other.member) is type(self.member):
            joined = getattr(type(self.member), operation, None)
            if joined is not None:
                return EnumInt(joined(self.member, other.member))
        return getattr(int, operation)(int(self), int(other))

    def __or__(self, other: Any) -> int:
        return self._combine(other, "__or__")

    def __and__(self, other: Any) -> int:
        return self._combine(other, "__and__")

    def __repr__(self) -> str:
        return f"{self.member.name} (={int(self)})"

    __str__ = int.__repr__


@cache
def flat_enums(real_class: type) -> dict[str, EnumInt]:
    """The enum values of a class and its bases, by their bare names."""
    found: dict[str, EnumInt] = {}
    for name in dir(real_class):
        kind = getattr(real_class, name, None)
        if isinstance(kind, enum.EnumMeta):
            for value_name, member in kind.__members__.items():
                if isinstance(member.value, int):
                    found.setdefault(value_name, EnumInt(member))
    return found
