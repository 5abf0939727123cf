"""Reading and writing Qt properties by name, the way PythonQt's attribute access does."""

from typing import Any

from PySide6 import QtCore


class Properties:
    """The properties of one meta-object."""

    NONE = object()

    def __init__(self, meta: QtCore.QMetaObject) -> None:
        self.by_name = {meta.property(i).name(): meta.property(i) for i in range(meta.propertyCount())}
        self.by_name.pop("accessibleIdentifier", None)  # Qt 6.9

    def read(self, real: QtCore.QObject, name: str) -> Any:
        """The value, or Properties.NONE where real has no such property; `name` stands for objectName."""
        name = "objectName" if name == "name" and "name" not in self.by_name else name
        if name in self.by_name:
            capital = name[0].upper() + name[1:]
            declared = getattr(type(real), name, None)
            if isinstance(declared, (QtCore.Property, property)):
                return getattr(real, name)
            for getter in (f"is{capital}", name, f"has{capital}"):
                if name == "singleShot" and getter == name:
                    continue
                method = getattr(real, getter, None)
                if callable(method):
                    return method()
            return self.by_name[name].read(real)
        if name.encode() in [bytes(known.data()) for known in real.dynamicPropertyNames()]:
            return real.property(name)
        return self.NONE

    def write(self, real: QtCore.QObject, name: str, value: Any, class_name: str) -> bool:
        """Set a property; False where real has no such property, AttributeError where it refuses the value."""
        name = "objectName" if name == "name" and "name" not in self.by_name else name
        if name not in self.by_name:
            if name.encode() in [bytes(known.data()) for known in real.dynamicPropertyNames()]:
                real.setProperty(name, value)
                return True
            return False
        found = self.by_name[name]
        if not found.isWritable():
            raise AttributeError(f"Property '{name}' of {class_name} object is not writable")
        try:
            self._set(real, name, value)
        except TypeError as error:
            raise AttributeError(
                f"Property '{name}' of type '{found.typeName()}' does not accept an object of type "
                f"{type(value).__name__} ({value!r})"
            ) from error
        return True

    def _set(self, real: QtCore.QObject, name: str, value: Any) -> None:
        if isinstance(getattr(type(real), name, None), (QtCore.Property, property)):
            setattr(real, name, value)
            return
        setter = getattr(real, f"set{name[0].upper()}{name[1:]}", None)
        if setter is not None:
            setter(value)
        elif not self.by_name[name].write(real, value):
            raise TypeError(f"cannot be set to {value!r}")


_known: dict[tuple[type, str], Properties] = {}


def properties_of(real: QtCore.QObject) -> Properties:
    meta = real.metaObject()
    key = (type(real), meta.className())
    if key not in _known:
        _known[key] = Properties(meta)
    return _known[key]
