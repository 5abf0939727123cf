"""The CTK widgets that panels use: thin, with the properties and signals of the real ones."""

from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from . import dialogs
from .ui_loader import register
from .widget_parts import Stored, checked, stored, with_setters

HEADER = 24


@register
@with_setters
class ctkCollapsibleButton(Stored, QtWidgets.QWidget):  # noqa: N801
    """A header that folds its contents away."""

    toggled = QtCore.Signal(bool)

    text = stored(str, "text", "")

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._collapsed = False
        self._busy = False
        self._to_show: list[QtWidgets.QWidget] = []
        super().__init__(parent)
        self.setContentsMargins(0, HEADER, 0, 0)
        # it gets no narrower than it would like to be
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Minimum, QtWidgets.QSizePolicy.Policy.Preferred)

    def _property_changed(self, name: str) -> None:
        self.update()

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, value: bool) -> None:
        value = checked(bool, value)
        if value == self._collapsed:
            return
        self._busy = True
        if value:
            explicit = QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide
            children = [child for child in self.children() if isinstance(child, QtWidgets.QWidget)]
            self._to_show = [child for child in children if not (child.testAttribute(explicit) and child.isHidden())]
        for child in self._to_show:
            if shiboken6.isValid(child):
                child.installEventFilter(self)
                self._force(child, not value)
        self._collapsed = value
        self._busy = False
        self.updateGeometry()
        self.toggled.emit(not value)

    def _force(self, child: QtWidgets.QWidget, shown: bool) -> None:
        """Show or hide without its counting as the module's wish, so that a later hide() is noticed."""
        child.setVisible(shown)
        child.setAttribute(QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide, False)

    collapsed = QtCore.Property(bool, _get_collapsed, _set_collapsed)
    checked = QtCore.Property(
        bool, lambda self: not self._collapsed, lambda self, value: self._set_collapsed(not checked(bool, value))
    )

    def event(self, event: QtCore.QEvent) -> bool:
        if event.type() == QtCore.QEvent.Type.ChildPolished and isinstance(event.child(), QtWidgets.QWidget):
            event.child().installEventFilter(self)
        return super().event(event)

    def eventFilter(self, child: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """What is shown or hidden while folded takes effect when unfolded."""
        if self._collapsed and not self._busy and isinstance(child, QtWidgets.QWidget):
            if event.type() == QtCore.QEvent.Type.ShowToParent:
                self._to_show = [*[c for c in self._to_show if c is not child], child]
                self._busy = True
                self._force(child, False)
                self._busy = False
            elif event.type() == QtCore.QEvent.Type.HideToParent:
                self._to_show = [c for c in self._to_show if c is not child]
        return False

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(120, HEADER) if self._collapsed else super().sizeHint()

    def minimumSizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(80, HEADER) if self._collapsed else super().minimumSizeHint()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width(), HEADER)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, HEADER // 2 - 5, 10, 10)
        kind = QtWidgets.QStyle.PrimitiveElement
        painter.drawPrimitive(kind.PE_IndicatorArrowRight if self._collapsed else kind.PE_IndicatorArrowDown, arrow)
        left = QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter
        painter.drawText(QtCore.QRect(22, 0, self.width() - 24, HEADER), left, self.text)


def _of_box(kind: type, name: str) -> QtCore.Property:
    """A property of a slider widget that its spin box holds."""
    setter = f"set{name[0].upper()}{name[1:]}"

    def write(self: Any, value: Any) -> None:
        getattr(self._box, setter)(checked(kind, value))
        self._show_value()

    return QtCore.Property(kind, lambda self: getattr(self._box, name)(), write)


@register
@with_setters
class ctkSliderWidget(Stored, QtWidgets.QWidget):  # noqa: N801
    """A slider and a spin box that move together; all values are doubles."""

    valueChanged = QtCore.Signal(float)

    value = _of_box(float, "value")
    minimum = _of_box(float, "minimum")
    maximum = _of_box(float, "maximum")
    singleStep = _of_box(float, "singleStep")
    decimals = _of_box(int, "decimals")
    suffix = _of_box(str, "suffix")
    pageStep = stored(float, "pageStep", 10.0)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._box = QtWidgets.QDoubleSpinBox()
        self._box.setRange(0.0, 99.0)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider, 1)
        row.addWidget(self._box)
        self._show_value()
        self._box.valueChanged.connect(self._box_changed)
        self._slider.valueChanged.connect(lambda at: self._box.setValue(self.minimum + at * (self.singleStep or 1.0)))

    def _box_changed(self, value: float) -> None:
        self._show_value()
        self.valueChanged.emit(value)

    def _show_value(self) -> None:
        step = self.singleStep or 1.0
        self._slider.blockSignals(True)
        self._slider.setRange(0, max(0, round((self.maximum - self.minimum) / step)))
        self._slider.setValue(round((self.value - self.minimum) / step))
        self._slider.blockSignals(False)


@register
@with_setters
class ctkPathLineEdit(QtWidgets.QWidget):  # noqa: N801
    """A path with a button that browses for it."""

    Filter = QtCore.QDir.Filter
    currentPathChanged = QtCore.Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._filters = (self.Filter.AllEntries | self.Filter.NoDotAndDotDot | self.Filter.Readable).value
        self._edit = QtWidgets.QComboBox()
        self._edit.setEditable(True)
        self._edit.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self._button = QtWidgets.QToolButton()
        self._button.setText("...")
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._edit, 1)
        row.addWidget(self._button)
        self._edit.editTextChanged.connect(self.currentPathChanged)

    def _set_path(self, path: str) -> None:
        self._edit.setEditText(checked(str, path))

    def _set_filters(self, value: Any) -> None:
        if isinstance(value, str):
            # as a .ui file has it: ctkPathLineEdit::Dirs|ctkPathLineEdit::Writable
            value = sum(self.Filter[name.strip().removeprefix("ctkPathLineEdit::")].value for name in value.split("|"))
        self._filters = checked(int, value)

    currentPath = QtCore.Property(str, lambda self: self._edit.currentText(), _set_path)
    filters = QtCore.Property(int, lambda self: self._filters, _set_filters)


ALL = (ctkCollapsibleButton, ctkSliderWidget, ctkPathLineEdit, dialogs.ctkMessageBox)
