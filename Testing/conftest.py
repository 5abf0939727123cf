"""What the tests share: real CT where it lies beside the checkout, a small cache, a small trained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gui_factory import panel  # noqa: F401 (a fixture)
from slicer_host.fixtures import host  # noqa: F401 (a fixture)

from MAESILLib.config import Config, Preprocessing, load
from MAESILLib.data.cache import Cache, CacheEntry, read_cache, store_volume, write_index
from MAESILLib.model import MaskedAutoencoder

REPOSITORY = Path(__file__).resolve().parent.parent
CT = REPOSITORY.parent / "shared" / "ct"


def pytest_configure() -> None:
    # tests run side by side, and threads that wait for each other would only slow them down
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real CT scans; tests that need it are skipped where it is absent."""
    if not CT.is_dir():
        pytest.skip("no real CT beside the checkout")
    return CT


def smooth_hu(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A cheap stand-in for anatomy: smooth tissue in air, int16 HU."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 4)
    field = field / field.std()
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = d**2 * 0.2 + h**2 + w**2 < 0.9
    return np.where(inside, 40 + 120 * field, -1000).astype(np.int16)


def make_cache(folder: Path, shapes: list[tuple[int, int, int]], splits: list[str] | None = None) -> Cache:
    """A cache of stand-in volumes."""
    entries = []
    for number, shape in enumerate(shapes):
        hu = smooth_hu(shape, number)
        crc32 = store_volume(folder, f"v{number}", hu)
        split = splits[number] if splits else ""
        share = float((hu > -500).mean())
        source = (f"v{number}.nii", f"{number:064x}")
        entries.append(CacheEntry(f"v{number}", shape, f"p{number}", split, *source, share, crc32=crc32))
    write_index(Cache(folder, Preprocessing().spacing_mm, tuple(entries)))
    return read_cache(folder)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Three training volumes, one of them shorter than a crop, and one for validation."""
    shapes = [(40, 48, 56), (20, 40, 40), (48, 40, 33), (40, 40, 40)]
    return make_cache(tmp_path / "cache", shapes, ["train", "train", "train", "val"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with random weights; tests read it only."""
    from cli_factory import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic CT of (40, 48, 44) voxels; tests read it only."""
    from cli_factory import write_ct

    return write_ct(tmp_path_factory.mktemp("scan") / "scan.nii.gz")


def tiny_config(**train: object) -> Config:
    """The smallest configuration that has every part."""
    return load(
        None,
        "tiny",
        {
            "model": {
                "superpatch_size": (32, 32, 32),
                "encoder_width": 48,
                "decoder_width": 32,
                "head_width": 16,
                "mlp_ratio": 2.0,
            },
            "train": {
                "steps": 8,
                "crop_size": (32, 32, 32),
                "batch_size": 2,
                "validate_every": 4,
                "validation_superpatches": 2,
                "preview_at": 2,
                "checkpoint_every": 4,
                "log_every": 1,
                **train,
            },
        },
    )


def awakened(model: MaskedAutoencoder, std: float = 0.05) -> MaskedAutoencoder:
    """Give what starts at zero random weights: in a trained model it does not stay there."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=std)
    return model
