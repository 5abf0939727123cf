"""Loading .ui files: custom widgets are the host's own, their properties and connections are applied by the host.

A class that nobody knows becomes a QWidget whose .ui properties are dynamic ones, as in Slicer, and is collected as
an error.
"""

import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import signals, state
from .properties import properties_of
from .wrapping import keep, unwrap, wrap

custom_widgets: dict[str, type[QtWidgets.QWidget]] = {}
QT_WIDGETS = {name for name in dir(QtWidgets) if name.startswith("Q")} | {"Line"}


def register(widget: type[QtWidgets.QWidget]) -> type[QtWidgets.QWidget]:
    """Class decorator: .ui files may name this class."""
    custom_widgets[widget.__name__] = widget
    return widget


def simple_value(element: ElementTree.Element) -> Any:
    """The value inside a <property>."""
    (value,) = element
    text = value.text or ""
    if value.tag == "bool":
        return text.strip() == "true"
    if value.tag in ("number", "longlong", "uint"):
        return int(text)
    if value.tag in ("double", "float"):
        return float(text)
    if value.tag == "stringlist":
        return [item.text or "" for item in value]
    if value.tag in ("string", "cstring", "enum", "set"):
        return text
    raise ValueError(f"<{value.tag}> of a custom widget")


class _Builder(QtUiTools.QUiLoader):
    """Creates every widget in Python, so that the classes are ours and Python holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[QtWidgets.QWidget] = []

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> QtWidgets.QWidget:
        if class_name in custom_widgets:
            widget = custom_widgets[class_name](parent)
        elif class_name in QT_WIDGETS:
            widget = super().createWidget(class_name, parent, name)
        else:
            state.complain(f".ui: unknown widget class {class_name} ({name}); Slicer makes it a plain QWidget")
            widget = QtWidgets.QWidget(parent)
        widget.setObjectName(name)
        self.created.append(widget)
        return widget


class UiLoader(QtCore.QObject):
    """What qt.QUiLoader() gives."""

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget | None:
        tree = ElementTree.fromstring(bytes(device.readAll().data()))
        held_back = self._hold_back_properties(tree)
        connections = self._hold_back_connections(tree)
        # the builder must not see base classes: it would build those instead of asking createWidget
        for custom in tree.findall("customwidgets"):
            tree.remove(custom)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        builder = _Builder()
        top = builder.load(buffer, parent)
        if top is None:
            state.complain(f".ui: {builder.errorString()}")
            return None
        widgets = {widget.objectName(): widget for widget in builder.created}
        for name, values in held_back:
            self._apply(widgets[name], values)
        for sender, signal, receiver, slot in connections:
            self._connect(widgets[sender], signal, widgets[receiver], slot)
        for widget in builder.created:
            if widget.parent() is not None:
                keep(widget)
        top._host_ui = builder.created
        return top

    def _hold_back_properties(self, tree: ElementTree.Element) -> list[tuple[str, dict[str, Any]]]:
        """Take out of the XML what only the host's widgets understand."""
        found = []
        for element in tree.iter("widget"):
            class_name = element.get("class", "")
            if class_name in QT_WIDGETS:
                continue
            known_to_qt = {"sizePolicy", "minimumSize", "maximumSize", "font", "geometry", "palette", "baseSize"}
            values = {}
            for prop in element.findall("property"):
                if prop.get("name") not in known_to_qt:
                    values[prop.get("name", "")] = simple_value(prop)
                    element.remove(prop)
            if values:
                found.append((element.get("name", ""), values))
        return found

    def _hold_back_connections(self, tree: ElementTree.Element) -> list[tuple[str, str, str, str]]:
        found = []
        for block in tree.findall("connections"):
            for entry in block.findall("connection"):
                sender, signal = entry.findtext("sender") or "", entry.findtext("signal") or ""
                found.append((sender, signal, entry.findtext("receiver") or "", entry.findtext("slot") or ""))
            tree.remove(block)
        return found

    def _apply(self, widget: QtWidgets.QWidget, values: dict[str, Any]) -> None:
        properties = properties_of(widget)
        for name, value in values.items():
            try:
                if not properties.write(widget, name, value, type(widget).__name__):
                    widget.setProperty(name, value)
                    if name not in ("SlicerParameterName", "SlicerParameterNameOld"):
                        state.complain(f".ui: {type(widget).__name__} {widget.objectName()} has no property {name}")
            except AttributeError:
                state.record(f".ui: {widget.objectName()}.{name} = {value!r}")

    def _connect(self, sender: Any, signal: str, receiver: Any, slot: str) -> None:
        signature = signals._resolve(sender, signal)
        method = getattr(receiver, slot.split("(")[0], None)
        if signature is None or method is None:
            state.complain(f".ui: cannot connect {sender.objectName()}.{signal} to {receiver.objectName()}.{slot}")
            return
        count = 0 if slot.rstrip(")").endswith("(") else slot.count(",") + 1
        signals.attach(sender, signature, lambda *a: method(*[unwrap(x) for x in a[:count]]), f".ui {wrap(sender)}")
