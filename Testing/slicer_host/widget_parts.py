"""How the host's own widgets declare properties, with the setX methods that Qt pairs with them."""

from typing import Any

from PySide6 import QtCore


def checked(kind: Any, value: Any) -> Any:
    """The value as the property's type, or TypeError."""
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int):
        return int(value)
    if kind is bool and isinstance(value, (bool, int)):
        return bool(value)
    if isinstance(kind, type) and kind not in (float, int, bool) and isinstance(value, kind):
        return value
    if kind == "QStringList" and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return list(value)
    raise TypeError(f"{value!r} is no {kind if isinstance(kind, str) else kind.__name__}")


def stored(kind: Any, name: str, default: Any) -> QtCore.Property:
    """A property that the object keeps; _property_changed(name) is told of changes."""

    def read(self: Any) -> Any:
        return self.__dict__.get(f"_{name}", default)

    def write(self: Any, value: Any) -> None:
        value = checked(kind, value)
        if value != read(self):
            self.__dict__[f"_{name}"] = value
            self._property_changed(name)

    return QtCore.Property(kind, read, write)


def with_setters(cls: Any) -> Any:
    """Class decorator: setX for each property that the class itself declares."""
    for name, value in list(vars(cls).items()):
        setter = f"set{name[0].upper()}{name[1:]}"
        if isinstance(value, QtCore.Property) and not hasattr(cls, setter):
            setattr(cls, setter, _setter(name))
    return cls


def _setter(name: str) -> Any:
    def set_value(self: Any, value: Any) -> None:
        setattr(self, name, value)

    set_value.__module__ = __name__
    return set_value


class Observing:
    """Mixin: observers of VTK objects that end together."""

    _observed: tuple[tuple[Any, int], ...] = ()

    def _observe(self, thing: Any, event: Any, function: Any) -> None:
        self._observed += ((thing, thing.AddObserver(event, function)),)

    def _stop_observing(self) -> None:
        for thing, tag in self._observed:
            thing.RemoveObserver(tag)
        self._observed = ()


class Stored:
    """Mixin of what has `stored` properties."""

    def _property_changed(self, name: str) -> None:
        pass
