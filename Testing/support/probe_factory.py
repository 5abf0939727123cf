"""Small CTs with points and label maps whose answer is known, and a small checkpoint to probe."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from volume_factory import geometry, image_of

from MAESILLib.config import ModelConfig, Preprocessing
from MAESILLib.ct.geometry import Geometry
from MAESILLib.data.records import hash_of_patient
from MAESILLib.mae.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.mae.network import Network

SHAPE = (32, 44, 48)
BRIGHT, DARK = 1, 2
NAMES = ("tissue", "bright", "dark")


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tissue in air with a bright and a dark ball at random places: HU and labels, (D, H, W)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    inside = ((y - 22) / 20) ** 2 + ((x - 24) / 22) ** 2 < 1
    labels = np.zeros(SHAPE, np.int16)
    swap = rng.choice([-1, 1])
    for value, side in ((BRIGHT, -swap), (DARK, swap)):
        centre = (rng.uniform(8, 24), rng.uniform(16, 28), 24 + side * rng.uniform(8, 12))
        ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 8.5**2
        labels[ball & inside] = value
    hu = np.where(inside, 40.0, -1000.0) + 250.0 * (labels == BRIGHT) - 250.0 * (labels == DARK)
    return np.clip(hu + rng.normal(0, 15, SHAPE), -1024, 3071).astype(np.int16), labels


def write_image(path: Path, array: np.ndarray, grid: Geometry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(array, grid), str(path), useCompression=True)


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_points(folder: Path, patients: int = 6, each: int = 4) -> Path:
    """Write phantoms and a list of points in them; the last patient is of split val. Return the CSV's path."""
    rows = []
    for number in range(patients):
        hu, labels = phantom(number)
        write_image(folder / f"c{number}.nii.gz", hu, geometry(SHAPE))
        rng = np.random.default_rng(number)
        for value, name in enumerate(NAMES):
            voxels = np.argwhere((labels == value) & (hu > -600))
            side = {"bright": "_left"}.get(name, "") if number % 2 else {"bright": "_right"}.get(name, "")
            split = "val" if number == patients - 1 else "train"
            for k, j, i in voxels[rng.choice(len(voxels), each, replace=False)]:
                rows.append((f"c{number}.nii.gz", split, f"p{number}", name + side, k, j, i))
    return write_rows(folder / "points.csv", ("file", "split", "patient", "structure", "k", "j", "i"), rows)


def write_labelled(
    folder: Path,
    patients: int = 4,
    change: Callable[[int, np.ndarray], np.ndarray] = lambda number, labels: labels,
    labels: str = "1=bright; 2=dark",
) -> Path:
    """Write phantoms with label maps and a manifest; the last patient is of split val. Return the manifest's path."""
    rows = []
    for number in range(patients):
        hu, true = phantom(number)
        write_image(folder / f"c{number}.nii.gz", hu, geometry(SHAPE))
        write_image(folder / f"c{number}_seg.nii.gz", change(number, true), geometry(SHAPE))
        rows.append((f"c{number}.nii.gz", f"p{number}", "val" if number == patients - 1 else "train", labels))
    return write_rows(folder / "manifest.csv", ("file", "patient", "split", "labels"), rows)


def write_encoder(path: Path, pretrained_on: Sequence[str] = ("p0", "p1"), **changes: Any) -> Path:
    """Write a small checkpoint with random weights that says which patients it was pretrained on."""
    model = ModelConfig(
        superpatch_size=(32, 32, 32),
        encoder_width=24,
        encoder_depth=3,
        head_width=12,
        decoder_width=24,
        decoder_depth=1,
        completion_channels=(4, 8),
    )
    torch.manual_seed(0)
    prepared = Preprocessing(**changes)
    network = Network(model, prepared.windows_hu, ())
    training = {"data": {"patients_sha256": [hash_of_patient(name) for name in pretrained_on]}}
    info = CheckpointInfo(model, prepared, training=training)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, network.state_dict(), info)
    return path
