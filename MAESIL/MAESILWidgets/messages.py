"""What went wrong, in words a user can act on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

KILLED = (137, -9, 9)
"""Exit codes of a process that got SIGKILL: a shell's, Python's and Qt's way to say so."""


@dataclass(frozen=True)
class Failure:
    """Why a job ended without a result: what, and what to do."""

    message: str
    hint: str = ""

    def text(self) -> str:
        """Return message and hint as one paragraph."""
        message = self.message.rstrip(".") + "."
        return f"{message} {self.hint[0].upper()}{self.hint[1:].rstrip('.')}." if self.hint else message


def explain(error: Any) -> str:
    """Return message and hint of an error of MAESILLib in sentences."""
    return Failure(error.message, error.hint).text()


def os_failure(error: OSError, path: Path, hint: str) -> Failure:
    """Return why a file or folder could not be written."""
    from MAESILLib.runtime.files import explain_os_error

    explained = explain_os_error(error, path, hint=hint)
    return Failure(getattr(explained, "message", str(error)), getattr(explained, "hint", _("see the log")))


def failure_of(exit_code: int, error: dict[str, Any] | None, last_lines: list[str]) -> Failure:
    """Return why a worker failed, from its exit code, its error event and the last lines it printed."""
    if error is not None and error["kind"] == "cancelled":
        # not by this panel
        message = _("The background process was ended from outside ({reason})")
        return Failure(message.format(reason=error["message"]), _("try again"))
    if error is not None:
        return Failure(str(error["message"]), str(error["hint"]))
    if exit_code in KILLED:
        message = _("The background process was ended from outside (signal 9), most likely for lack of memory")
        return Failure(message, _("close other programs, or choose a smaller volume or preset, then try again"))
    missing = next((line for line in reversed(last_lines) if "No module named" in line), "")
    if missing:
        return Failure(missing.split("Error:")[-1].strip(), _("install the Python packages in the Advanced section"))
    if exit_code == 0:
        return Failure(_("The background process exited without reporting success"), _("see the log"))
    last = last_lines[-1].strip() if last_lines else ""
    return Failure(
        _("The background process failed with exit code {code}").format(code=exit_code) + (f": {last}" if last else ""),
        _("this is a bug in MAESIL: report it with Copy diagnostics in the Advanced section"),
    )
