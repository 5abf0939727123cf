"""What the sections of the panel have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs import running
from MAESILWidgets.panels.choices import show_text


class Section:
    """A section of the panel.

    Args:
        panel: the ModulePanel, which has the widgets of MAESIL.ui as ``ui``, and what the sections share.
    """

    def __init__(self, panel: Any) -> None:
        self.panel, self.ui = panel, panel.ui

    @property
    def parameters(self) -> Any:
        """The scene's parameters; None while there is no scene to take them from."""
        return self.panel.parameters

    def set(self, name: str, value: str) -> None:
        """Change a parameter, which brings every section up to date."""
        if self.parameters is not None and getattr(self.parameters, name) != value:
            setattr(self.parameters, name, value)


class JobSection(Section):
    """A section that runs one task at a time, with a bar for its progress and a label for how it ended."""

    def __init__(self, panel: Any, bar: Any, status: Any) -> None:
        super().__init__(panel)
        self.bar, self.status = bar, status
        self.task: Any = None
        show_text(status, "")

    def missing_packages(self) -> str:
        """Return that packages are missing; empty if they are there."""
        return _("Install the Python packages in the Advanced section") if self.panel.system.missing() else ""

    def begin(self) -> None:
        """Show the progress of a task instead of how the last one ended."""
        show_text(self.status, "")
        self.bar.setVisible(True)

    def run(self, make_task: Callable[[], Any], failed: str) -> None:
        """Make a task and start it; a dialog shows ``failed`` and the error if that raises one."""
        self.begin()
        is_started = False
        with slicer.util.tryWithErrorDisplay(failed, waitCursor=False):
            # known before it is started: it may end at once
            self.task = make_task()
            running.start(self.task)
            is_started = True
        if not is_started:
            self.finish("")
        self.update()

    def finish(self, text: str, told: str = "") -> None:
        """Show how the task has ended, and tell it where another module is in front."""
        self.task = None
        self.bar.setVisible(False)
        self.bar.value = 0
        show_text(self.status, text)
        if told:
            self.panel.tell(told)
        self.update()

    def update(self) -> None:
        """Show what is chosen, and whether it can be done."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask the task to stop."""
        if self.task is not None:
            self.task.cancel()

    def stop(self) -> None:
        """End the task at once: Slicer or the module is closing."""
        if self.task is not None:
            self.task.abandon()
            self.task = None
