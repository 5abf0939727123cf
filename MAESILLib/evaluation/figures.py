"""A figure for each volume of an evaluation: input, masked input, reconstruction and error."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from MAESILLib.config import Window
from MAESILLib.ct.volume import unit_to_hu
from MAESILLib.metrics.catalogue import caption
from MAESILLib.reconstruct.figure import reconstruction_figure
from MAESILLib.reconstruct.reconstruction import Reconstruction
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import read_json

FOLDER = "figures"
SUFFIX = ".safetensors"
PREFERRED = "dual 0.75"
"""The setting that is drawn, where it is measured; else the first one."""


def drawn_setting(names: list[str]) -> str:
    """Return which of the settings is drawn."""
    return PREFERRED if PREFERRED in names else names[0]


def figure_path(checkpoint: str, volume: str, suffix: str = SUFFIX) -> str:
    """Return a figure's path inside the evaluation's folder, with slashes; each pair has its own.

    Args:
        suffix: that names of checkpoints usually have; it is left out.
    """
    return f"{FOLDER}/{_as_name(checkpoint, suffix)}/{_as_name(volume)}.png"


def _as_name(text: str, usual: str = "") -> str:
    """Return a name for files; where letters or another suffix than the usual are lost, with what tells it apart."""
    stem = text.removesuffix(usual)
    name = re.sub(r"[^\w.-]+", "_", stem).strip(".")
    if name == stem and name + usual == text:
        return name
    return f"{name}-{zlib.crc32(text.encode()):08x}"


def remove_former(folder: Path, name: str = "evaluation", by: str = "checkpoint", suffix: str = SUFFIX) -> None:
    """Remove the figures of an earlier result in ``folder``, and an evaluation's page: they are not of the new tables.

    Args:
        name: of the result's JSON file; only what it lists is removed.
        by: column of its rows that figures are filed by.
        suffix: as for :func:`figure_path`.
    """
    try:
        rows = read_json(folder / f"{name}.json")["rows"]
        paths = {folder / figure_path(str(row[by]), str(row["volume"]), suffix) for row in rows}
    except (InputError, KeyError, TypeError):
        return
    for path in (*paths, *([folder / "report.html"] if name == "evaluation" else [])):
        path.unlink(missing_ok=True)


def draw(
    folder: Path,
    spacing_mm: float,
    checkpoint: str,
    drawn: str,
    volume: str,
    setting: str,
    unit: np.ndarray,
    result: Reconstruction,
    window_hu: Window,
    metrics: dict[str, Any],
    suffix: str = SUFFIX,
) -> None:
    """Draw a reconstruction, if it is of the setting ``drawn``.

    Args:
        folder: where the evaluation is written.
        spacing_mm: of the model's grid.
        unit: (D, H, W) the input, intensities of ``window_hu``.
        metrics: for the caption.
        suffix: as for :func:`figure_path`.
    """
    if setting == drawn:
        reconstruction_figure(
            folder / figure_path(checkpoint, volume, suffix),
            reference_hu=unit_to_hu(unit, window_hu),
            reconstruction_hu=unit_to_hu(result.prediction, window_hu),
            hidden=result.hidden,
            spacing_dhw=(spacing_mm, spacing_mm, spacing_mm),
            window_hu=window_hu,
            title=f"{volume}: {setting}",
            subtitle=f"{checkpoint} | {caption(metrics)}",
        )
