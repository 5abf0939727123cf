"""The Python packages of the background process: which are there, and installing them on a click.

Slicer's own numpy, SimpleITK and scipy are never touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import slicer
from slicer.i18n import tr as _

REQUIRED = {
    "torch": "2.7",
    "safetensors": "0.4",
    "psutil": "5.9",
    "numpy": "1.26",
    "scipy": "1.11",
    "SimpleITK": "2.3",
}
"""Packages and their lowest versions."""
FOR_NIFTI = {"nibabel": "5.0"}
"""Likewise, to train from a folder with NIfTI files; a volume of the scene needs none."""
SLICERS_OWN = ("numpy", "scipy", "SimpleITK")
UNDESCRIBED = "of Slicer"
"""Stands for the version of a package of Slicer's own that does not say which it is."""
LAST_LINES = 6
"""Of pip, shown where it failed."""


@dataclass(frozen=True)
class Package:
    """A package, the version needed at least, and the one installed (empty if none)."""

    name: str
    needed: str
    installed: str

    @property
    def is_fine(self) -> bool:
        """Whether it is there and new enough."""
        if self.installed == UNDESCRIBED:
            return True
        return bool(self.installed) and _numbers(self.installed) >= _numbers(self.needed)


def packages(needed: dict[str, str]) -> list[Package]:
    """Return what is needed and what is installed; nothing is imported."""
    return [Package(name, version, _version(name)) for name, version in needed.items()]


def obstacle(package: Package) -> str:
    """Return why a package cannot be installed from here, and what to do; empty if it can."""
    if package.name in SLICERS_OWN:
        return _("belongs to Slicer and is never replaced: update Slicer")
    if package.name == "torch" and _torch_utils() is None:
        return _("needs the PyTorch extension: install it from the Extensions Manager and restart Slicer")
    return ""


def install_text(wanted: list[Package]) -> str:
    """Return what installing will do, for a user to agree to."""
    lines = [_("MAESIL needs these Python packages in Slicer:"), ""]
    for package in wanted:
        found = _("not installed") if not package.installed else _("installed: {v}").format(v=package.installed)
        lines.append(f"  {package.name} >= {package.needed}  ({'; '.join(filter(None, (found, obstacle(package))))})")
    lines.append("")
    able = [package.name for package in wanted if not obstacle(package)]
    if "torch" in able:
        lines.append(_("The PyTorch extension installs torch, and with it torchvision and light-the-torch."))
        lines.append(_("That takes 200 MB to 3 GB and some minutes; Slicer does not respond until it is done."))
        lines.append(_("Restart Slicer afterwards."))
    if able:
        lines.append(_("Install {names} now?").format(names=", ".join(able)))
    return "\n".join(lines)


class Installation:
    """Installs packages one after another; pip runs in the background where Slicer can do that, torch blocks.

    Args:
        on_log: called with each line of pip.
        on_end: called once with, for each package that failed: its name, the reason, and what repeats it.
    """

    def __init__(
        self, wanted: list[Package], on_log: Callable[[str], None], on_end: Callable[[list[str]], None]
    ) -> None:
        self.waiting, self.on_log, self.on_end = list(wanted), on_log, on_end
        self.failed: list[str] = []
        self.lines: list[str] = []

    def install_next(self) -> None:
        """Install the next package, or end."""
        if not self.waiting:
            self.on_end(self.failed)
            return
        self.lines = []
        package = self.waiting[0]
        requirement = f"{package.name}>={package.needed}"
        output = io.StringIO()
        try:
            pip_install = _background_pip() if package.name != "torch" else None
            if pip_install is not None:
                pip_install(requirement, blocking=False, logCallback=self._log, completedCallback=self._ended)
                return
            with redirect_stdout(output):
                _install_torch(package.needed) if package.name == "torch" else slicer.util.pip_install(requirement)
            error = ""
        except Exception as exception:
            error = str(exception).strip() or type(exception).__name__
        for line in output.getvalue().splitlines():
            self._log(line)
        self._ended(error)

    def _log(self, line: str) -> None:
        self.lines.append(line)
        self.on_log(line)

    def _ended(self, error: Any) -> None:
        """Take the end of one: an error's text, or pip's exit code."""
        package = self.waiting.pop(0)
        if not error and not Package(package.name, package.needed, _version(package.name)).is_fine:
            error = _("the installation did not provide it")
        if error:
            reason = "\n".join(self.lines[-LAST_LINES:]) or f"{error}"
            self.failed.append(f"{package.name}: {reason}\n{_to_repeat(package)}")
        self.install_next()


def _background_pip() -> Any:
    """Return Slicer's function that runs pip in the background; None before Slicer 5.12, and under test."""
    try:
        from slicer.packaging import pip_install
    except ImportError:
        return None
    can = "completedCallback" in inspect.signature(pip_install).parameters and not slicer.app.testingEnabled()
    return pip_install if can else None


def _to_repeat(package: Package) -> str:
    if package.name == "torch":
        return _("To repeat: open the PyTorch Utils module and install it there")
    # double quotes, because Windows knows no others
    command = f'PythonSlicer -m pip install "{package.name}>={package.needed}"'
    return _("To repeat: {command}").format(command=command)


def _torch_utils() -> Any:
    try:
        import PyTorchUtils
    except ImportError:
        return None
    return PyTorchUtils


def _install_torch(needed: str) -> None:
    logic = _torch_utils().PyTorchUtilsLogic()
    if logic.installTorch(askConfirmation=False, torchVersionRequirement=f">={needed}") is None:
        raise RuntimeError(_("PyTorch could not be installed"))


def _version(name: str) -> str:
    importlib.invalidate_caches()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    # what was built with Slicer may lie there without a description of its version; finding it does not import it
    return UNDESCRIBED if name in SLICERS_OWN and importlib.util.find_spec(name) is not None else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])
