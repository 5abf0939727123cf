"""The Python packages of the background process: which are there, and installing them on a click.

Slicer's own numpy, SimpleITK and scipy are never touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
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
SLICERS_OWN = ("numpy", "scipy", "SimpleITK")
UNDESCRIBED = "of Slicer"
"""Stands for the version of a package of Slicer's own that does not say which it is."""


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


def packages() -> list[Package]:
    """Return what is needed and what is installed; nothing is imported."""
    return [Package(name, needed, _version(name)) for name, needed in REQUIRED.items()]


def install_text(wanted: list[Package]) -> str:
    """Return what installing will do, for a user to agree to."""
    lines = [_("MAESIL needs these Python packages in Slicer:"), ""]
    for package in wanted:
        found = _("not installed") if not package.installed else _("installed: {v}").format(v=package.installed)
        lines.append(f"  {package.name} >= {package.needed}  ({found})")
    lines.append("")
    if any(package.name == "torch" for package in wanted):
        lines.append(_("The PyTorch extension installs torch, and with it torchvision and light-the-torch."))
        lines.append(_("That takes 200 MB to 3 GB and some minutes; Slicer does not respond until it is done."))
        lines.append(_("Restart Slicer afterwards."))
    lines.append(_("Install now?"))
    return "\n".join(lines)


def install(wanted: list[Package]) -> list[str]:
    """Install packages; it blocks.

    Returns:
        for each package that failed: its name, the reason, and the command that repeats it.
    """
    failed = []
    for package in wanted:
        requirement = f"{package.name}>={package.needed}"
        try:
            if package.name in SLICERS_OWN:
                raise RuntimeError(_("it belongs to Slicer and is never replaced; update Slicer"))
            if package.name == "torch":
                _install_torch(package.needed)
            else:
                _pip(requirement)
            if not Package(package.name, package.needed, _version(package.name)).is_fine:
                raise RuntimeError(_("the installation did not provide it"))
        except Exception as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            failed.append(f"{package.name}: {reason.rstrip('.')}. {_to_repeat(package.name, requirement)}")
    return failed


def _pip(requirement: str) -> None:
    try:
        from slicer.packaging import pip_ensure
    except ImportError:
        # before Slicer 5.12
        slicer.util.pip_install(requirement)
        return
    from packaging.requirements import Requirement

    # what is installed was shown and agreed to already; the name of that option has changed
    known = inspect.signature(pip_ensure).parameters
    quiet = {name: False for name in ("prompt_install", "prompt", "skip_in_testing") if name in known}
    pip_ensure([Requirement(requirement)], requester="MAESIL", **quiet)


def _to_repeat(name: str, requirement: str) -> str:
    if name in SLICERS_OWN:
        return _("A newer Slicer has it")
    if name == "torch":
        return _("To repeat: open the PyTorch Utils module and install it there")
    # double quotes, because Windows knows no others
    return _("To repeat: {command}").format(command=f'PythonSlicer -m pip install "{requirement}"')


def _install_torch(needed: str) -> None:
    try:
        import PyTorchUtils
    except ImportError:
        raise RuntimeError(
            _("the PyTorch extension is missing; install it from the Extensions Manager and restart Slicer")
        ) from None
    logic: Any = PyTorchUtils.PyTorchUtilsLogic()
    if logic.installTorch(askConfirmation=False, torchVersionRequirement=f">={needed}") is None:
        raise RuntimeError(_("PyTorch could not be installed; see the Python console"))


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
