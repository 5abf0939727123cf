"""Popups without a user: what is shown is collected, and what the user would answer comes from host.answers.

An answer for a message box is a bool (accept or reject), for a file dialog a path or "" for Cancel.
"""

from typing import Any

from PySide6 import QtWidgets

from . import state
from .widget_parts import Stored, stored
from .wrapping import override, unwrap

Button = QtWidgets.QMessageBox.StandardButton
ACCEPTING = (Button.Ok, Button.Yes, Button.Retry, Button.Save, Button.Open, Button.Apply, Button.Discard)
REJECTING = (Button.Cancel, Button.No, Button.Close, Button.Abort, Button.Ignore)


def chosen_button(box: QtWidgets.QMessageBox) -> QtWidgets.QAbstractButton | None:
    """The button of the next answer. A choice without an answer is a fault; a mere notice is confirmed."""
    if not box.buttons():
        box.addButton(Button.Ok)
    # the button that unfolds the detailed text is no choice
    buttons = [button for button in box.buttons() if not button.text().endswith("Details...")]
    answer = state.answers.popleft() if state.answers and isinstance(state.answers[0], bool) else None
    if answer is not None:
        for wanted in ACCEPTING if answer else REJECTING:
            if box.button(wanted) is not None:
                return box.button(wanted)
    elif len(buttons) == 1:
        return buttons[0]
    given = "no answer" if answer is None else f"answer {answer} fits no button"
    state.complain(f"{given} for '{box.text()}': {[button.text() for button in buttons]}")
    return None


@override("QMessageBox", "exec_", "exec")
def exec_message_box(self: Any) -> int:
    """Presses the button, returns what QMessageBox does; no loop is run, the box may await deletion already."""
    box = unwrap(self)
    kind = box.icon().name.lower()
    state.messages.append(state.Message(kind, box.text(), box.detailedText() or box.informativeText()))
    button = chosen_button(box)
    if button is None:
        box.reject()
    else:
        button.click()
    return int(box.result())


@override("QFileDialog", "getOpenFileName")
def open_file_name(parent: Any = None, caption: str = "", *_: Any) -> str:
    state.messages.append(state.Message("dialog", caption))
    if not state.answers or not isinstance(state.answers[0], str):
        state.complain(f"no answer for the file dialog '{caption}'")
        return ""
    return str(state.answers.popleft())


def _refuse(class_name: str, *names: str) -> None:
    """What would wait for a user, or reach beyond this process."""

    def refuse(*_: Any) -> None:
        raise NotImplementedError(f"the host has no {class_name}.{names[0]}")

    override(class_name, *names)(refuse)


_refuse("QDialog", "exec_", "exec", "open")
_refuse("QInputDialog", "getText", "getItem", "getInt", "getDouble", "getMultiLineText")
_refuse("QFileDialog", "getOpenFileNames", "getSaveFileName", "getExistingDirectory")
_refuse("QMessageBox", "question", "information", "warning", "critical")
_refuse("QMenu", "exec_", "exec", "popup")
_refuse("QDesktopServices", "openUrl")
_refuse("QProcess", "startDetached")


class ctkMessageBox(Stored, QtWidgets.QMessageBox):  # noqa: N801
    """A message box that can be told not to come again."""

    dontShowAgainSettingsKey = stored(str, "dontShowAgainSettingsKey", "")
