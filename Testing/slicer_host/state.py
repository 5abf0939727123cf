"""What the host collects while code runs on it: errors and popups; and the answers given to popups."""

import sys
import traceback
from collections import deque
from typing import Any, NamedTuple


class Message(NamedTuple):
    """A popup that was shown: kind is information, warning, critical, question, noicon or dialog."""

    kind: str
    text: str
    detailed_text: str = ""


errors: list[str] = []
messages: list[Message] = []
answers: deque[Any] = deque()
vtk_errors: list[str] = []


def record(where: str) -> None:
    """Collect the exception being handled, with its traceback."""
    complain(f"{where}\n{traceback.format_exc()}")


def complain(text: str) -> None:
    """Collect a fault that Slicer would at most print."""
    errors.append(text)
    print(text, file=sys.stderr)


def collect_unhandled(kind: type[BaseException], value: BaseException, trace: Any) -> None:
    """For sys.excepthook: observers of VTK and virtual methods of Qt end here when they raise."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, value, trace)
        return
    complain("unhandled exception\n" + "".join(traceback.format_exception(kind, value, trace)))


def reset() -> None:
    for collected in (errors, messages, answers, vtk_errors):
        collected.clear()
