"""What this computer has: packages, devices and memory, and whether a reconstruction fits the memory.

torch is asked in a background process; Slicer itself never imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from MAESILWidgets.jobs import packages
from MAESILWidgets.jobs.job import BackgroundJob, ask
from MAESILWidgets.messages import Failure


class System:
    """Asks once, and again when packages were installed.

    Args:
        on_change: called when something new is known.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.on_change = on_change
        self.details: dict[str, Any] = {}
        self.job: BackgroundJob | None = None
        self.reads_nifti = False
        self._packages: list[packages.Package] | None = None
        self._ask_again = False
        self.failure: Failure | None = None

    def packages(self) -> list[packages.Package]:
        """Return the packages needed, with what is installed."""
        if self._packages is None:
            extra = packages.FOR_NIFTI if self.reads_nifti else {}
            self._packages = packages.packages({**packages.REQUIRED, **extra})
        return self._packages

    def wanted(self) -> list[packages.Package]:
        """Return the packages that are missing or too old."""
        return [package for package in self.packages() if not package.is_fine]

    def missing(self) -> list[packages.Package]:
        """Return those without which nothing works."""
        return [package for package in self.wanted() if package.name in packages.REQUIRED]

    def look_for_nifti(self, reads_nifti: bool) -> None:
        """Say whether NIfTI files are to be read, which needs a package more."""
        if reads_nifti != self.reads_nifti:
            self.reads_nifti, self._packages = reads_nifti, None

    def problems(self) -> list[str]:
        """Return what is there but does not work, as a package that was installed half-way."""
        found = [f"{name}: {problem}" for name, problem in (self.details.get("problems") or {}).items()]
        # a package that only pictures need is no problem here
        found = [text for text in found if text.split(":")[0] in packages.REQUIRED or "cuda" in text.split(":")[0]]
        return found + ([self.failure.text()] if self.failure is not None else [])

    def refresh(self) -> None:
        """Look again at packages and devices; the devices come later."""
        self._packages = None
        self._ask_again = self.job is not None
        if self._ask_again or self.missing():
            self.on_change()
            return
        try:
            self.job = ask(["info", "--system"], self._on_event, self._ended)
        except FileNotFoundError as error:
            self.failure = Failure(str(error))
        self.on_change()

    def stop(self) -> None:
        """End what runs in the background."""
        if self.job is not None:
            self.job.end_now(1000)
            self.job = None

    def device_items(self, chosen: str = "auto") -> dict[str, str]:
        """Return what the device selector offers: text by value, named and with memory.

        The chosen one is offered even where it was not found: another must not be taken without a word.
        """
        items = {"auto": _("Automatic")}
        for device in self.details.get("devices") or []:
            memory = device.get("memory_total_gib")
            text = f"{device['kind']}: {device['name']}" + (f", {memory:.0f} GiB" if memory else "")
            if device["kind"] == self.details.get("auto"):
                items["auto"] += f" ({device['kind']})"
            items[device["kind"]] = text
        if chosen not in items:
            items[chosen] = _("{device} (not found)").format(device=chosen)
        return items

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "info":
            self.details = event

    def _ended(self, state: str, failure: Any) -> None:
        self.job = None
        if self._ask_again:
            self._ask_again = False
            self.refresh()
            return
        self.failure = failure
        self.on_change()


def memory_warning(volume: Any, coverage: str) -> str:
    """Return a warning if reconstructing a volume (a VolumeInfo) needs more memory than is free; else nothing.

    It needs the packages that the reconstruction itself needs.
    """
    if volume.model_shape is None or volume.refusal:
        return ""
    from MAESILLib.reconstruct.estimate import reconstruction_memory_mib
    from MAESILLib.runtime.system import machine_memory

    needed = reconstruction_memory_mib(volume.source_voxels, volume.model_shape, is_complete=coverage == "complete")
    _total, free = machine_memory()
    if needed <= free / 2**20:
        return ""
    return "⚠ " + _(
        "This needs about {needed:.1f} GiB of memory, and {free:.1f} GiB are free: "
        "close other programs, or crop the volume"
    ).format(needed=needed / 1024, free=free / 2**30)
