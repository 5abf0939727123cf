"""Which widgets a parameter can be bound to: exactly the pairs of types that Slicer's wrapper knows."""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Callable
from typing import Any

import ctk
import qt
import slicer

from .parameter_types import (
    Choice,
    Decimals,
    Maximum,
    Minimum,
    SingleStep,
    WithinRange,
    find_annotation,
    is_node_type,
    split_annotations,
)


class Connector:
    """One widget: read, write, and a signal that tells of changes."""

    def __init__(self, widget: Any, signal: str, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.widget, self.signal, self.read, self.write = widget, signal, read, write
        self.callback: Callable[[], None] | None = None

    def changed(self) -> None:
        if self.callback is not None:
            self.callback()

    def on_changed(self, callback: Callable[[], None] | None) -> None:
        self.callback = callback
        signal = getattr(self.widget, self.signal)
        if callback is None:
            signal.disconnect(self.changed)
        else:
            signal.connect(self.changed)


def _property(widget: Any, name: str, signal: str) -> Connector:
    return Connector(widget, signal, lambda: getattr(widget, name), lambda value: setattr(widget, name, value))


def _set_limits(widget: Any, annotations: list[Any], lowest: Any, highest: Any, bounded: bool) -> None:
    for kind, name in ((Decimals, "decimals"), (SingleStep, "singleStep")):
        found = find_annotation(annotations, kind)
        if found is not None:
            setattr(widget, name, found.value)
    within = find_annotation(annotations, WithinRange)
    low, high = find_annotation(annotations, Minimum), find_annotation(annotations, Maximum)
    if bounded and within is None and (low is None or high is None):
        raise RuntimeError("Cannot bind an unbounded number to a slider")
    widget.setMinimum(within.minimum if within else low.minimum if low else lowest)
    widget.setMaximum(within.maximum if within else high.maximum if high else highest)


def _choices(widget: Any, pairs: list[tuple[str, Any]]) -> Connector:
    widget.clear()
    for label, _ in pairs:
        widget.addItem(label)
    values = [value for _, value in pairs]

    def write(value: Any) -> None:
        if value not in values:
            raise ValueError(f"Unable to find value {value} in choices {values}")
        widget.currentIndex = values.index(value)

    return Connector(widget, "currentIndexChanged", lambda: values[widget.currentIndex], write)


def create_connector(widget: Any, hint: Any) -> Connector:
    """Bind widget to a parameter of this type, or RuntimeError where Slicer has no such binding."""
    kind, annotations = split_annotations(hint)
    of = type(widget)
    if kind is bool and of is qt.QCheckBox:
        return _property(widget, "checked", "stateChanged")
    if kind is bool and of is qt.QPushButton:
        widget.checkable = True
        return _property(widget, "checked", "toggled")
    if kind is int and of in (qt.QSlider, qt.QSpinBox):
        _set_limits(widget, annotations, -(2**31), 2**31 - 1, of is qt.QSlider)
        return _property(widget, "value", "valueChanged")
    if kind is float and of in (qt.QDoubleSpinBox, ctk.ctkSliderWidget):
        _set_limits(widget, annotations, float("-inf"), float("inf"), of is ctk.ctkSliderWidget)
        return _property(widget, "value", "valueChanged")
    if kind in (int, float, str, bool) and of is qt.QComboBox:
        choice = find_annotation(annotations, Choice)
        if choice is None:
            raise RuntimeError("A combo box needs the Choice annotation")
        return _choices(widget, [(str(value), value) for value in choice.choices])
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and of is qt.QComboBox:
        label = getattr(kind, "label", lambda member: member.name)
        return _choices(widget, [(label(member), member) for member in kind])
    if kind is str and of is qt.QLineEdit:
        return _property(widget, "text", "textChanged")
    if kind is str and of is qt.QTextEdit:
        return Connector(widget, "textChanged", widget.toPlainText, widget.setPlainText)
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath) and of is ctk.ctkPathLineEdit:
        return Connector(
            widget,
            "currentPathChanged",
            lambda: kind(widget.currentPath),
            lambda value: setattr(widget, "currentPath", str(value)),
        )
    if is_node_type(kind) and of is slicer.qMRMLNodeComboBox:
        widget.nodeTypes = [kind.__name__]
        return Connector(widget, "currentNodeChanged", widget.currentNode, widget.setCurrentNode)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{hint}' to widget type '{of}'")
