"""The Advanced section: packages, log, and what to copy into a terminal or a report."""

from __future__ import annotations

import platform
import sys
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs import packages, running
from MAESILWidgets.jobs.commands import for_terminal
from MAESILWidgets.panels.section import Section


class AdvancedPanel(Section):
    """Shows packages and log."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self.system = panel.system
        self.installation: Any = None
        for button in (self.ui.installButton, self.ui.installHereButton):
            button.connect("clicked(bool)", lambda _checked: self.install())
        self.ui.copyCommandButton.connect("clicked(bool)", lambda _checked: _copy(self.command()))
        self.ui.copyDiagnosticsButton.connect("clicked(bool)", lambda _checked: _copy(self.diagnostics()))

    def update(self) -> None:
        """Show what is installed."""
        lines = []
        for package in self.system.packages():
            found = package.installed or _("missing")
            mark = "" if package.is_fine else "⚠ "
            lines.append(f"{mark}{package.name} {found}" + ("" if package.is_fine else f" (>= {package.needed})"))
        text = _("Python packages: {list}").format(list=", ".join(lines))
        self.ui.packagesLabel.text = "\n".join([text, *(f"⚠ {problem}" for problem in self.system.problems())])
        for button in (self.ui.installButton, self.ui.installHereButton):
            button.enabled = bool(self.system.wanted()) and self.installation is None
        self.ui.copyCommandButton.enabled = bool(running.last_arguments)

    def log(self, line: str) -> None:
        """Add a line of the background process."""
        self.ui.logView.appendPlainText(line)
        self.ui.copyCommandButton.enabled = bool(running.last_arguments)

    def install(self) -> None:
        """Show what is missing; install it if the user agrees."""
        wanted = self.system.wanted()
        able = [package for package in wanted if not packages.obstacle(package)]
        if not able:
            slicer.util.infoDisplay(packages.install_text(wanted), _("MAESIL"))
        elif slicer.util.confirmOkCancelDisplay(packages.install_text(wanted), _("MAESIL")):
            self.installation = packages.Installation(able, self.log, self._installed)
            self.update()
            with slicer.util.WaitCursor():
                self.installation.install_next()

    def _installed(self, failed: list[str]) -> None:
        self.installation = None
        self.system.refresh()
        if failed:
            slicer.util.errorDisplay(_("Not everything was installed.") + "\n\n" + "\n\n".join(failed))

    def command(self) -> str:
        """Return the last command as for a terminal."""
        return for_terminal(running.last_arguments) if running.last_arguments else ""

    def diagnostics(self) -> str:
        """Return versions, devices, command and log."""
        from MAESILLib import __version__

        app = slicer.app
        lines = [
            f"MAESIL {__version__}",
            f"Slicer {app.applicationVersion} (revision {app.revision}, {app.os})",
            f"Python {sys.version.split()[0]}, {platform.platform()}",
            "packages: " + ", ".join(f"{p.name} {p.installed or 'missing'}" for p in self.system.packages()),
            "devices: " + ("; ".join(self.system.device_items().values())),
            f"command: {self.command() or 'none yet'}",
            "log:",
            self.ui.logView.toPlainText(),
        ]
        return "\n".join(lines)


def _copy(text: str) -> None:
    qt.QApplication.clipboard().setText(text)
