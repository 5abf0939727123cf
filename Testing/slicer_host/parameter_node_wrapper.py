"""slicer.parameterNodeWrapper: typed attributes on a parameter node, and two-way binding to widgets."""

from __future__ import annotations

import types
import typing
from typing import Any

import qt
import slicer
import vtk

from . import parameter_types, state
from .gui_connectors import create_connector
from .parameter_types import Default, Validator, find_annotation, serializer_for, split_annotations

PROPERTY = "SlicerParameterName"


class Parameter:
    """One declared parameter of a wrapper class."""

    def __init__(self, name: str, hint: Any, owner: type) -> None:
        kind, annotations = split_annotations(hint)
        self.name, self.hint = name, hint
        self.serializer = serializer_for(kind)
        self.validators = [a for a in annotations if isinstance(a, Validator)]
        given = find_annotation(annotations, Default)
        if name in vars(owner):
            self.default = vars(owner)[name]
        else:
            self.default = given.value if given is not None else self.serializer.default()

    def write(self, node: Any, key: str, value: Any) -> None:
        self.serializer.check(value)
        for validator in self.validators:
            validator.validate(value)
        self.serializer.write(node, key, value)

    def read(self, node: Any, key: str) -> Any:
        if not self.serializer.is_in(node, key):
            self.write(node, key, self.default)
        return self.serializer.read(node, key)


class _Cell:
    """A parameter of one wrapper; the value is kept until the node says that it was modified."""

    def __init__(self, parameter: Parameter, node: Any, prefix: str) -> None:
        self.parameter, self.node, self.key = parameter, node, prefix + parameter.name
        self.writing = False
        self.value = parameter.read(node, self.key)
        self.tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._modified)

    def _modified(self, *_: Any) -> None:
        if not self.writing:
            self.value = self.parameter.read(self.node, self.key)

    def write(self, value: Any) -> None:
        self.writing = True
        try:
            with slicer.util.NodeModify(self.node):
                self.parameter.write(self.node, self.key, value)
                self.value = self.parameter.read(self.node, self.key)
        finally:
            self.writing = False


def _start(self: Any, parameterNode: Any, prefix: str | None = None) -> None:
    self.parameterNode = parameterNode
    self._guis = {}
    self._next_tag = 0
    self._updating = False
    self._cells = {
        name: _Cell(parameter, parameterNode, prefix or "") for name, parameter in self.allParameters.items()
    }


def _cell(self: Any, name: str) -> _Cell:
    if name not in self._cells:
        raise ValueError(f"Cannot find a param with the given name: {name}; found {list(self._cells)}")
    return self._cells[name]


def _connect_parameters(self: Any, mapping: dict[str, Any]) -> int:
    for name in mapping:
        _cell(self, name)
    connectors = {name: create_connector(widget, self.allParameters[name].hint) for name, widget in mapping.items()}
    tag = self._next_tag
    self._next_tag += 1
    for name, connector in connectors.items():
        connector.write(_cell(self, name).value)
        connector.on_changed(_gui_changed(self, name, connector))
    observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: _show(self))
    self._guis[tag] = (connectors, observer)
    return tag


def _gui_changed(self: Any, name: str, connector: Any) -> Any:
    def callback() -> None:
        with slicer.util.NodeModify(self):
            if not self._updating:
                _cell(self, name).write(connector.read())

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
                    connector.write(_cell(self, name).value)
    except Exception:
        state.record("while a parameter node updated its widgets")
    finally:
        self._updating = False


def _connect_gui(self: Any, gui: Any) -> int:
    """Bind the widgets that have a SlicerParameterName: children of a widget, or attributes of a ui object."""
    is_widget = getattr(gui, "isWidgetType", lambda: False)()
    widgets = gui.findChildren(qt.QWidget) if is_widget else vars(gui).values()
    return _connect_parameters(
        self, {widget.property(PROPERTY): widget for widget in widgets if widget.property(PROPERTY)}
    )


def _disconnect_gui(self: Any, tag: int) -> None:
    if tag in self._guis:
        connectors, observer = self._guis.pop(tag)
        for connector in connectors.values():
            connector.on_changed(None)
        self.parameterNode.RemoveObserver(observer)


def _attribute(name: str) -> property:
    return property(lambda self: _cell(self, name).value, lambda self, value: _cell(self, name).write(value))


MEMBERS = {
    "_is_parameter_node_wrapper": True,
    "default": lambda self, name: Default(_cell(self, name).parameter.default),
    "isCached": lambda self, name: (
        not isinstance(_cell(self, name).parameter.serializer, parameter_types.ListSerializer)
    ),
    "getValue": lambda self, name: _cell(self, name).value,
    "setValue": lambda self, name, value: _cell(self, name).write(value),
    "dataType": lambda self, name: _cell(self, name).parameter.hint,
    "connectGui": _connect_gui,
    "connectParametersToGui": _connect_parameters,
    "disconnectGui": _disconnect_gui,
    "StartModify": lambda self: self.parameterNode.StartModify(),
    "EndModify": lambda self, was: self.parameterNode.EndModify(was),
    "AddObserver": lambda self, event, call, priority=0.0: self.parameterNode.AddObserver(event, call, priority),
    "RemoveObserver": lambda self, tag: self.parameterNode.RemoveObserver(tag),
    "Modified": lambda self: self.parameterNode.Modified(),
}


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Class decorator."""

    def decorate(cls: Any) -> Any:
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

    return decorate if classtype is None else decorate(classtype)


def isParameterNodeWrapper(thing: Any) -> bool:
    return getattr(thing, "_is_parameter_node_wrapper", False)


def make() -> types.ModuleType:
    module = types.ModuleType("slicer.parameterNodeWrapper")
    module.parameterNodeWrapper = parameterNodeWrapper
    module.isParameterNodeWrapper = isParameterNodeWrapper
    module.SlicerParameterNamePropertyName = PROPERTY
    for name in (
        "WithinRange",
        "Minimum",
        "Maximum",
        "Choice",
        "Exclude",
        "NotNone",
        "Default",
        "Decimals",
        "SingleStep",
    ):
        setattr(module, name, getattr(parameter_types, name))
    return module
