"""Popups without a user: what is shown is collected, and what the user would answer comes from host.answers.

An answer for a message box is a button (qt.QMessageBox.Yes), its text ("Discard") or a bool (accept or reject); for
a file dialog a path, a list of paths or "" for Cancel; for any other dialog a function that is called with the open
dialog and has to close it.
"""

from __future__ import annotations

import os
from typing import Any

from PySide6 import QtCore, QtWidgets

from . import state
from .enums import EnumInt
from .wrapping import override, unwrap, wrap

PATIENCE_MS = 15_000  # a dialog that nobody answers
Button = QtWidgets.QMessageBox.StandardButton
ACCEPTING = (Button.Ok, Button.Yes, Button.Retry, Button.Save, Button.Open, Button.Apply, Button.Discard)
REJECTING = (Button.Cancel, Button.No, Button.Close, Button.Abort, Button.Ignore)
KINDS = {
    QtWidgets.QMessageBox.Icon.Information: "information",
    QtWidgets.QMessageBox.Icon.Warning: "warning",
    QtWidgets.QMessageBox.Icon.Critical: "critical",
    QtWidgets.QMessageBox.Icon.Question: "question",
    QtWidgets.QMessageBox.Icon.NoIcon: "message",
}


def is_answer_for_box(answer: Any) -> bool:
    return isinstance(answer, (bool, EnumInt)) or (isinstance(answer, str) and os.sep not in answer)


def chosen_button(box: QtWidgets.QMessageBox) -> QtWidgets.QAbstractButton | None:
    """The button of the next answer. A choice without an answer is a fault; a mere notice is confirmed."""
    if not box.buttons():
        box.addButton(Button.Ok)
    # the button that unfolds the detailed text is no choice
    details = box.standardButtons() == Button.NoButton and len(box.buttons()) == 1
    buttons = [b for b in box.buttons() if details or not b.text().endswith("Details...")]
    if state.answers and is_answer_for_box(state.answers[0]):
        answer = state.answers.popleft()
        for button in buttons:
            if isinstance(answer, str) and button.text().replace("&", "") == answer:
                return button
            if isinstance(answer, EnumInt) and box.standardButton(button) == answer.member:
                return button
        if isinstance(answer, bool):
            for wanted in ACCEPTING if answer else REJECTING:
                if box.button(wanted) is not None:
                    return box.button(wanted)
        state.complain(f"answer {answer!r} fits no button of '{box.text()}': {[b.text() for b in buttons]}")
        return None
    if len(buttons) == 1:
        return buttons[0]
    state.complain(f"no answer for '{box.text()}': {[b.text() for b in buttons]}")
    return None


def show_message(box: QtWidgets.QMessageBox) -> QtWidgets.QAbstractButton | None:
    state.messages.append(state.Message(KINDS[box.icon()], box.text(), box.detailedText() or box.informativeText()))
    return chosen_button(box)


@override("QMessageBox", "exec_", "exec")
def exec_message_box(self: Any) -> Any:
    """Presses the button, returns what QMessageBox does; no loop is run, the box may await deletion already."""
    box = unwrap(self)
    button = show_message(box)
    if button is None:
        box.reject()
    else:
        button.click()
    return int(box.result())


@override("QMessageBox", "show", "open")
def show_message_box(self: Any) -> None:
    box = unwrap(self)
    state.messages.append(state.Message("message", box.text(), box.detailedText()))
    box.show()


def _static_box(kind: QtWidgets.QMessageBox.Icon, default: Any) -> Any:
    def ask(parent: Any, title: str, text: str, buttons: Any = default, default_button: Any = None) -> EnumInt:
        box = QtWidgets.QMessageBox(kind, title, text, unwrap(buttons), unwrap(parent))
        button = show_message(box)
        result = box.standardButton(button) if button is not None else Button.Cancel
        box.deleteLater()
        return EnumInt(result)

    return ask


for _name, _kind, _default in (
    ("question", QtWidgets.QMessageBox.Icon.Question, Button.Yes | Button.No),
    ("information", QtWidgets.QMessageBox.Icon.Information, Button.Ok),
    ("warning", QtWidgets.QMessageBox.Icon.Warning, Button.Ok),
    ("critical", QtWidgets.QMessageBox.Icon.Critical, Button.Ok),
):
    override("QMessageBox", _name)(_static_box(_kind, _default))


@override("QDialog", "exec_", "exec")
def exec_dialog(self: Any) -> int:
    """Runs the dialog; the next answer, if it is a function, gets it once it is open."""
    dialog = unwrap(self)
    state.messages.append(state.Message("dialog", dialog.windowTitle()))
    if state.answers and callable(state.answers[0]):
        answer = state.answers.popleft()

        def run_answer() -> None:
            try:
                answer(wrap(dialog))
            except Exception:
                state.record("in an answer to a dialog")
                dialog.reject()

        QtCore.QTimer.singleShot(0, run_answer)
    watchdog = QtCore.QTimer()
    watchdog.setSingleShot(True)
    watchdog.timeout.connect(lambda: (state.complain(f"nobody closes '{dialog.windowTitle()}'"), dialog.reject()))
    watchdog.start(PATIENCE_MS)
    result = dialog.exec()
    watchdog.stop()
    return int(result)


def next_path(what: str) -> Any:
    if not state.answers or callable(state.answers[0]) or isinstance(state.answers[0], (bool, EnumInt)):
        state.complain(f"no answer for the file dialog '{what}'")
        return ""
    return state.answers.popleft()


def _path_dialog(method: str) -> Any:
    def ask(parent: Any = None, caption: str = "", *_: Any) -> str:
        state.messages.append(state.Message("dialog", str(caption)))
        answer = next_path(str(caption) or method)
        return str(answer[0] if isinstance(answer, (list, tuple)) else answer)

    return ask


for _name in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
    override("QFileDialog", _name)(_path_dialog(_name))


@override("QFileDialog", "getOpenFileNames")
def open_file_names(parent: Any = None, caption: str = "", *_: Any) -> tuple[str, ...]:
    state.messages.append(state.Message("dialog", str(caption)))
    answer = next_path(str(caption) or "getOpenFileNames")
    return tuple(str(path) for path in (answer if isinstance(answer, (list, tuple)) else [answer]) if path)


@override("QFileDialog", "exec_", "exec")
def exec_file_dialog(self: Any) -> int:
    dialog = unwrap(self)
    answer = next_path(dialog.windowTitle())
    paths = [str(path) for path in (answer if isinstance(answer, (list, tuple)) else [answer]) if path]
    dialog._host_paths = paths
    return int(bool(paths))


@override("QFileDialog", "selectedFiles")
def selected_files(self: Any) -> tuple[str, ...]:
    return tuple(getattr(unwrap(self), "_host_paths", ()))


@override("QInputDialog", "getText", "getItem", "getInt", "getDouble", "getMultiLineText")
def input_dialog(*_: Any) -> Any:
    raise NotImplementedError("the host has no QInputDialog")


@override("QDesktopServices", "openUrl")
def open_url(url: Any) -> bool:
    state.opened_urls.append(unwrap(url).toString())
    return True


@override("QMenu", "exec_", "exec", "popup")
def exec_menu(self: Any, *_: Any) -> Any:
    """The next answer is the text of the action that the user picks; none closes the menu."""
    menu = unwrap(self)
    menu.aboutToShow.emit()
    if state.answers and isinstance(state.answers[0], str):
        text = state.answers.popleft()
        for action in menu.actions():
            if action.text().replace("&", "") == text and action.isEnabled():
                action.trigger()
                return wrap(action)
        state.complain(f"no action '{text}' in {[action.text() for action in menu.actions()]}")
    return None


class ctkMessageBox(QtWidgets.QMessageBox):  # noqa: N801
    """A message box that can be told not to come again."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._dont_show_key = ""

    def _get_key(self) -> str:
        return self._dont_show_key

    def _set_key(self, key: str) -> None:
        self._dont_show_key = key

    dontShowAgainSettingsKey = QtCore.Property(str, _get_key, _set_key)
