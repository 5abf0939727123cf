"""The checkpoints a user can choose from: the embedded one, those of past trainings, files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MAESILWidgets.messages import explain

SETTING = "MAESIL/Checkpoints"
MOST = 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as the panel tells it; ``problem`` says why it cannot be used, ``info`` is None then."""

    line: str
    info: Any = None
    problem: str = ""


def known() -> list[str]:
    """Return the remembered checkpoints that still exist, latest first."""
    stored = slicer.app.userSettings().value(SETTING)
    # one path comes back as a text, several as a tuple
    paths = [stored] if isinstance(stored, str) else list(stored or [])
    return [str(path) for path in paths if path and Path(path).is_file()]


def remember(path: str) -> None:
    """Put a checkpoint first in the list."""
    path = str(Path(path).resolve())
    slicer.app.userSettings().setValue(SETTING, [path, *(p for p in known() if p != path)][:MOST])


def label(path: str) -> str:
    """Return what a checkpoint is called in the selector."""
    if not path:
        return _("MAESIL small (comes with MAESIL)")
    file = Path(path)
    return f"{file.parent.name}/{file.name}"


def describe(path: str) -> Checkpoint:
    """Read a checkpoint's metadata; the embedded one's if ``path`` is empty."""
    from MAESILLib.mae.checkpoint_info import parameter_counts, read_info, samples_seen
    from MAESILLib.runtime.errors import InputError
    from MAESILLib.runtime.resources import embedded_checkpoint

    try:
        file = Path(path) if path else embedded_checkpoint()
        info = read_info(file)
        weights = sum(parameter_counts(file).values()) / 1e6
    except InputError as error:
        return Checkpoint("", problem=explain(error))
    except OSError as error:
        return Checkpoint("", problem=str(error))
    training = info.training
    data = training.get("data") or {}
    parts = [f"{training.get('preset', '?')}, {weights:.1f} M " + _("weights")]
    if samples_seen(training):
        parts.append(_("{n:,} crops seen").format(n=samples_seen(training)))
    if data.get("volumes"):
        count = data["volumes"] if isinstance(data["volumes"], int) else len(data["volumes"])
        parts.append(_("{n} CTs").format(n=count))
    size = " x ".join(str(n) for n in info.model.superpatch_size)
    parts.append(_("superpatch {size} at {spacing:g} mm").format(size=size, spacing=info.preprocessing.spacing_mm))
    return Checkpoint(", ".join(parts), info)
