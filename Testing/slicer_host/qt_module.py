"""The `qt` module: every Qt class that PythonQt has, wrapped on first use."""

import types
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from . import state
from .signals import guarded
from .ui_loader import UiLoader
from .wrapping import Wrapper, expose, override, unwrap, wrap, wrapper_class

# what PySide has and PythonQt in Slicer lacks
ABSENT = {
    "QThread", "QThreadPool", "QRunnable", "QMutex", "QMutexLocker", "QReadWriteLock", "QSemaphore", "QWaitCondition",
    "QSignalBlocker", "QGenericArgument", "QGenericReturnArgument", "QSignalMapper", "QScopeGuard", "QEnum", "QFlag",
    "QtMsgType", "QConcatenateTablesProxyModel", "QIntList", "QWIDGETSIZE_MAX", "QKeyCombination",
}  # fmt: skip


class QtModule(types.ModuleType):
    """Wraps a class when it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT or not name.startswith("Q") or (name.startswith("Qt") and name != "Qt"):
            raise AttributeError(f"module 'qt' has no attribute '{name}'")
        for source in (QtCore, QtGui, QtWidgets):
            real = getattr(source, name, None)
            if isinstance(real, type):
                made = wrapper_class(real)
                setattr(self, name, made)
                return made
        raise AttributeError(f"module 'qt' has no attribute '{name}'")


def make() -> QtModule:
    module = QtModule("qt")
    module.QUiLoader = expose(UiLoader)
    return module


@override("QTimer", "singleShot")
def single_shot(milliseconds: int, *target: Any) -> None:
    """qt.QTimer.singleShot(ms, callable); only on the class, on a timer singleShot is a property."""
    if isinstance(milliseconds, Wrapper):
        raise TypeError("QTimer.singleShot is static")
    (slot,) = target
    if not callable(slot) or not isinstance(milliseconds, int):
        raise TypeError(f"singleShot({milliseconds!r}, {slot!r})")
    QtCore.QTimer.singleShot(int(milliseconds), guarded(slot, "QTimer.singleShot"))


@override("QByteArray", "data")
def byte_array_data(self: Any) -> bytes:
    return bytes(unwrap(self).data())


def _matches(child: QtCore.QObject, kind: Any, name: str | None) -> bool:
    class_name = kind if isinstance(kind, str) else kind.__name__
    return child.inherits(class_name) and (not name or child.objectName() == name)


def _descendants(real: QtCore.QObject) -> list[QtCore.QObject]:
    found = []
    for child in real.children():
        found.append(child)
        found.extend(_descendants(child))
    return found


@override("QObject", "findChildren")
def find_children(self: Any, kind: Any = "QObject", name: str | None = None) -> tuple[Any, ...]:
    return tuple(wrap(child) for child in _descendants(unwrap(self)) if _matches(child, kind, name))


@override("QObject", "findChild")
def find_child(self: Any, kind: Any = "QObject", name: str | None = None) -> Any:
    found = find_children(self, kind, name)
    return found[0] if found else None


@override("QApplication", "quit")
def quit_application(*_: Any) -> None:
    state.complain("the module quits the application")
