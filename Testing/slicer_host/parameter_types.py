"""How typed parameters are checked and kept as strings and references of a vtkMRMLScriptedModuleNode."""

from __future__ import annotations

import collections.abc
import enum
import pathlib
import typing
from typing import Any

import slicer


class Validator:
    """Base of the annotations that check a value."""

    def validate(self, value: Any) -> None:
        raise NotImplementedError


class WithinRange(Validator):
    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


class Minimum(Validator):
    def __init__(self, minimum: float) -> None:
        self.minimum = minimum

    def validate(self, value: Any) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must not be below {self.minimum}, is {value}")


class Maximum(Validator):
    def __init__(self, maximum: float) -> None:
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must not be above {self.maximum}, is {value}")


class Choice(Validator):
    def __init__(self, choices: list[Any]) -> None:
        self.choices = choices

    def validate(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be in one of the following: {self.choices}")


class Exclude(Validator):
    def __init__(self, excludedValues: list[Any]) -> None:
        self.excludedValues = excludedValues

    def validate(self, value: Any) -> None:
        if value in self.excludedValues:
            raise ValueError(f"Value must not be {value}")


class NotNone(Validator):
    def validate(self, value: Any) -> None:
        if value is None:
            raise ValueError("Value must not be None")


class Default:
    """Annotation: the value to start with."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Decimals:
    """Annotation: decimals of the bound widget."""

    def __init__(self, value: int) -> None:
        self.value = value


class SingleStep:
    """Annotation: step of the bound widget."""

    def __init__(self, value: float) -> None:
        self.value = value


def split_annotations(hint: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(hint) is typing.Annotated:
        return typing.get_args(hint)[0], list(typing.get_args(hint)[1:])
    return hint, []


def find_annotation(annotations: list[Any], kind: type) -> Any:
    return next((a for a in annotations if isinstance(a, kind)), None)


def is_node_type(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


class Serializer:
    """Reads and writes values of one type."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def default(self) -> Any:
        return {int: 0, float: 0, str: "", bool: False}.get(self.kind)

    def check(self, value: Any) -> None:
        accepted = (int, float) if self.kind is float else self.kind
        if value is None:
            raise ValueError("Value must not be None")
        if not isinstance(value, accepted):
            raise TypeError(f"Value must be of type {self.kind}, is {type(value)} ({value!r})")

    def is_in(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, str(value))

    def read(self, node: Any, name: str) -> Any:
        return self.kind(node.GetParameter(name))


class BoolSerializer(Serializer):
    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "True" if value else "False")

    def read(self, node: Any, name: str) -> bool:
        return node.GetParameter(name) == "True"


class PathSerializer(Serializer):
    def default(self) -> Any:
        return self.kind()


class EnumSerializer(Serializer):
    def default(self) -> Any:
        return next(iter(self.kind))

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, value.name)

    def read(self, node: Any, name: str) -> Any:
        return self.kind[node.GetParameter(name)]


class NodeSerializer(Serializer):
    def check(self, value: Any) -> None:
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"Value must be of type {self.kind}, is {type(value)}")

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)


class ObservedList(collections.abc.MutableSequence):
    """A list that writes itself back into the parameter node."""

    def __init__(self, items: list[Any], save: Any) -> None:
        self._list, self._save = items, save

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, index: Any) -> Any:
        return self._list[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._list[index] = value
        self._save(self._list)

    def __delitem__(self, index: Any) -> None:
        del self._list[index]
        self._save(self._list)

    def insert(self, index: int, value: Any) -> None:
        self._list.insert(index, value)
        self._save(self._list)

    def __eq__(self, other: object) -> bool:
        return self._list == (other._list if isinstance(other, ObservedList) else other)

    def __repr__(self) -> str:
        return f"ObservedList({self._list})"

    __hash__ = None  # type: ignore[assignment]


class ListSerializer(Serializer):
    def __init__(self, kind: Any) -> None:
        super().__init__(kind)
        self.item = serializer_for(typing.get_args(kind)[0])

    def default(self) -> list[Any]:
        return []

    def check(self, value: Any) -> None:
        if not isinstance(value, (list, ObservedList)):
            raise TypeError(f"Value must be a list, is {type(value)}")
        for item in value:
            self.item.check(item)

    def is_in(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(f"{name}.length"))

    def write(self, node: Any, name: str, value: Any) -> None:
        with slicer.util.NodeModify(node):
            node.SetParameter(f"{name}.length", str(len(value)))
            for index, item in enumerate(value):
                self.item.write(node, f"{name}.{index}", item)

    def read(self, node: Any, name: str) -> ObservedList:
        count = int(node.GetParameter(f"{name}.length"))
        items = [self.item.read(node, f"{name}.{index}") for index in range(count)]

        def save(values: list[Any]) -> None:
            self.check(values)
            self.write(node, name, values)

        return ObservedList(items, save)


def serializer_for(kind: Any) -> Serializer:
    """The serializer of a type, or the exception that Slicer's wrapper raises."""
    if kind in (int, float, str):
        return Serializer(kind)
    if kind is bool:
        return BoolSerializer(kind)
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        return PathSerializer(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return EnumSerializer(kind)
    if is_node_type(kind):
        return NodeSerializer(kind)
    if typing.get_origin(kind) is list:
        return ListSerializer(kind)
    raise Exception(f"Unable to create serializer for type: {kind}")
