"""What decays, how the learning rate runs, and how weights are averaged."""

from __future__ import annotations

import itertools

import pytest
import torch
from training_factory import tiny_config

from MAESILLib.model import MaskedAutoencoder
from MAESILLib.training.optimizer import WeightAverage, is_decayed, learning_rate


def test_only_matrices_decay() -> None:
    model = MaskedAutoencoder(tiny_config().model)
    decayed = {name for name, p in model.named_parameters() if is_decayed(name, p)}
    assert decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    rest = {name for name, _ in model.named_parameters()} - decayed
    assert "decoder.mask_token" in rest
    kernels = {name for name, p in model.named_parameters() if p.dim() == 5}
    assert kernels
    assert kernels < rest
    assert all(name.endswith(("bias", "token")) or "norm" in name for name in rest - kernels)


def test_the_learning_rate_is_counted_in_steps() -> None:
    train = tiny_config(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup_share=0.1).train
    rates = [learning_rate(train, s) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_the_average_follows_its_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, 0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]):
        torch.nn.init.constant_(model.weight, value)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.weights["weight"]) == pytest.approx(expected, rel=1e-6)
