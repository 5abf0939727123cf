"""Signals as in PythonQt: full signatures, checked; surplus arguments dropped for plain functions and methods."""

import types
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from . import state

# which overload `object.signal.connect` takes, where it is not the first in Qt's meta-object
ATTRIBUTE_OVERLOAD = {("QProcess", "finished"): "finished(int)"}
HIDDEN_SIGNALS = {"checkStateChanged"}

_names: dict[tuple[type, str], dict[str, str]] = {}
_connections: dict[int, list[tuple[str, Any, Any, Any]]] = {}


def signal_names(real: QtCore.QObject) -> dict[str, str]:
    """Signal name -> signature of its first overload."""
    meta = real.metaObject()
    key = (type(real), meta.className())
    if key not in _names:
        found: dict[str, str] = {}
        for i in range(meta.methodCount()):
            method = meta.method(i)
            name = bytes(method.name().data()).decode()
            if method.methodType() == QtCore.QMetaMethod.MethodType.Signal and name not in HIDDEN_SIGNALS:
                found.setdefault(name, bytes(method.methodSignature().data()).decode())
        for base in type(real).__mro__:
            for name in list(found):
                if (base.__name__, name) in ATTRIBUTE_OVERLOAD:
                    found[name] = ATTRIBUTE_OVERLOAD[base.__name__, name]
        _names[key] = found
    return _names[key]


def accepted_arguments(slot: Callable[..., Any]) -> int | None:
    """How many arguments PythonQt passes at most; None: all of them (partials, builtins, *args)."""
    if isinstance(slot, types.MethodType) and isinstance(slot.__func__, types.FunctionType):
        code, bound = slot.__func__.__code__, 1
    elif isinstance(slot, types.FunctionType):
        code, bound = slot.__code__, 0
    else:
        return None
    return None if code.co_flags & 0x04 else code.co_argcount - bound


def guarded(slot: Callable[..., Any], where: str) -> Callable[..., None]:
    """A function that calls slot with as many arguments as it takes, and collects what it raises."""
    from .wrapping import wrap

    limit = accepted_arguments(slot)

    def call(*args: Any) -> None:
        try:
            slot(*[wrap(arg) for arg in args[:limit]])
        except Exception:
            state.record(f"in a slot of {where}")

    return call


def _resolve(real: QtCore.QObject, signature: str) -> str | None:
    """The meta-object's signature for what the module wrote, or None."""
    name = bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()
    aliases: dict[str, str] = getattr(type(real), "_signal_aliases", {})
    if name in aliases:
        return aliases[name]
    if "PyObject" in name or name.split("(")[0] in HIDDEN_SIGNALS or real.metaObject().indexOfSignal(name) < 0:
        return None
    return name


def connect(wrapper: Any, signal: Any, slot: Any) -> bool:
    """wrapper.connect("signal(args)", callable)."""
    real = wrapper._alive("connect")
    if not isinstance(real, QtCore.QObject):
        raise AttributeError(f"{type(wrapper).__name__} has no attribute named 'connect'")
    if not isinstance(signal, str) or not callable(slot):
        raise TypeError(f"connect(signal, callable), not {signal!r}, {slot!r}")
    signature = _resolve(real, signal)
    if signature is None:
        state.complain(f"connect: {type(wrapper).__name__} has no signal '{signal}'")
        return False
    attach(real, signature, slot, f"{type(wrapper).__name__}.{signal}")
    return True


def attach(real: QtCore.QObject, signature: str, slot: Callable[..., Any], where: str) -> None:
    call = guarded(slot, where)
    connection = QtCore.QObject.connect(real, "2" + signature, call)
    pointer = shiboken6.getCppPointer(real)[0]
    if pointer not in _connections:
        _connections[pointer] = []
        real.destroyed.connect(lambda *_: _connections.pop(pointer, None))
    _connections[pointer].append((signature, slot, connection, call))


def disconnect(wrapper: Any, signal: Any, *target: Any) -> bool:
    """Undo a connect with the same signal and callable; without a callable, all of that signal."""
    real = wrapper._alive("disconnect")
    signature = _resolve(real, signal)
    if signature is None:
        state.complain(f"disconnect: {type(wrapper).__name__} has no signal '{signal}'")
        return False
    return detach(real, signature, *target)


def detach(real: QtCore.QObject, signature: str, *target: Any) -> bool:
    entries = _connections.get(shiboken6.getCppPointer(real)[0], [])
    found = [entry for entry in entries if entry[0] == signature and (not target or entry[1] == target[0])]
    for entry in found[:1] if target else found:
        QtCore.QObject.disconnect(entry[2])
        entries.remove(entry)
    return bool(found)


class BoundSignal:
    """`object.signal`: connect and disconnect."""

    __slots__ = ("name", "owner")

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def _signature(self) -> str:
        return signal_names(self.owner._q)[self.name]

    def connect(self, slot: Callable[..., Any]) -> bool:
        if not callable(slot):
            raise TypeError(f"connect: {slot!r} cannot be called")
        attach(self.owner._q, self._signature(), slot, f"{type(self.owner).__name__}.{self.name}")
        return True

    def disconnect(self, *slot: Callable[..., Any]) -> bool:
        return detach(self.owner._q, self._signature(), *slot)
