"""A figure for each volume of an evaluation: input, masked input, reconstruction and error."""

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from MAESILLib.config import Window
from MAESILLib.metrics.catalogue import caption
from MAESILLib.reconstruct.figure import reconstruction_figure
from MAESILLib.reconstruct.reconstruction import Reconstruction
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import read_json

SUFFIX = ".safetensors"
"""Names of checkpoints usually have it; it is left out."""


def figure_path(row: dict[str, Any]) -> str:
    """Return a figure's path inside the folder of the results, with slashes; each model and volume has its own."""
    model = row["checkpoint"] if "checkpoint" in row else row["method"] + SUFFIX
    return f"figures/{_as_name(model, SUFFIX)}/{_as_name(row['volume'])}.png"


def _as_name(text: str, usual: str = "") -> str:
    """Return a name for files; where letters or another suffix than the usual are lost, with what tells it apart."""
    stem = text.removesuffix(usual)
    name = re.sub(r"[^\w.-]+", "_", stem).strip(".")
    if name == stem and name + usual == text:
        return name
    return f"{name}-{zlib.crc32(text.encode()):08x}"


def remove_former(folder: Path, name: str = "evaluation") -> None:
    """Remove the figures of an earlier result in ``folder``, and an evaluation's page: they are not of the new tables.

    Args:
        name: of the result's JSON file; only what it lists is removed.
    """
    try:
        paths = {folder / figure_path(row) for row in read_json(folder / f"{name}.json")["rows"]}
    except (InputError, KeyError, TypeError, AttributeError):
        return
    for path in (*paths, *([folder / "report.html"] if name == "evaluation" else [])):
        path.unlink(missing_ok=True)


def draw(
    folder: Path, row: dict[str, Any], unit: np.ndarray, result: Reconstruction, window_hu: Window, spacing_mm: float
) -> None:
    reconstruction_figure(
        folder / figure_path(row),
        reference=unit,
        reconstruction=result.prediction,
        hidden=result.hidden,
        spacing_dhw=(spacing_mm, spacing_mm, spacing_mm),
        window_hu=window_hu,
        title=f"{row['volume']}: {row['setting']}",
        subtitle=f"{row.get('checkpoint') or row['method']} | {caption(row)}",
    )
