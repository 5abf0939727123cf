"""The exported encoder, alone and in nnU-Net's Primus, computes what the masked autoencoder's encoder computes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from export_factory import (
    SIZE,
    TRAINING,
    WINDOWS,
    exported_trainer,
    plans_of,
    raw_hu,
    rewritten,
    write_lively_checkpoint,
)
from safetensors.torch import load_file
from torchvision_cpu import PRIMUS, imported

from MAESILLib.ct.volume import hu_to_unit
from MAESILLib.export.encoder import export_torch, load_encoder
from MAESILLib.export.nnunet import TRAINER, WEIGHTS, export_nnunet
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import sha256_of

TOKENS = math.prod(n // 8 for n in SIZE)


@pytest.fixture
def exported(lively: Path, tmp_path: Path) -> Path:
    export_torch(lively, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


class TestEncoder:
    def test_it_computes_what_the_autoencoder_computes(self, lively: Path, exported: Path) -> None:
        encoder = load_encoder(exported)
        image = encoder.intensities(raw_hu(SIZE, batch=2))
        with torch.no_grad():
            expected = load_checkpoint(lively)[0].core(image, torch.arange(TOKENS).expand(2, -1)).encoded
            tokens, maps = encoder(image), encoder.feature_maps(image)
        assert torch.equal(tokens, expected[-1])
        assert tokens.std(1).mean() > 0.1
        assert len(maps) == len(expected) == 5
        for found, output in zip(maps, expected, strict=True):
            assert found.shape == (2, 48, 2, 4, 3)
            assert torch.equal(found.flatten(2).transpose(1, 2), output)

    def test_an_image_does_not_depend_on_its_batch(self, lively: Path) -> None:
        encoder = load_encoder(lively)
        images = encoder.intensities(raw_hu(SIZE, batch=2))
        with torch.no_grad():
            assert (encoder(images)[1] - encoder(images[1:])[0]).abs().max() < 1e-5

    def test_it_says_what_it_expects(self, lively: Path, exported: Path) -> None:
        for path in (lively, exported):
            encoder = load_encoder(path)
            assert (encoder.spacing_mm, encoder.windows_hu, encoder.orientation) == (1.5, WINDOWS, "LPS")
            assert (encoder.patch_size, encoder.trained_size, encoder.width) == ((8, 8, 8), (48, 48, 48), 48)
            assert encoder.info.source == {"name": "lively.safetensors", "sha256": sha256_of(lively)}
            assert encoder.info.training == TRAINING

    @pytest.mark.parametrize("dtype", [np.int16, np.float32])
    def test_intensities_are_those_of_the_library(self, lively: Path, dtype: type) -> None:
        hu = np.arange(-1100, 1100, 37).astype(dtype).reshape(2, 3, 10)
        for given in (hu, torch.from_numpy(hu)):
            found = load_encoder(lively).intensities(given)
            assert found.shape == (2, 2, 3, 10)
            for channel, window in zip(found.numpy(), WINDOWS, strict=True):
                np.testing.assert_allclose(channel, hu_to_unit(hu, window), atol=1e-6)

    @pytest.mark.parametrize("shape", [(1, 2, 16, 16, 20), (1, 1, 16, 16, 16), (2, 16, 16, 16), (1, 2, 0, 16, 16)])
    def test_another_shape_is_refused(self, lively: Path, shape: tuple[int, ...]) -> None:
        for call in (load_encoder(lively), load_encoder(lively).feature_maps):
            with pytest.raises(InputError, match="the image has"):
                call(torch.zeros(shape))

    def test_it_trains(self, lively: Path) -> None:
        encoder = load_encoder(lively)
        encoder(torch.rand(1, 2, *SIZE)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


class TestNnunet:
    """The folder of ``--format nnunet``; nnU-Net itself runs in Testing/Benchmarks/finetune_nnunet.py."""

    @pytest.fixture
    def folder(self, lively: Path, tmp_path: Path) -> Path:
        imported(PRIMUS)
        export_nnunet(lively, tmp_path / "export")
        return tmp_path / "export"

    def test_the_trainer_builds_the_encoder(self, lively: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainer = exported_trainer(folder, monkeypatch).nnUNetTrainerMAESIL
        net = trainer.build_network_architecture(*plans_of(), 1, 3, False).eval()
        seen: list[torch.Tensor] = []
        net.eva.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        hu, encoder = raw_hu(SIZE, batch=2), load_encoder(lively)
        with torch.no_grad():
            out = net(hu[:, None])
            expected = encoder(encoder.intensities(hu))
        assert out.shape == (2, 3, *SIZE)
        assert (seen[0] - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
        again = trainer.build_network_architecture(*plans_of(), 1, 3, False).eval()
        again.load_state_dict(net.state_dict(), strict=True)
        with torch.no_grad():
            assert torch.equal(again(hu[:, None]), out)

    @pytest.mark.parametrize(
        ("changes", "channels", "message"),
        [
            ({"spacing": [1.5, 1.5, 3.0]}, 1, "-overwrite_target_spacing 1.5 1.5 1.5"),
            ({"spacing": [1.5, 1.5]}, 1, "3D voxels of 1.5 mm"),
            ({"normalization_schemes": ["CTNormalization"]}, 1, "noNorm"),
            ({}, 2, "2 channels"),
            ({"transpose_forward": [2, 0, 1]}, 1, "permute axes"),
            ({"patch_size": [16, 32, 20]}, 1, "a multiple of"),
        ],
    )
    def test_plans_that_do_not_fit_are_refused(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], channels: int, message: str
    ) -> None:
        trainer = exported_trainer(folder, monkeypatch).nnUNetTrainerMAESIL
        with pytest.raises(ValueError, match=message):
            trainer.build_network_architecture(*plans_of(**changes), channels, 3, False)

    def test_weights_of_another_network_are_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rewritten(folder / WEIGHTS, lambda tensors, _: tensors.pop("eva.norm.weight"))
        trainer = exported_trainer(folder, monkeypatch).nnUNetTrainerMAESIL
        with pytest.raises(ValueError, match="1 tensors missing, 0 unexpected"):
            trainer.build_network_architecture(*plans_of(), 1, 3, False)

    def test_the_folder_holds_weights_and_trainer(self, folder: Path) -> None:
        assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, TRAINER])
        assert {name.split(".")[0] for name in load_file(folder / WEIGHTS)} == {"down_projection", "eva"}

    def test_positions_that_primus_lacks_are_refused(self, tmp_path: Path) -> None:
        path = write_lively_checkpoint(tmp_path / "fixed.safetensors", positions="sincos")
        with pytest.raises(InputError, match="positions 'sincos'"):
            export_nnunet(path, tmp_path / "export")
        assert not (tmp_path / "export").exists()
