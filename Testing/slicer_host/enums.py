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

    def __or__(self, other: Any) -> int:
        is_flag = isinstance(self.member, enum.Flag) and isinstance(other, EnumInt)
        if is_flag and type(other.member) is type(self.member):
            return EnumInt(self.member | other.member)
        return int(self) | int(other)

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
