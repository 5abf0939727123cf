"""LPIPS with random weights, beside a plain calculation from the paper's formula."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision_cpu import write_lpips_weights

from MAESILLib.evaluation.lpips import TRUNK, PerceptualDistance
from MAESILLib.runtime.errors import InputError


def expected(trunk: nn.Sequential, channels: list[torch.Tensor], first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two slices (H, W) in [0, 1]."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    images = [((image * 2 - 1 - shift[:, None, None]) / scale[:, None, None])[None] for image in (first, second)]
    total, layer = 0.0, 0
    for part in trunk:
        images = [part(image) for image in images]
        if isinstance(part, nn.ReLU):
            a, b = (image[0] / image[0].norm(dim=0) for image in images)
            total += float(((a - b).square() * channels[layer][0]).sum(0).mean())
            layer += 1
    assert layer == 5
    return total


def test_the_distance_is_the_papers(tmp_path: Path) -> None:
    trunk = write_lpips_weights(tmp_path)
    # more slices than are taken at once
    first, second = torch.rand(2, 18, 70, 64)
    distance = PerceptualDistance(tmp_path)
    channels = [distance.network.state_dict()[f"lin{n}.model.1.weight"] for n in range(5)]
    with torch.no_grad():
        pairs = zip(first, second, strict=True)
        mean = np.mean([expected(trunk, channels, *pair) for pair in pairs])
    assert distance.of_slices(first.numpy(), second.numpy()) == pytest.approx(mean, rel=1e-4)


def test_slices_are_axial_and_grey(tmp_path: Path) -> None:
    write_lpips_weights(tmp_path)
    # slices smaller than AlexNet likes
    volume, other = np.random.default_rng(0).random((2, 18, 20, 40), dtype=np.float32)
    distance = PerceptualDistance(tmp_path)
    assert distance.of_slices(volume, volume) == 0
    one = distance.of_slices(volume[:1], other[:1])
    assert one > 0
    swapped = np.concatenate([other[:1], volume[1:]])
    assert distance.of_slices(volume, swapped) == pytest.approx(one / 18, rel=1e-4)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"alexnet-owt-7be5be79\.pth is not there"):
        PerceptualDistance(tmp_path)
    write_lpips_weights(tmp_path)
    (tmp_path / TRUNK).write_bytes(b"no weights")
    with pytest.raises(InputError, match="not a file of AlexNet's weights"):
        PerceptualDistance(tmp_path)
    torch.save({"other": torch.zeros(1)}, tmp_path / TRUNK)
    with pytest.raises(InputError, match=r"features\.0\.weight"):
        PerceptualDistance(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / TRUNK).touch()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"the lpips package .* pip install 'maesil\[lpips\]'"):
        PerceptualDistance(tmp_path)
