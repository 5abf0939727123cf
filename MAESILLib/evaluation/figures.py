"""A figure for each volume of an evaluation: input, masked input, reconstruction and error."""

from __future__ import annotations

import re
import shutil
import uuid
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from MAESILLib.config import Window
from MAESILLib.errors import InputError
from MAESILLib.figure import reconstruction_figure
from MAESILLib.files import explain_os_error, missing_folders, remove_empty
from MAESILLib.reconstruction import Reconstruction
from MAESILLib.volume import unit_to_hu

FOLDER = "figures"
PREFERRED = "dual 0.75"
"""The setting that is drawn, where it is measured; else the first one."""


def drawn_setting(names: list[str]) -> str:
    """Return which of the settings is drawn."""
    return PREFERRED if PREFERRED in names else names[0]


def figure_path(checkpoint: str, volume: str) -> str:
    """Return a figure's path inside the evaluation's folder, with slashes; each pair has its own."""
    return f"{FOLDER}/{_as_name(checkpoint, '.safetensors')}/{_as_name(volume)}.png"


def _as_name(text: str, usual: str = "") -> str:
    """Return a name for files; where letters or another suffix than the usual are lost, with what tells it apart."""
    stem = text.removesuffix(usual)
    name = re.sub(r"[^\w.-]+", "_", stem).strip(".")
    if name == stem and name + usual == text:
        return name
    return f"{name}-{zlib.crc32(text.encode()):08x}"


class FigureWriter:
    """Draws into a hidden folder beside the results; :meth:`publish` moves the figures into place.

    As a context manager it removes what was not published.

    Args:
        folder: of the evaluation; made where it does not exist, and removed again if nothing comes of it.
        spacing_mm: of the model's grid.
    """

    def __init__(self, folder: Path, spacing_mm: float) -> None:
        self.folder, self.spacing_mm = folder, spacing_mm
        self.staging = folder / f".partial-{uuid.uuid4().hex[:8]}"
        self.paths: list[str] = []
        self.missing = missing_folders(folder)

    def draw(
        self,
        checkpoint: str,
        volume: str,
        setting: str,
        unit: np.ndarray,
        result: Reconstruction,
        window_hu: Window,
        figures: dict[str, Any],
    ) -> None:
        """Draw one reconstruction.

        Args:
            unit: (D, H, W) the input, intensities of ``window_hu``.
            figures: of merit, for the caption.
        """
        path = figure_path(checkpoint, volume)
        reference, prediction = unit_to_hu(unit, window_hu), unit_to_hu(result.prediction, window_hu)
        spacing = self.spacing_mm
        reconstruction_figure(
            self.staging / path,
            reference_hu=reference,
            masked_hu=np.where(result.hidden, window_hu[0], reference),
            reconstruction_hu=prediction,
            error_hu=prediction - reference,
            hidden=result.hidden,
            spacing_dhw=(spacing, spacing, spacing),
            window_hu=window_hu,
            title=f"{volume}: {setting}",
            subtitle=_caption(checkpoint, figures),
        )
        self.paths.append(path)

    def publish(self) -> list[Path]:
        """Move the figures into the evaluation's folder; return their paths."""
        published = []
        for path in self.paths:
            target = self.folder / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.staging / path).replace(target)
            except OSError as error:
                raise explain_os_error(error, target) from error
            published.append(target)
        return published

    def __enter__(self) -> FigureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        remove_empty(self.missing)
        if isinstance(error, InputError):
            # a user knows nothing of the hidden folder
            error.message = error.message.replace(str(self.staging), str(self.folder))


def _caption(checkpoint: str, figures: dict[str, Any]) -> str:
    parts = [checkpoint]
    for key, form in (
        ("psnr_masked_db", "PSNR of hidden patches {:.2f} dB"),
        ("psnr_complete_db", "every patch predicted unseen: {:.2f} dB"),
        ("psnr_autoencoding_db", "nothing hidden: {:.2f} dB"),
        ("baseline_harmonic_psnr_masked_db", "harmonic fill {:.2f} dB"),
        ("mae_masked_hu", "mean error {:.0f} HU"),
    ):
        if figures.get(key) is not None:
            parts.append(form.format(figures[key]))
    return " | ".join(parts)
