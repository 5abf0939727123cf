"""Small CTs with label maps whose answer is known, and a cache of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cli_factory import QUIET, maesil, write_image
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


def make_labelled(
    folder: Path,
    change: Callable[[str, int, np.ndarray], np.ndarray] = lambda split, number, labels: labels,
    train: int = 4,
    held_out: int = 2,
    named: str = "",
    dataset: str = "balls",
) -> Path:
    """Prepare a cache of phantoms with label maps; return its folder.

    Args:
        change: makes the stored label map of the true one, of a split and the number of the volume.
        named: what the manifest's column labels says; the path of the label map if empty.
    """
    folder.mkdir(parents=True)
    rows = []
    for number in range(train + held_out):
        split = "train" if number < train else "val"
        hu, labels = phantom(number)
        name = f"c{number}"
        write_image(folder / f"{name}.nii.gz", hu, geometry(SHAPE))
        write_image(folder / f"{name}_seg.nii.gz", change(split, number, labels), geometry(SHAPE))
        where = named or f"{name}_seg.nii.gz"
        rows.append((f"{name}.nii.gz", f"p{number}", split, dataset, where))
    manifest = folder / "manifest.csv"
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "patient", "split", "dataset", "labels"), *rows])
    assert maesil("prepare", manifest, "--output", folder / "cache", *QUIET).status == 0
    return folder / "cache"
