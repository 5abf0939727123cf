"""Small CTs with points and label maps whose answer is known."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cli_factory import write_image
from prepare_factory import prepare
from volume_factory import geometry

SHAPE = (32, 44, 48)
BRIGHT, DARK = 1, 2


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


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Write a CSV and return its path."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_phantoms(folder: Path) -> Path:
    """Write phantoms of six patients with label maps, points in all, and a manifest and a cache of the first four.

    Of the points p5 is of split val, in the manifest p3; each has four points of each structure.
    """
    points, manifest = [], []
    for number in range(6):
        hu, labels = phantom(number)
        name, patient = f"c{number}.nii.gz", f"p{number}"
        write_image(folder / name, hu, geometry(SHAPE))
        write_image(folder / f"c{number}_seg.nii.gz", labels, geometry(SHAPE))
        manifest.append((name, patient, "val" if number == 3 else "train", "1=bright; 2=dark"))
        rng = np.random.default_rng(number)
        for value, structure in enumerate(("tissue", "bright_left" if number % 2 else "bright_right", "dark")):
            voxels = np.argwhere((labels == value) & (hu > -600))
            for kji in voxels[rng.choice(len(voxels), 4, replace=False)]:
                points.append((name, "val" if number == 5 else "train", patient, structure, *kji))
    write_rows(folder / "points.csv", ("file", "split", "patient", "structure", "k", "j", "i"), points)
    prepare(folder / "cache", write_rows(folder / "manifest.csv", ("file", "patient", "split", "labels"), manifest[:4]))
    return folder
