"""Small trainings: a cache of stand-in volumes and a configuration. Needs torch and scipy, no screen and no pytest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save_file

from MAESILLib.config import Config, Preprocessing, load
from MAESILLib.data.cache import INDEX, Cache, CacheEntry, read_cache, store_volume
from MAESILLib.data.index import WHOLE, Run, append
from MAESILLib.data.records import Record, hash_of_patient
from MAESILLib.runtime.stopping import StopRequest


def smooth_hu(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A cheap stand-in for anatomy: smooth tissue in air, int16 HU."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 4)
    field = field / field.std()
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = d**2 * 0.2 + h**2 + w**2 < 0.9
    return np.where(inside, 40 + 120 * field, -1000).astype(np.int16)


def write_index(folder: Path, spacing_mm: float, entries: list[CacheEntry]) -> None:
    """Write the index of volumes that lie in a cache's folder."""
    (folder / INDEX).unlink(missing_ok=True)
    append(folder, WHOLE, Run(1, WHOLE, "", spacing_mm, is_complete=True))
    for order, entry in enumerate(entries):
        append(folder, WHOLE, Record(entry.name, order, entry.name, entry=entry))


def make_cache(folder: Path, shapes: list[tuple[int, int, int]], splits: list[str] | None = None) -> Cache:
    """A cache of stand-in volumes."""
    entries = []
    for number, shape in enumerate(shapes):
        hu = smooth_hu(shape, number)
        crc32 = store_volume(folder, f"v{number}", hu)
        split = splits[number] if splits else ""
        share = float((hu > -500).mean())
        patient = hash_of_patient(f"p{number}")
        entries.append(CacheEntry(f"v{number}", shape, patient, split, f"{number:064x}", share, crc32=crc32))
    write_index(folder, Preprocessing().spacing_mm, entries)
    return read_cache(folder)


def four_volumes(folder: Path, *more: tuple[int, int, int]) -> Cache:
    """Three training volumes, one of them shorter than a crop, and one or more for validation."""
    shapes = [(40, 48, 56), (20, 40, 40), (48, 40, 33), (40, 40, 40), *more]
    return make_cache(folder, shapes, ["train"] * 3 + ["val"] * (1 + len(more)))


def tiny_config(**train: object) -> Config:
    """The smallest configuration that has every part; fp32, because a calibration takes time."""
    return load(
        None,
        "tiny",
        {
            "model": {"superpatch_size": (32, 32, 32), "encoder_width": 48, "decoder_width": 24, "head_width": 24},
            "train": {
                "steps": 8,
                "crop_size": (32, 32, 32),
                "cooldown_crop_size": (32, 32, 32),
                "batch_size": 2,
                "teacher_crops": 4,
                "completion_crops": 4,
                "warmup_steps": 2,
                "precision": "fp32",
                "validate_every": 4,
                "validation_superpatches": 2,
                "preview_at": 2,
                "checkpoint_every": 4,
                "log_every": 1,
                **train,
            },
        },
    )


def write_of_first_release(path: Path) -> Path:
    """Write what tells a checkpoint of version 0.1.0."""
    described = {"format": "maesil-checkpoint/1", "model": {"prior": True}, "library_version": "0.1.0"}
    save_file({"a": torch.zeros(1)}, path, {"maesil": json.dumps(described)})
    return path


def assert_same(one: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Check that all weights, or whatever tensors are nested in these, are the same to the last bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


class StopAfter(StopRequest):
    """Asks for a stop once it was checked ``count`` times."""

    def __init__(self, count: float, why: str = "test") -> None:
        super().__init__()
        self.checks, self.count, self.why = 0, count, why

    def requested(self) -> bool:
        self.checks += 1
        if self.checks > self.count:
            self.reason = self.why
        return bool(self.reason)


Module = TypeVar("Module", bound=torch.nn.Module)


def awakened(network: Module, std: float = 0.05) -> Module:
    """Give what starts at zero random weights: in a trained network it does not stay there."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=std)
    return network
