"""The scripts in examples/, as users run them."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_factory import REPOSITORY, write_ct

from MAESILLib.ct.reading import read_volume
from MAESILLib.export.encoder import load_encoder
from MAESILLib.runtime.resources import embedded_checkpoint

EXAMPLES = REPOSITORY / "examples"


def test_features(tmp_path: Path) -> None:
    # longer than a window on one axis, no whole number of tokens on another
    write_ct(tmp_path / "ct.nii.gz", (200, 20, 24))
    command = [sys.executable, EXAMPLES / "features.py", tmp_path / "ct.nii.gz", tmp_path / "features.npy"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert "192 features of 25 x 3 x 3 tokens" in done.stdout
    features = np.load(tmp_path / "features.npy")
    assert features.shape == (192, 25, 3, 3)
    # the second window ends where the image does: its own features, 128 voxels before
    encoder = load_encoder(embedded_checkpoint())
    image = encoder.intensities(read_volume(tmp_path / "ct.nii.gz").hu[-128:])[None]
    padded = torch.nn.functional.pad(image, (0, 0, 0, 4, 0, 0), mode="replicate")
    with torch.inference_mode():
        expected = encoder.feature_maps(padded)[-1][0]
    np.testing.assert_allclose(features[:, -16:], expected, atol=5e-3)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_finetuning_in_nnunet_is_shell() -> None:
    subprocess.run(["bash", "-n", EXAMPLES / "finetune_nnunet.sh"], check=True)
