"""What decays, how the learning rate runs, and how weights are averaged."""

import copy
import itertools

import pytest
import torch
from training_factory import tiny_config

from MAESILLib.training.task import Pretraining
from MAESILLib.training.update import is_decayed, learning_rate, make_optimizers, update_average


def test_only_matrices_decay() -> None:
    network = Pretraining(tiny_config())
    decayed = {name for name, p in network.named_parameters() if is_decayed(name, p)}
    assert decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    rest = {name for name, _ in network.named_parameters()} - decayed
    assert {"core.decoder.mask_token", "core.decoder.mix.weight", "readout.mix.weight"} < rest
    kernels = {name for name, p in network.named_parameters() if p.dim() == 5}
    assert kernels
    assert kernels < rest
    assert all(name.endswith(("bias", "token", "mix.weight")) or "norm" in name for name in rest - kernels)


def test_core_completion_and_readout_have_optimizers_of_their_own() -> None:
    network = Pretraining(tiny_config())
    optimizers = make_optimizers(network, tiny_config().train)
    names = {parameter: name for name, parameter in network.named_parameters()}
    held = {part: [names[p] for g in o.param_groups for p in g["params"]] for part, o in optimizers.items()}
    assert sorted(itertools.chain.from_iterable(held.values())) == sorted(names.values())
    assert all(name.startswith(("core.", "latent_head.")) for name in held["core"])
    for part in ("completion", "readout"):
        assert all(name.startswith(part + ".") for name in held[part])
    assert [g["weight_decay"] for g in optimizers["core"].param_groups] == [0.05, 0.0]
    alone = tiny_config(completion=False, readout=False)
    assert list(make_optimizers(Pretraining(alone), alone.train)) == ["core"]
    frozen = tiny_config(core=False)
    assert list(make_optimizers(Pretraining(frozen), frozen.train)) == ["completion", "readout"]


def test_the_learning_rate_rises_stays_and_falls_with_one_minus_the_root() -> None:
    train = tiny_config(steps=100, warmup_steps=10, cooldown_share=0.25, final_learning_rate=0.1).train
    rates = [learning_rate(train, step, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 + 0.9 * (step + 1) / 10 for step in range(10)], rel=1e-12)
    assert rates[10:75] == pytest.approx([1.0] * 65, rel=1e-12)
    assert rates[75:] == pytest.approx([0.1 + 0.9 * (1 - (n / 25) ** 0.5) for n in range(1, 26)], rel=1e-12)
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.8)
    assert rates[99] == 0.1
    assert all(a > b for a, b in itertools.pairwise(rates[74:]))
    # without a cool-down
    train = tiny_config(steps=100, warmup_steps=0, cooldown_share=0.0, final_learning_rate=0.1).train
    assert train.cooldown_from == 100
    assert {learning_rate(train, step, 1.0) for step in range(100)} == {1.0}
    # a lower rate, of the readers, falls no lower than itself
    train = tiny_config(steps=10, warmup_steps=0, cooldown_share=1.0, final_learning_rate=0.1).train
    assert [learning_rate(train, step, 0.05) for step in range(10)] == [0.05] * 10


def test_the_average_follows_its_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.zeros(()))
    torch.nn.init.constant_(model.weight, 0.0)
    average = copy.deepcopy(model)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]):
        torch.nn.init.constant_(model.weight, value)
        model.count.fill_(value)
        update_average(average, model, 0.5, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.weight.item() == pytest.approx(expected, rel=1e-6)
    assert float(average.count) == 11.0
