"""PythonQt's view of PySide objects.

A wrapper holds a real PySide object. Properties are plain values, everything else is called; unknown attributes
cannot be set on plain Qt objects; enums are flat; wrapped classes do not inherit from each other, so
isinstance(button, qt.QWidget) is False. Whatever Qt returns is wrapped again.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from . import signals, state
from .enums import EnumInt, flat_enums
from .properties import Properties, properties_of

# PySide's own names, which PythonQt does not have
NOT_IN_PYTHONQT = {
    "connect", "connectNotify", "disconnect", "disconnectNotify", "emit", "receivers", "sender", "tr",
    "staticMetaObject", "isSignalConnected", "senderSignalIndex", "bindableObjectName", "exec",
}  # fmt: skip

# what came with Qt 6 and would fail on Qt 5.15
QT6_ONLY = {"checkStateChanged", "accessibleIdentifier", "addActions", "connectToServer"}

overrides: dict[tuple[str, str], Callable[..., Any]] = {}
wrapper_classes: dict[type, QtMeta] = {}
kept: dict[int, Any] = {}


def override(class_name: str, *names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace a method of a Qt class, inherited ones too; the function gets wrappers, and self where it is bound."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            overrides[class_name, name] = function
        return function

    return register


def find_override(real_class: type, name: str) -> Callable[..., Any] | None:
    for base in real_class.__mro__:
        found = overrides.get((base.__name__, name))
        if found is not None:
            return found
    return None


def unwrap(value: Any) -> Any:
    """The PySide value for what a module passes."""
    if isinstance(value, Wrapper):
        return value._q
    if isinstance(value, EnumInt):
        return value.member
    if type(value) in (list, tuple):
        return type(value)(unwrap(item) for item in value)
    if type(value) is dict:
        return {key: unwrap(item) for key, item in value.items()}
    return value


def wrap(value: Any) -> Any:
    """What a module sees of a PySide value; Qt's lists come as tuples."""
    if isinstance(value, enum.Enum):
        return EnumInt(value) if isinstance(value.value, int) else value
    if isinstance(value, shiboken6.Object):
        return wrap_object(value)
    if type(value) in (list, tuple):
        return tuple(wrap(item) for item in value)
    if type(value) is dict:
        return {key: wrap(item) for key, item in value.items()}
    return value


def wrap_object(real: Any) -> Wrapper:
    own = getattr(real, "_host_wrapper", None)
    if own is not None:
        return own
    wrapper = object.__new__(wrapper_class(type(real)))
    object.__setattr__(wrapper, "_q", real)
    if isinstance(real, QtCore.QObject) and (real.parent() is not None or not shiboken6.createdByPython(real)):
        keep(real)
    return wrapper


def keep(real: QtCore.QObject) -> None:
    """Hold PySide's side of an object that Qt owns until Qt deletes it, so that what hangs on it is not lost."""
    pointer = shiboken6.getCppPointer(real)[0]
    if pointer not in kept:
        kept[pointer] = real
        real.destroyed.connect(functools.partial(_forget, pointer))


def _forget(pointer: int, *_: Any) -> None:
    kept.pop(pointer, None)


def wrapper_class(real_class: type) -> QtMeta:
    """The wrapper class of a PySide class or of one of the host's widgets."""
    found = wrapper_classes.get(real_class)
    if found is None and real_class.__module__.startswith("PySide6."):
        found = expose(real_class)
    if found is None:
        for base in real_class.__mro__:
            if base.__module__.startswith("PySide6.") or base in wrapper_classes:
                found = wrapper_classes.get(base) or expose(base)
                break
        else:
            raise TypeError(f"not a Qt class: {real_class}")
        wrapper_classes[real_class] = found
    return found


def expose(real_class: type, exact_isinstance: bool = False) -> QtMeta:
    """Make the wrapper class of real_class, which derives from the common base alone, as in PythonQt."""
    namespace = {"_real": real_class, "_plain": True, "_exact": exact_isinstance, "__slots__": ()}
    made = QtMeta(real_class.__name__, (Wrapper,), namespace)
    wrapper_classes[real_class] = made
    return made


class QtMeta(type):
    """Class-level access: flat enums, static methods, unbound methods."""

    def __instancecheck__(cls, thing: object) -> bool:
        if cls.__dict__.get("_plain") and type(thing) is cls:
            return cls.__dict__["_exact"]
        return type.__instancecheck__(cls, thing)

    def __getattr__(cls, name: str) -> Any:
        real = type.__getattribute__(cls, "_real")
        if name.startswith("_") or real is None:
            raise AttributeError(name)
        replaced = find_override(real, name)
        if replaced is not None:
            return replaced
        value = flat_enums(real).get(name)
        if value is not None:
            return value
        attribute = getattr(real, "exec" if name == "exec_" else name, None)
        if name in NOT_IN_PYTHONQT - {"exec"} or not callable(attribute) or isinstance(attribute, type):
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        if isinstance(attribute, QtCore.Signal):
            raise AttributeError(f"signal '{name}' of {cls.__name__} is not bound to an object")
        return functools.partial(call_qt, attribute, f"{cls.__name__}.{name}")


def call_qt(function: Callable[..., Any], name: str, *args: Any, **named: Any) -> Any:
    """Call into Qt: wrappers become Qt objects and back."""
    if named:
        raise TypeError(f"{name}() takes no keyword arguments")
    host_code = str(getattr(function, "__module__", "")).startswith("slicer_host")
    if not host_code:
        for arg in args:
            if isinstance(arg, (types.FunctionType, types.MethodType, functools.partial, BoundMethod)):
                raise TypeError(f"{name}(): PythonQt cannot pass a Python callable here")
    return wrap(function(*[unwrap(arg) for arg in args]))


class BoundMethod:
    """A method of a Qt object."""

    __slots__ = ("function", "name", "owner")

    def __init__(self, owner: Wrapper, name: str, function: Callable[..., Any]) -> None:
        self.owner, self.name, self.function = owner, name, function

    def __call__(self, *args: Any, **named: Any) -> Any:
        return call_qt(self.function, f"{type(self.owner).__name__}.{self.name}", *args, **named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundMethod) and (other.name, other.owner) == (self.name, self.owner)

    def __hash__(self) -> int:
        return hash((self.name, self.owner))

    def __repr__(self) -> str:
        return f"<qt method {self.name} of {type(self.owner).__name__}>"


class Wrapper(metaclass=QtMeta):
    """The common base of everything in `qt` and `ctk`."""

    __slots__ = ("__weakref__", "_q")
    _real: type | None = None
    _plain = False
    _exact = False

    def __init__(self, *args: Any, **named: Any) -> None:
        cls = type(self)
        if named:
            raise TypeError(f"{cls.__name__}() takes no keyword arguments")
        if cls._real is None or cls._real is QtCore.Qt:
            raise ValueError(f"No constructors available for {cls.__name__}")
        plain = cls.__dict__.get("_plain", False)
        real_class = cls._real if plain else subclass_for(cls)
        real = real_class(*[unwrap(arg) for arg in args])
        object.__setattr__(self, "_q", real)
        if not plain and isinstance(real, QtCore.QObject):
            real._host_wrapper = self

    def _alive(self, name: str) -> Any:
        real = self._q
        if not shiboken6.isValid(real):
            raise ValueError(f"Trying to access '{name}' on a destroyed {type(self).__name__} object")
        return real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        real = self._alive(name)
        if isinstance(real, QtCore.QObject):
            found = properties_of(real).read(real, name)
            if found is not Properties.NONE:
                return wrap(found)
            if name in QT6_ONLY:
                raise AttributeError(f"'{name}' of {type(self).__name__} is not in Qt 5")
            if name in signals.signal_names(real):
                return signals.BoundSignal(self, name)
        replaced = find_override(type(real), name)
        if replaced is not None:
            return functools.partial(replaced, self)
        value = flat_enums(type(real)).get(name)
        if value is not None:
            return value
        method = getattr(real, "exec" if name == "exec_" else name, None)
        if callable(method) and name not in NOT_IN_PYTHONQT - {"exec"} and not isinstance(method, type):
            return BoundMethod(self, name, method)
        if isinstance(real, QtCore.QObject):
            for child in real.children():
                if child.objectName() == name:
                    return wrap_object(child)
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        real = self._alive(name)
        if isinstance(real, QtCore.QObject):
            if properties_of(real).write(real, name, unwrap(value), type(self).__name__):
                return
            if name in signals.signal_names(real):
                raise AttributeError(f"Signal '{name}' can not be overwritten on {type(self).__name__} object")
        if type(self).__dict__.get("_plain", False):
            raise AttributeError(
                f"Attribute '{name}' does not exist and creation of new attributes on {type(self).__name__} objects "
                "is not allowed"
            )
        if name not in type(self).__dict__ and callable(getattr(real, name, None)):
            raise AttributeError(f"Slot '{name}' can not be overwritten on {type(self).__name__} object")
        object.__setattr__(self, name, value)

    def connect(self, signal: Any, slot: Any) -> bool:
        return signals.connect(self, signal, slot)

    def disconnect(self, signal: Any, *target: Any) -> bool:
        return signals.disconnect(self, signal, *target)

    def className(self) -> str:
        return type(self).__name__

    def inherits(self, name: str) -> bool:
        real = self._alive("inherits")
        if isinstance(real, QtCore.QObject):
            return real.inherits(name)
        return any(base.__name__ == name for base in type(real).__mro__)

    def __bool__(self) -> bool:
        return shiboken6.isValid(self._q)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wrapper):
            return False
        if isinstance(self._q, QtCore.QObject) or isinstance(other._q, QtCore.QObject):
            return address(self._q) == address(other._q)
        return bool(self._q == other._q)

    def __hash__(self) -> int:
        if isinstance(self._q, QtCore.QObject):
            return hash(address(self._q))
        try:
            return hash(self._q)
        except TypeError:
            return hash(type(self._q))

    def __repr__(self) -> str:
        return f"{type(self).__name__} (wrapping {self._q!r})"

    def __str__(self) -> str:
        if isinstance(self._q, QtCore.QByteArray):
            return str(self._q.data())
        return repr(self)


def address(real: Any) -> int:
    return shiboken6.getCppPointer(real)[0]


@functools.cache
def subclass_for(cls: type) -> type:
    """The PySide subclass behind a module's own subclass: virtual methods reach the module's methods."""
    plain = next(base for base in cls.__mro__ if base.__dict__.get("_plain"))
    real: Any = plain._real
    own: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(plain)]):
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType) and not name.startswith("_"):
                original = getattr(real, name, None)
                if callable(original) and not isinstance(original, QtCore.Signal):
                    own[name] = _virtual(name, original)
    return type(cls.__name__, (real,), own)


def _virtual(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(real: Any, *args: Any) -> Any:
        wrapper = getattr(real, "_host_wrapper", None)
        if wrapper is None:
            return original(real, *args)
        try:
            return unwrap(getattr(wrapper, name)(*[wrap(arg) for arg in args]))
        except Exception:
            state.record(f"in {type(wrapper).__name__}.{name}")
            return original(real, *args)

    return call
