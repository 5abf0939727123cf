"""AdamW with decay on matrices only, the learning rate's schedule, and the running mean of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from MAESILLib.config import TrainConfig


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices, and neither biases nor norms nor tokens."""
    decayed = [p for name, p in model.named_parameters() if is_decayed(name, p)]
    plain = [p for name, p in model.named_parameters() if not is_decayed(name, p)]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, fused=True)


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Say whether weight decay applies: to matrices of linear layers, not to biases, norms and tokens."""
    return parameter.dim() == 2 and not name.endswith("token")


def learning_rate(train: TrainConfig, step: int) -> float:
    """Return the rate of update ``step`` (from 0): linear warm-up, then half a cosine."""
    warmup = max(1, round(train.steps * train.warmup_share))
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, train.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * cosine


class WeightAverage:
    """Exponential moving average of a model's weights, kept in fp32.

    The decay rises from 0.1 with the number of updates, so that early weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone().float() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after update ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = model.state_dict()
        keys = list(self.weights)
        torch._foreach_lerp_([self.weights[k] for k in keys], [current[k].float() for k in keys], 1 - decay)
