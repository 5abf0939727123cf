"""The CTK widgets that panels use: thin, with the properties and signals of the real ones."""

from __future__ import annotations

import enum
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

    contentsCollapsed = QtCore.Signal(bool)
    clicked = QtCore.Signal(bool)
    toggled = QtCore.Signal(bool)

    text = stored(str, "text", "")
    collapsedHeight = stored(int, "collapsedHeight", 14)
    flat = stored(bool, "flat", False)

    def __init__(self, *args: Any) -> None:
        title = args[0] if args and isinstance(args[0], str) else ""
        parent = next((arg for arg in args if isinstance(arg, QtWidgets.QWidget)), None)
        self._values: dict[str, Any] = {"text": title}
        self._collapsed = False
        self._busy = False
        self._to_show: list[QtWidgets.QWidget] = []
        super().__init__(parent)
        self.setContentsMargins(0, HEADER, 0, 0)

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
        self.contentsCollapsed.emit(value)
        self.toggled.emit(not value)

    def _force(self, child: QtWidgets.QWidget, shown: bool) -> None:
        """Show or hide without its counting as the module's wish, so that a later hide() is noticed."""
        child.setVisible(shown)
        child.setAttribute(QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide, False)

    collapsed = QtCore.Property(bool, _get_collapsed, _set_collapsed)
    checked = QtCore.Property(
        bool, lambda self: not self._collapsed, lambda self, value: self._set_collapsed(not checked(bool, value))
    )

    def click(self) -> None:
        self._set_collapsed(not self._collapsed)
        self.clicked.emit(not self._collapsed)

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

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        if event.position().y() < HEADER:
            self.click()

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


@register
@with_setters
class ctkCollapsibleGroupBox(Stored, QtWidgets.QGroupBox):  # noqa: N801
    """A group box that folds."""

    def __init__(self, *args: Any) -> None:
        self._values: dict[str, Any] = {}
        super().__init__(*args)
        self.setCheckable(True)
        self.toggled.connect(self._show_children)

    def _show_children(self, shown: bool) -> None:
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(shown)

    def _set_collapsed(self, value: bool) -> None:
        self.setChecked(not checked(bool, value))

    collapsed = QtCore.Property(bool, lambda self: not self.isChecked(), _set_collapsed)


@with_setters
class _Number(QtWidgets.QWidget):
    """A spin box, and beside it a slider in ctkSliderWidget; all values are doubles."""

    valueChanged = QtCore.Signal(float)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._box = QtWidgets.QDoubleSpinBox()
        self._box.setRange(0.0, 99.0)
        self._row = QtWidgets.QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.addWidget(self._box)
        self._value = 0.0
        self._box.valueChanged.connect(self._box_changed)

    def _box_changed(self, value: float) -> None:
        if value != self._value:
            self._value = value
            self._show_value()
            self.valueChanged.emit(value)

    def _show_value(self) -> None:
        pass

    def _set_value(self, value: float) -> None:
        self._box.setValue(checked(float, value))

    def _set_minimum(self, value: float) -> None:
        self._box.setMinimum(checked(float, value))
        self._show_value()

    def _set_maximum(self, value: float) -> None:
        self._box.setMaximum(checked(float, value))
        self._show_value()

    def _set_decimals(self, value: int) -> None:
        self._box.setDecimals(checked(int, value))

    def _set_step(self, value: float) -> None:
        self._box.setSingleStep(checked(float, value))
        self._show_value()

    def setRange(self, minimum: float, maximum: float) -> None:
        self._set_minimum(minimum)
        self._set_maximum(maximum)

    value = QtCore.Property(float, lambda self: self._value, _set_value)
    minimum = QtCore.Property(float, lambda self: self._box.minimum(), _set_minimum)
    maximum = QtCore.Property(float, lambda self: self._box.maximum(), _set_maximum)
    singleStep = QtCore.Property(float, lambda self: self._box.singleStep(), _set_step)
    decimals = QtCore.Property(int, lambda self: self._box.decimals(), _set_decimals)
    suffix = QtCore.Property(str, lambda self: self._box.suffix(), lambda self, v: self._box.setSuffix(checked(str, v)))
    prefix = QtCore.Property(str, lambda self: self._box.prefix(), lambda self, v: self._box.setPrefix(checked(str, v)))


@register
@with_setters
class ctkDoubleSpinBox(_Number):  # noqa: N801
    """A spin box of doubles."""

    editingFinished = QtCore.Signal()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._box.editingFinished.connect(self.editingFinished)


@register
@with_setters
class ctkSliderWidget(Stored, _Number):  # noqa: N801
    """A slider and a spin box that move together."""

    valueIsChanging = QtCore.Signal(float)

    tracking = stored(bool, "tracking", True)
    pageStep = stored(float, "pageStep", 10.0)
    tickInterval = stored(float, "tickInterval", 0.0)
    spinBoxVisible = stored(bool, "spinBoxVisible", True)
    invertedAppearance = stored(bool, "invertedAppearance", False)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._values: dict[str, Any] = {}
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._row.insertWidget(0, self._slider, 1)
        self._set_step(1.0)
        self._slider.valueChanged.connect(self._slider_moved)

    def _property_changed(self, name: str) -> None:
        self._box.setVisible(self.spinBoxVisible)

    def _steps(self) -> float:
        return self.singleStep or 1.0

    def _show_value(self) -> None:
        slider = getattr(self, "_slider", None)
        if slider is not None:
            slider.blockSignals(True)
            slider.setRange(0, max(0, round((self.maximum - self.minimum) / self._steps())))
            slider.setValue(round((self._value - self.minimum) / self._steps()))
            slider.blockSignals(False)

    def _slider_moved(self, position: int) -> None:
        self._box.setValue(self.minimum + position * self._steps())


@register
@with_setters
class ctkRangeWidget(Stored, QtWidgets.QWidget):  # noqa: N801
    """Two values, the lower never above the upper."""

    valuesChanged = QtCore.Signal(float, float)
    minimumValueChanged = QtCore.Signal(float)
    maximumValueChanged = QtCore.Signal(float)

    tracking = stored(bool, "tracking", True)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._values: dict[str, Any] = {}
        super().__init__(parent)
        self._low, self._high = QtWidgets.QDoubleSpinBox(), QtWidgets.QDoubleSpinBox()
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for box, start in ((self._low, 0.0), (self._high, 99.0)):
            box.setRange(0.0, 99.0)
            box.setValue(start)
            row.addWidget(box)
        self._low.valueChanged.connect(self._low_changed)
        self._high.valueChanged.connect(self._high_changed)

    def _low_changed(self, value: float) -> None:
        if value > self._high.value():
            self._high.setValue(value)
        self.minimumValueChanged.emit(value)
        self.valuesChanged.emit(value, self._high.value())

    def _high_changed(self, value: float) -> None:
        if value < self._low.value():
            self._low.setValue(value)
        self.maximumValueChanged.emit(value)
        self.valuesChanged.emit(self._low.value(), value)

    def setValues(self, low: float, high: float) -> None:
        self._high.setValue(checked(float, high))
        self._low.setValue(checked(float, low))

    def setRange(self, low: float, high: float) -> None:
        self._each("setRange", checked(float, low), checked(float, high))

    def _each(self, method: str, *values: Any) -> None:
        getattr(self._low, method)(*values)
        getattr(self._high, method)(*values)

    minimumValue = QtCore.Property(
        float, lambda self: self._low.value(), lambda self, v: self._low.setValue(checked(float, v))
    )
    maximumValue = QtCore.Property(
        float, lambda self: self._high.value(), lambda self, v: self._high.setValue(checked(float, v))
    )
    minimum = QtCore.Property(
        float, lambda self: self._low.minimum(), lambda self, v: self._each("setMinimum", checked(float, v))
    )
    maximum = QtCore.Property(
        float, lambda self: self._low.maximum(), lambda self, v: self._each("setMaximum", checked(float, v))
    )
    singleStep = QtCore.Property(
        float, lambda self: self._low.singleStep(), lambda self, v: self._each("setSingleStep", checked(float, v))
    )
    decimals = QtCore.Property(
        int, lambda self: self._low.decimals(), lambda self, v: self._each("setDecimals", checked(int, v))
    )
    suffix = QtCore.Property(
        str, lambda self: self._low.suffix(), lambda self, v: self._each("setSuffix", checked(str, v))
    )


class PathFilter(enum.IntFlag):
    """QDir's filters, as ctkPathLineEdit names them."""

    Dirs = 0x001
    Files = 0x002
    Drives = 0x004
    NoSymLinks = 0x008
    AllEntries = 0x007
    Readable = 0x010
    Writable = 0x020
    Executable = 0x040
    Hidden = 0x100
    NoDot = 0x2000
    NoDotDot = 0x4000
    NoDotAndDotDot = 0x6000


@register
@with_setters
class ctkPathLineEdit(Stored, QtWidgets.QWidget):  # noqa: N801
    """A path with a button that browses for it."""

    Filter = PathFilter
    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)

    label = stored(str, "label", "")
    nameFilters = stored("QStringList", "nameFilters", [])
    settingKey = stored(str, "settingKey", "")
    showBrowseButton = stored(bool, "showBrowseButton", True)
    showHistoryButton = stored(bool, "showHistoryButton", True)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._values: dict[str, Any] = {}
        self._filters = PathFilter.AllEntries | PathFilter.NoDotAndDotDot | PathFilter.Readable
        super().__init__(parent)
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
        self._button.clicked.connect(self.browse)

    def _property_changed(self, name: str) -> None:
        self._button.setVisible(self.showBrowseButton)

    def _set_path(self, path: str) -> None:
        self._edit.setEditText(checked(str, path))

    def _set_filters(self, value: Any) -> None:
        if isinstance(value, str):
            names = [part.split("::")[-1].strip() for part in value.split("|") if part.strip()]
            unknown = [name for name in names if name not in PathFilter.__members__]
            if unknown:
                raise TypeError(f"no such filter: {unknown}")
            value = sum(PathFilter[name] for name in names)
        self._filters = PathFilter(int(value))

    def addCurrentPathToHistory(self) -> None:
        if self._edit.findText(self._edit.currentText()) < 0:
            self._edit.addItem(self._edit.currentText())

    def browse(self, *_: Any) -> None:
        path = dialogs.next_path(self.label or "path")
        if path:
            self._set_path(str(path))

    currentPath = QtCore.Property(str, lambda self: self._edit.currentText(), _set_path)
    filters = QtCore.Property(int, lambda self: int(self._filters), _set_filters)


@register
@with_setters
class ctkComboBox(Stored, QtWidgets.QComboBox):  # noqa: N801
    """A combo box with a text for no selection."""

    defaultText = stored(str, "defaultText", "")
    scrollWheelEnabled = stored(bool, "scrollWheelEnabled", True)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._values: dict[str, Any] = {}
        super().__init__(parent)

    def _property_changed(self, name: str) -> None:
        self.setPlaceholderText(self.defaultText)


@register
class ctkCheckableComboBox(QtWidgets.QComboBox):  # noqa: N801
    """A combo box whose items can be checked."""

    checkedIndexesChanged = QtCore.Signal()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.model().dataChanged.connect(lambda *_: self.checkedIndexesChanged.emit())

    def setCheckState(self, index: QtCore.QModelIndex, state: QtCore.Qt.CheckState) -> None:
        self.model().setData(index, state.value, QtCore.Qt.ItemDataRole.CheckStateRole)

    def checkedIndexes(self) -> list[QtCore.QModelIndex]:
        role = QtCore.Qt.ItemDataRole.CheckStateRole
        rows = [self.model().index(row, 0) for row in range(self.count())]
        return [index for index in rows if index.data(role) in (2, QtCore.Qt.CheckState.Checked)]


@register
class ctkPushButton(QtWidgets.QPushButton):  # noqa: N801
    """A push button."""


ALL = (
    ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkDoubleSpinBox, ctkSliderWidget, ctkRangeWidget, ctkPathLineEdit,
    ctkComboBox, ctkCheckableComboBox, ctkPushButton, dialogs.ctkMessageBox,
)  # fmt: skip
