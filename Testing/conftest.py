"""What the tests share: real CT where it lies beside the checkout, a small cache, a small trained model."""

import os
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from cli_factory import REPOSITORY, warm_python, write_checkpoint, write_ct  # noqa: F401 (warm_python is a fixture)
from export_factory import write_lively_checkpoint
from slicer_host.fixtures import host, probe, qt  # noqa: F401 (fixtures)
from training_factory import four_volumes

from MAESILLib.data.cache import Cache
from MAESILLib.runtime.resources import sample_ct

CT = REPOSITORY.parent / "shared" / "ct"


def pytest_configure() -> None:
    # tests run side by side, and threads that wait for each other would only slow them down
    torch.set_num_threads(1)
    # nor does what they write outlast a power failure: disks take milliseconds to store a file, and as many to free it
    os.fsync = lambda _: None


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real CT scans; tests that need it are skipped where it is absent."""
    if not CT.is_dir():
        pytest.skip("no real CT beside the checkout")
    return CT


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Three training volumes and one for validation."""
    return four_volumes(tmp_path / "cache")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with random weights; tests read it only."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint whose every weight matters; tests read it only."""
    return write_lively_checkpoint(tmp_path_factory.mktemp("lively") / "lively.safetensors")


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic CT of (40, 48, 44) voxels; tests read it only."""
    return write_ct(tmp_path_factory.mktemp("scan") / "scan.nii.gz")


@pytest.fixture(scope="session")
def sample_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of the sample CT, (20, 64, 64) voxels; tests read it only."""
    path = tmp_path_factory.mktemp("sample") / "part.nrrd"
    sitk.WriteImage(sitk.ReadImage(str(sample_ct()))[68:132, 37:101, 16:36], str(path))
    return path
