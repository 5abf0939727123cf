"""What a reconstruction will take, told before it is begun; needs no torch.

The constants were measured on two cores with the checkpoint that ships (Testing/Benchmarks/bench_estimate.py); the
panel corrects the time by what the last run on the same kind of device took.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from MAESILLib.config import ModelConfig

START_S = 2.0
"""Starting Python, importing torch, loading the checkpoint."""
S_PER_SOURCE_MVOXEL = 0.06
"""Reading, resampling there and back, writing; for each million voxels of the input."""
S_PER_PASS_MVOXEL = 1.0
"""The model, the prior and the harmonic fill; for each pass and million voxels of the model's grid, on two cores."""
MEASURED_CORES = 2
USEFUL_CORES = 8
GPU_SPEED_UP = 5.0
"""A guess: the harmonic fill and the metrics stay on the CPU."""
BASE_MIB = 600
MIB_PER_SOURCE_MVOXEL = 30
MIB_PER_MODEL_MVOXEL = 17


@dataclass(frozen=True)
class Cost:
    """Seconds, and main memory in MiB."""

    seconds: float
    memory_mib: float


def reconstruction_cost(
    model: ModelConfig,
    *,
    source_voxels: int,
    model_voxels: int,
    hidden_share: float,
    is_complete: bool = False,
    overlap: float = 0.0,
    device: str = "cpu",
) -> Cost:
    """Return what reconstructing one volume will take.

    Args:
        source_voxels: of the input.
        model_voxels: of the model's grid.
        hidden_share: of the patches, in one pass.
        is_complete: complete coverage, which takes as many passes as cover every patch.
        overlap: of the superpatches; each axis longer than one takes 1 / (1 - overlap) times as many.
        device: cpu, cuda or mps.
    """
    # visible sets are disjoint from half hidden on; below, each pass covers its share of what is left
    passes = max(2, math.ceil(1 / max(hidden_share, 0.05))) if is_complete else 1
    voxels = math.prod(model.superpatch_size)
    axes = min(3.0, max(0.0, math.log2(max(1.0, model_voxels / voxels)))) if overlap else 0.0
    work = passes * model_voxels / 1e6 / (1 - min(overlap, 0.75)) ** axes
    seconds_of_work = S_PER_PASS_MVOXEL * work * _weight(model)
    if device == "cpu":
        seconds_of_work *= MEASURED_CORES / min(os.cpu_count() or MEASURED_CORES, USEFUL_CORES)
    else:
        seconds_of_work /= GPU_SPEED_UP
    seconds = START_S + S_PER_SOURCE_MVOXEL * source_voxels / 1e6 + seconds_of_work
    memory = BASE_MIB + MIB_PER_SOURCE_MVOXEL * source_voxels / 1e6 + MIB_PER_MODEL_MVOXEL * model_voxels / 1e6
    return Cost(seconds, memory)


def _weight(model: ModelConfig) -> float:
    """Return the network's work on a token beside that of the checkpoint that ships, roughly by its weights."""
    own = model.encoder_depth * model.encoder_width**2 + model.decoder_depth * model.decoder_width**2
    shipped = ModelConfig()
    other = shipped.encoder_depth * shipped.encoder_width**2 + shipped.decoder_depth * shipped.decoder_width**2
    # fills and metrics cost the same for every network
    return 0.5 + 0.5 * own / other
