"""What a reconstruction will take, told before it is begun; needs no torch.

The constants are CPU seconds of one core (Testing/Benchmarks/bench_estimate.py), less by what other work on the machine
then added; the panel corrects the time by what the last run on the same kind of device took.
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
"""Reading, resampling there and back, writing, on one core; for each million voxels of the input."""
S_PER_MVOXEL = 0.20
"""Metrics; for each million voxels of the model's grid."""
S_OF_FILL_PER_MVOXEL = 0.45
"""The harmonic and the biharmonic fill of each pass, which overlapping superpatches do not have."""
S_OF_COMPLETION = 0.25
S_PER_WEIGHT, S_PER_WEIGHT_VISIBLE = 0.01, 0.12
"""The transformer, for each million weights of its blocks; the second times the share of visible patches."""
USEFUL_CORES = 8
GPU_SPEED_UP = 5.0
"""A guess: the metrics stay on the CPU."""
BASE_MIB, MIB_PER_SOURCE_MVOXEL, MIB_PER_MVOXEL, MIB_PER_MVOXEL_OF_COVER = 640, 33, 30, 10


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
    mask_ratio: float,
    is_complete: bool = False,
    overlap: float = 0.0,
    device: str = "cpu",
    cores: int | None = None,
) -> Cost:
    """Return what reconstructing one volume will take.

    Args:
        source_voxels: of the input.
        model_shape: (D, H, W) of the model's grid.
        mask_ratio: of the patches, in one pass.
        is_complete: complete coverage, which takes as many passes as cover every patch.
        overlap: of the superpatches.
        device: cpu, cuda or mps.
        cores: that do it; those of this machine if None.
    """
    # visible sets are disjoint from half hidden on; below, each pass covers its share of what is left
    passes = max(2, math.ceil(1 / max(mask_ratio, 0.05))) if is_complete else 1
    source, volume = source_voxels / 1e6, math.prod(model_shape) / 1e6
    boxes = partition(model_shape, model.superpatch_size, model.patch_size, overlap)
    network = sum(math.prod(box.size) for box in boxes) / 1e6 * _network_s(model, 1 - mask_ratio)
    fill = volume * S_OF_FILL_PER_MVOXEL if overlap == 0 and mask_ratio > 0 else 0.0
    on_device = passes * (network + fill) / (1 if device == "cpu" else GPU_SPEED_UP)
    cores = min(cores or os.cpu_count() or 1, USEFUL_CORES)
    seconds = START_S + S_PER_SOURCE_MVOXEL * source + (on_device + S_PER_MVOXEL * volume) / cores
    memory = BASE_MIB + MIB_PER_SOURCE_MVOXEL * source + MIB_PER_MVOXEL * volume
    return Cost(seconds, memory + (MIB_PER_MVOXEL_OF_COVER * volume if is_complete else 0))


def _network_s(model: ModelConfig, visible_share: float) -> float:
    """Return the CPU seconds of a pass over a million voxels, roughly by the network's weights."""
    # a block has about 12 weights for each pair of channels
    weights = 12e-6 * (model.encoder_depth * model.encoder_width**2 + model.decoder_depth * model.decoder_width**2)
    completion = S_OF_COMPLETION if visible_share < 1 else 0.0
    return completion + weights * (S_PER_WEIGHT + S_PER_WEIGHT_VISIBLE * visible_share)
