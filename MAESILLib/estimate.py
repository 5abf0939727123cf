"""What a reconstruction will take, told before it is begun; needs no torch.

The constants were measured on two cores with the checkpoint that ships (Testing/Benchmarks/bench_estimate.py); the
panel corrects the time by what the last run on the same kind of device took.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from MAESILLib.config import ModelConfig
from MAESILLib.superpatch import partition

START_S = 2.0
"""Starting Python, importing torch, loading the checkpoint."""
S_PER_SOURCE_MVOXEL = 0.10
"""Reading, resampling there and back, writing; for each million voxels of the input."""
S_PER_MVOXEL = 0.10
"""Metrics; for each million voxels of the model's grid."""
S_OF_FILL_PER_MVOXEL = 0.55
"""The harmonic fill of the volume, which overlapping superpatches do not have."""
S_PER_PASS_MVOXEL, S_PER_PASS_VISIBLE_MVOXEL = 0.20, 0.50
"""The model; for each pass and million voxels of its superpatches, and of their visible patches."""
MEASURED_CORES = 2
USEFUL_CORES = 8
GPU_SPEED_UP = 5.0
"""A guess: the metrics stay on the CPU."""
BASE_MIB, MIB_PER_SOURCE_MVOXEL, MIB_PER_MVOXEL, MIB_PER_MVOXEL_OF_COVER = 580, 33, 30, 30


@dataclass(frozen=True)
class Cost:
    """Seconds, and main memory in MiB."""

    seconds: float
    memory_mib: float


def reconstruction_cost(
    model: ModelConfig,
    *,
    source_voxels: int,
    model_shape: tuple[int, int, int],
    hidden_share: float,
    is_complete: bool = False,
    overlap: float = 0.0,
    device: str = "cpu",
) -> Cost:
    """Return what reconstructing one volume will take.

    Args:
        source_voxels: of the input.
        model_shape: (D, H, W) of the model's grid.
        hidden_share: of the patches, in one pass.
        is_complete: complete coverage, which takes as many passes as cover every patch.
        overlap: of the superpatches.
        device: cpu, cuda or mps.
    """
    # visible sets are disjoint from half hidden on; below, each pass covers its share of what is left
    passes = max(2, math.ceil(1 / max(hidden_share, 0.05))) if is_complete else 1
    source, volume = source_voxels / 1e6, math.prod(model_shape) / 1e6
    boxes = partition(model_shape, model.superpatch_size, model.patch_size, overlap)
    work = passes * sum(math.prod(box.size) for box in boxes) / 1e6
    network = work * (S_PER_PASS_MVOXEL + S_PER_PASS_VISIBLE_MVOXEL * (1 - hidden_share)) * _weight(model)
    is_filled = overlap == 0 and hidden_share > 0
    around = volume * (S_PER_MVOXEL + (S_OF_FILL_PER_MVOXEL if is_filled else 0))
    if device != "cpu":
        network /= GPU_SPEED_UP
    cores = min(os.cpu_count() or MEASURED_CORES, USEFUL_CORES)
    seconds = START_S + S_PER_SOURCE_MVOXEL * source + (network + around) * MEASURED_CORES / cores
    memory = BASE_MIB + MIB_PER_SOURCE_MVOXEL * source + MIB_PER_MVOXEL * volume
    return Cost(seconds, memory + (MIB_PER_MVOXEL_OF_COVER * volume if is_complete else 0))


def _weight(model: ModelConfig) -> float:
    """Return the network's work on a token beside that of the checkpoint that ships, roughly by its weights."""
    own = model.encoder_depth * model.encoder_width**2 + model.decoder_depth * model.decoder_width**2
    shipped = ModelConfig()
    other = shipped.encoder_depth * shipped.encoder_width**2 + shipped.decoder_depth * shipped.decoder_width**2
    return own / other
