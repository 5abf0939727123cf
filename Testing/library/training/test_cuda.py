"""On a CUDA card: the same numbers as on the CPU, and passes that do not wait for it. Skipped where there is none.

Bare machines run it with ``pytest --noconftest``: it needs no screen and no reader of images.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from training_factory import awakened, four_volumes, tiny_config

from MAESILLib.config import from_dict
from MAESILLib.data.cache import Cache
from MAESILLib.evaluation.evaluate import Measuring, evaluate, protocol
from MAESILLib.mae.checkpoint import save_checkpoint
from MAESILLib.mae.checkpoint_info import PARTS, CheckpointInfo
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for
from MAESILLib.mae.network import Network
from MAESILLib.training.loader import batches
from MAESILLib.training.log import read_log
from MAESILLib.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
CUDA = torch.device("cuda")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return four_volumes(tmp_path / "cache")


def test_the_forward_pass_of_small_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    # parts that begin at zero would hide everything before them
    config = from_dict({})
    model = awakened(Network(config.model, config.preprocessing.windows_hu), 0.02).eval()
    image = torch.rand(2, 2, 64, 64, 64)
    visible = draw_visible((8, 8, 8), MaskSpec("dual", 0.5, 0.5), 2, generator_for(0))
    with torch.no_grad():
        here = model.reconstruct(image, visible, image[:, :1])
        there = model.to(CUDA).reconstruct(image.to(CUDA), visible.to(CUDA), image[:, :1].to(CUDA))
    assert torch.equal(here.hidden, there.hidden.cpu())
    error = (there.hidden_patches.cpu() - here.hidden_patches).norm() / here.hidden_patches.norm()
    assert error < 1e-3


@pytest.mark.parametrize("compiled", [False, True])
def test_training_follows_the_cpu(tmp_path: Path, cache: Cache, compiled: bool) -> None:
    config = tiny_config(precision="fp32", noise_hu=0.0)
    Trainer(config, cache, tmp_path / "cpu").run()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, compile=compiled))
    Trainer(config, cache, tmp_path / "cuda", device=CUDA).run()
    losses = [[row["loss"] for row in read_log(tmp_path / name / "log.csv")] for name in ("cpu", "cuda")]
    np.testing.assert_allclose(*losses, rtol=1e-2)


def test_an_evaluation_is_that_of_the_cpu(tmp_path: Path, cache: Cache) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    path = tmp_path / "tiny.safetensors"
    network = awakened(Network(config.model, config.preprocessing.windows_hu), 0.02)
    save_checkpoint(path, network.state_dict(), CheckpointInfo(config.model, config.preprocessing, parts=PARTS))
    rows = []
    for name, size in (("cpu", 1), ("cuda", 1), ("cuda", 8)):
        measuring = Measuring(cache, cache.entries[:2], torch.device(name), batch_size=size)
        rows.append(evaluate([path], measuring, protocol(0), split="val")["rows"])
    for here, *there in zip(*rows, strict=True):
        for other in there:
            assert {k: v for k, v in here.items() if not isinstance(v, float)} == {
                k: v for k, v in other.items() if not isinstance(v, float)
            }
            for key, value in here.items():
                if isinstance(value, float):
                    assert other[key] == pytest.approx(value, abs=1e-2), (here["volume"], here["setting"], key)


def test_the_passes_of_a_step_wait_for_nothing(tmp_path: Path, cache: Cache) -> None:
    # the fill that the completion reads is iterated until it has converged
    config = tiny_config(steps=8, completion=False)
    trainer = Trainer(config, cache, tmp_path / "run", device=CUDA)
    for step, batch in enumerate(list(batches(config, trainer.sampler, pin=True))):
        torch.cuda.synchronize()
        # the first steps set things up
        torch.cuda.set_sync_debug_mode("error" if step >= 4 else "default")
        try:
            trainer.update.begin(step)
            trainer.update.add(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        trainer.update.finish(step)
