"""What pretraining teaches and what only reads: whose loss has whose gradient, and what a checkpoint holds of it."""

import dataclasses
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
import torch
from training_factory import assert_same, awakened, tiny_config

from MAESILLib.config import Config
from MAESILLib.data.cache import Cache
from MAESILLib.mae.checkpoint import load_checkpoint, read_weights
from MAESILLib.mae.checkpoint_info import PARTS, read_info
from MAESILLib.mae.loss import Loss, latent_loss
from MAESILLib.training.batch import Chosen
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer


@pytest.fixture
def trainer(tmp_path: Path, cache: Cache) -> Trainer:
    """A trainer whose network and its average have no weight at zero and differ."""
    trainer = Trainer(tiny_config(), cache, tmp_path / "run")
    torch.manual_seed(1)
    awakened(trainer.model)
    for weight in trainer.update.average.parameters():
        weight += 0.02 * torch.randn(weight.shape)
    return trainer


def loss_of(trainer: Trainer, **changes: object) -> Loss:
    """The loss of one batch; ``changes`` are of the batch."""
    with closing(trainer._loader()) as loader:
        batch = dataclasses.replace(next(loader), **changes)
    return trainer.task.loss(trainer.update, batch)


def gradients(loss: torch.Tensor, trainer: Trainer) -> dict[str, torch.Tensor | None]:
    names, parameters = zip(*trainer.model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return dict(zip(names, found, strict=True))


def is_reader(name: str) -> bool:
    return name.partition(".")[0] in PARTS


def test_readers_teach_the_core_nothing_and_learn_nothing_of_its_loss(trainer: Trainer) -> None:
    loss = loss_of(trainer)
    for part, reads in ((loss.core, False), (loss.readers, True)):
        found = gradients(part, trainer)
        for name, gradient in found.items():
            if is_reader(name) == reads:
                assert gradient is not None, f"{name} gets no gradient of its own loss"
                assert gradient.any(), f"{name} gets no gradient of its own loss"
            else:
                assert gradient is None or not gradient.any(), f"{name} has a gradient of another part's loss"
        assert {is_reader(name) for name in found} == {False, True}


def test_the_teacher_is_the_averaged_encoder_and_gets_no_gradient(trainer: Trainer) -> None:
    noiseless = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    with closing(trainer._loader()) as loader:
        batch = dataclasses.replace(next(loader), jitter=noiseless)
    with mock.patch("MAESILLib.training.task.latent_loss", wraps=latent_loss) as watched:
        loss = trainer.task.loss(trainer.update, batch)
    ((_, teacher, index),) = (call.args for call in watched.call_args_list)
    assert torch.equal(index, batch.decoded), "the last four of two crops are both"
    assert not any(block.requires_grad for block in teacher)
    own = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    (gradient,) = torch.autograd.grad(loss.core, trainer.model.core.encoder.embed.weight, retain_graph=True)
    with torch.no_grad():
        windows = trainer.config.preprocessing.windows_hu
        image = torch.cat([((batch.hu.float() - low) / (high - low)).clamp(0, 1) for low, high in windows], 1)
        expected = trainer.update.average.core.encoder(image, torch.arange(64).expand(2, -1))
    for one, other in zip(teacher, expected[-4:], strict=True):
        torch.testing.assert_close(one, other)
    assert gradient.any()
    # calling the teacher changed nothing of the network
    assert_same(trainer.model.state_dict(), own)
    with torch.no_grad():
        student = trainer.model.core.encoder(image, torch.arange(64).expand(2, -1))
    assert (student[-1] - teacher[-1]).abs().max() > 1e-3, "the teacher is the network itself"


def test_a_pass_without_chosen_crops_has_a_gradient_of_zero_for_every_weight(trainer: Trainer) -> None:
    """Ranks wait for each other's gradients, so none may be missing."""
    none = Chosen(slice(0, 0), 0.0)
    loss = loss_of(trainer, completed=none, taught=none)
    found = gradients(loss.core + loss.readers, trainer)
    for name, gradient in found.items():
        assert gradient is not None, name
        assert bool(gradient.any()) != name.startswith(("completion.", "latent_head.")), name
    assert loss.metrics["completed_mse"] == loss.metrics["latent_loss"] == 0


def trained(config: Config, cache: Cache, folder: Path) -> Trainer:
    trainer = Trainer(config, cache, folder)
    trainer.run()
    return trainer


def test_the_core_is_the_same_to_the_last_bit_with_and_without_readers(tmp_path: Path, cache: Cache) -> None:
    rest = {"steps": 20, "validate_every": 20, "checkpoint_every": 20}
    cores = []
    for completion, readout in ((True, True), (False, True), (True, False), (False, False)):
        config = tiny_config(completion=completion, readout=readout, **rest)
        run = trained(config, cache, tmp_path / f"{completion} {readout}")
        assert (run.model.completion is not None, run.model.readout is not None) == (completion, readout)
        cores.append({name: w for name, w in run.model.state_dict().items() if not is_reader(name)})
        parts = read_info(run.folder / "model.safetensors").parts
        assert parts == ("completion",) * completion + ("readout",) * readout
    assert any(name.startswith("latent_head.") for name in cores[0])
    for other in cores[1:]:
        assert_same(other, cores[0])


def test_the_teachers_head_is_in_the_state_and_not_in_the_checkpoint(tmp_path: Path, cache: Cache) -> None:
    trained(tiny_config(steps=2), cache, tmp_path / "run")
    state = read_state(tmp_path / "run").values
    heads = {"latent_head.weight", "latent_head.bias"}
    for part in ("model", "optimizer", "average"):
        assert heads < set(state[part])
    assert set(read_weights(tmp_path / "run" / "model.safetensors")) == set(state["model"]) - heads
    load_checkpoint(tmp_path / "run" / "model.safetensors")
    trained(tiny_config(steps=2, teacher_weight=0.0), cache, tmp_path / "without")
    assert set(read_state(tmp_path / "without").values["model"]) == set(state["model"]) - heads
