"""What benchmarks share: arguments, generated CTs, processes of their own, and differences of arms."""

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.writing import volume_writer
from MAESILLib.metrics.statistics import paired_difference
from MAESILLib.runtime.resources import sample_ct

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
"""Of processes that import the library."""
Shape = tuple[int, int, int]


def parser_of(doc: str | None, *paths: str) -> argparse.ArgumentParser:
    """Return a parser whose help is the text of a script, with options for paths that are needed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in paths:
        parser.add_argument(name, type=Path, required=True)
    return parser


def scaled(hu: NDArray[np.int16], shape: Shape) -> NDArray[np.int16]:
    """Return HU scaled to a number of voxels."""
    return zoom(hu, np.divide(shape, hu.shape), order=1)


def scaled_sample(shape: Shape) -> NDArray[np.int16]:
    """Return HU of the sample, scaled to a number of voxels."""
    return scaled(read_volume(sample_ct()).hu, shape)


def with_noise(hu: NDArray[np.int16], seed: int) -> NDArray[np.int16]:
    """Return HU with noise: a file of it compresses as a scanner's does."""
    return hu + np.random.default_rng(seed).integers(-15, 16, hu.shape, np.int16)


def write_volume(path: Path, hu: NDArray[np.int16], spacing_dhw: tuple[float, float, float]) -> Path:
    """Write HU as a volume that lies along the axes of the patient."""
    d, h, w = hu.shape
    geometry = Geometry((d, h, w), spacing_dhw, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    with volume_writer(path, hu.dtype, geometry) as write:
        write(hu)
    return path


def show(tables: dict[str, dict[str, dict[str, float]]], own: str) -> None:
    """Print the mean of each arm, and the difference of our own with its interval."""
    for title, table in tables.items():
        for arm, values in table.items():
            apart = paired_difference(table[own], values, {name: name for name in values})
            mean = np.mean(list(values.values())) if values else float("nan")
            print(f"{title}: {arm} {mean:.3f}, {own} minus it {apart}", flush=True)
