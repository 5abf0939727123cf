"""LPIPS with random weights, beside a plain calculation from the paper's formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lpips_factory import write_lpips_weights
from torch import nn

from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.runtime.errors import InputError


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, nn.Sequential, list[torch.Tensor]]:
    return tmp_path, *write_lpips_weights(tmp_path)


def expected(trunk: nn.Sequential, channels: list[torch.Tensor], first: torch.Tensor, second: torch.Tensor) -> float:
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    images = [((image - shift[:, None, None]) / scale[:, None, None])[None] for image in (first, second)]
    total, layer = 0.0, 0
    for part in trunk:
        images = [part(image) for image in images]
        if isinstance(part, nn.ReLU):
            a, b = (image[0] / image[0].norm(dim=0) for image in images)
            total += float(((a - b).square() * channels[layer][0]).sum(0).mean())
            layer += 1
    assert layer == 5
    return total


def test_the_distance_is_the_papers(weights: tuple[Path, nn.Sequential, list[torch.Tensor]]) -> None:
    folder, trunk, channels = weights
    images = torch.rand(2, 2, 3, 70, 64) * 2 - 1
    found = PerceptualDistance(folder).of_images(images[0], images[1])
    with torch.no_grad():
        for one, first, second in zip(found, images[0], images[1], strict=True):
            assert float(one) == pytest.approx(expected(trunk, channels, first, second), rel=1e-4)


def test_slices_are_axial_and_grey(weights: tuple[Path, nn.Sequential, list[torch.Tensor]]) -> None:
    folder, _, _ = weights
    rng = np.random.default_rng(0)
    # more slices than are taken at once, and slices smaller than AlexNet likes
    volume, other = rng.random((2, 18, 20, 40), dtype=np.float32)
    distance = PerceptualDistance(folder)
    assert distance.of_slices(volume, volume) == 0
    one = distance.of_slices(volume[:1], other[:1])
    assert one > 0
    swapped = np.concatenate([other[:1], volume[1:]])
    assert distance.of_slices(volume, swapped) == pytest.approx(one / 18, rel=1e-4)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"alexnet-owt-7be5be79\.pth is not there"):
        PerceptualDistance(tmp_path)
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match="not a file of weights"):
        PerceptualDistance(tmp_path)
    for name in ("alexnet-owt-7be5be79.pth", "alex.pth"):
        torch.save({"other": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(InputError, match=r"features\.0\.weight"):
        PerceptualDistance(tmp_path)
