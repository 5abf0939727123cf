"""slicer.parameterNodeWrapper: typed attributes on a parameter node, and two-way binding to widgets.

As much of it as the module uses: numbers, texts and nodes, in ranges. What else Slicer knows is refused.
"""

import types
import typing
from collections.abc import Callable
from typing import Any

import ctk
import qt
import slicer
import vtk

from . import state


class WithinRange:
    """Annotation: the least and the greatest value."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


class Parameter:
    """One declared parameter of a wrapper class: checked, and kept as a string or reference of the node."""

    def __init__(self, name: str, hint: Any, owner: type) -> None:
        self.kind, *annotations = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        self.name = name
        self.range: WithinRange | None = annotations[0] if annotations else None
        self.is_node = isinstance(self.kind, type) and issubclass(self.kind, slicer.vtkMRMLNode)
        if not self.is_node and self.kind not in (int, float, str, bool):
            raise Exception(f"Unable to create serializer for type: {self.kind}")
        self.default = vars(owner).get(name, None if self.is_node else self.kind())

    def write(self, node: Any, key: str, value: Any) -> None:
        if value is None and not self.is_node:
            raise ValueError("Value must not be None")
        if value is not None and not isinstance(value, (int, float) if self.kind is float else self.kind):
            raise TypeError(f"Value must be of type {self.kind}, is {type(value)} ({value!r})")
        if self.range is not None:
            self.range.validate(value)
        if self.is_node:
            node.SetParameter(key, "")
            node.SetNodeReferenceID(key, value.GetID() if value is not None else None)
        else:
            node.SetParameter(key, str(value))

    def read(self, node: Any, key: str) -> Any:
        if not node.HasParameter(key):
            self.write(node, key, self.default)
        if self.is_node:
            return node.GetNodeReference(key)
        text = node.GetParameter(key)
        return text == "True" if self.kind is bool else self.kind(text)


class Connector:
    """A widget bound to a parameter: exactly the pairs of types that Slicer's wrapper knows.

    Raises:
        RuntimeError: Slicer has no such binding, or the host has not.
    """

    def __init__(self, widget: Any, parameter: Parameter) -> None:
        self.widget, of = widget, type(widget)
        self.name, self.signal = "value", "valueChanged"
        if parameter.is_node and of is slicer.qMRMLNodeComboBox:
            widget.nodeTypes = [parameter.kind.__name__]
            self.signal = "currentNodeChanged"
        elif (parameter.kind, of) == (bool, qt.QCheckBox):
            self.name, self.signal = "checked", "stateChanged"
        elif (parameter.kind, of) in ((int, qt.QSpinBox), (float, ctk.ctkSliderWidget)) and parameter.range:
            widget.setMinimum(parameter.range.minimum)
            widget.setMaximum(parameter.range.maximum)
        else:
            raise RuntimeError(f"Unable to create GUI connector from datatype '{parameter.kind}' to widget type '{of}'")

    def read(self) -> Any:
        node_box = self.signal == "currentNodeChanged"
        return self.widget.currentNode() if node_box else getattr(self.widget, self.name)

    def write(self, value: Any) -> None:
        if self.signal == "currentNodeChanged":
            self.widget.setCurrentNode(value)
        else:
            setattr(self.widget, self.name, value)


class _Cell:
    """A parameter of one wrapper; the value is kept until the node says that it was modified."""

    def __init__(self, parameter: Parameter, node: Any) -> None:
        self.parameter, self.node = parameter, node
        self.writing = False
        self._modified()
        node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._modified)

    def _modified(self, *_: Any) -> None:
        if not self.writing:
            self.value = self.parameter.read(self.node, self.parameter.name)

    def write(self, value: Any) -> None:
        self.writing = True
        try:
            with slicer.util.NodeModify(self.node):
                self.parameter.write(self.node, self.parameter.name, value)
                self.value = self.parameter.read(self.node, self.parameter.name)
        finally:
            self.writing = False


def _start(self: Any, parameterNode: Any) -> None:
    self.parameterNode = parameterNode
    self._guis = {}
    self._updating = False
    self._cells = {name: _Cell(parameter, parameterNode) for name, parameter in self.allParameters.items()}


def _connect_parameters(self: Any, mapping: dict[str, Any]) -> int:
    """Bind widgets by parameter's name; returns a tag."""
    unknown = [name for name in mapping if name not in self._cells]
    if unknown:
        raise ValueError(f"Cannot find a param with the given name: {unknown[0]}; found {list(self._cells)}")
    connectors = {name: Connector(widget, self.allParameters[name]) for name, widget in mapping.items()}
    slots = []
    for name, connector in connectors.items():
        connector.write(self._cells[name].value)
        signal, slot = getattr(connector.widget, connector.signal), _gui_changed(self, name, connector)
        signal.connect(slot)
        slots.append((signal, slot))
    observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: _show(self))
    self._guis[observer] = (connectors, slots)
    return int(observer)


def _gui_changed(self: Any, name: str, connector: Connector) -> Callable[[], None]:
    def callback() -> None:
        with slicer.util.NodeModify(self):
            if not self._updating:
                self._cells[name].write(connector.read())

    return callback


def _show(self: Any) -> None:
    """Write every parameter into the widgets bound to it."""
    if self._updating:
        return
    self._updating = True
    try:
        with slicer.util.NodeModify(self):
            for connectors, _ in list(self._guis.values()):
                for name, connector in connectors.items():
                    connector.write(self._cells[name].value)
    except Exception:
        state.record("while a parameter node updated its widgets")
    finally:
        self._updating = False


def _disconnect_gui(self: Any, tag: int) -> None:
    if tag in self._guis:
        for signal, slot in self._guis.pop(tag)[1]:
            signal.disconnect(slot)
        self.parameterNode.RemoveObserver(tag)


def _attribute(name: str) -> property:
    return property(lambda self: self._cells[name].value, lambda self, value: self._cells[name].write(value))


MEMBERS = {
    "connectParametersToGui": _connect_parameters,
    "disconnectGui": _disconnect_gui,
    "StartModify": lambda self: self.parameterNode.StartModify(),
    "EndModify": lambda self, was: self.parameterNode.EndModify(was),
    "AddObserver": lambda self, event, call, priority=0.0: self.parameterNode.AddObserver(event, call, priority),
    "RemoveObserver": lambda self, tag: self.parameterNode.RemoveObserver(tag),
}


def parameterNodeWrapper(cls: Any) -> Any:
    """Class decorator."""
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: Parameter(name, hint, cls) for name, hint in hints.items()}
    for name, value in {**MEMBERS, "allParameters": parameters}.items():
        if name in hints or name in vars(cls):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        setattr(cls, name, value)
    cls.__init__ = _start
    for name in parameters:
        setattr(cls, name, _attribute(name))
    return cls


def make() -> types.ModuleType:
    module = types.ModuleType("slicer.parameterNodeWrapper")
    module.parameterNodeWrapper = parameterNodeWrapper
    module.WithinRange = WithinRange
    return module
