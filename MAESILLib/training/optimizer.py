"""AdamW with decay on matrices only, the learning rate's schedule, and the running mean of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from MAESILLib.config import TrainConfig
from MAESILLib.training.parallel import own_part


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone."""
    decayed = [p for name, p in model.named_parameters() if is_decayed(name, p)]
    plain = [p for name, p in model.named_parameters() if not is_decayed(name, p)]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, fused=True)


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Say whether weight decay applies: to matrices, not to biases, norms, tokens and the kernels of convolutions."""
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
    """Exponential moving average of a model's weights, kept in fp32; of a divided model, of this rank's part.

    The decay rises from 0.1 with the number of updates, so that early weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone().float() for name, p in own_parts(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after update ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = own_parts(model)
        names = list(self.weights)
        torch._foreach_lerp_([self.weights[n] for n in names], [current[n].float() for n in names], 1 - decay)

    @torch.no_grad()
    def swapped_into(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Give the model the averaged weights; return its own."""
        parts = own_parts(model)
        own = {name: part.clone() for name, part in parts.items()}
        torch._foreach_copy_(list(parts.values()), [self.weights[name] for name in parts])
        return own

    @torch.no_grad()
    def put_back(self, model: nn.Module, own: dict[str, torch.Tensor]) -> None:
        """Undo :meth:`swapped_into`."""
        parts = own_parts(model)
        torch._foreach_copy_(list(parts.values()), [own[name] for name in parts])


def own_parts(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what this rank holds of each parameter, by name."""
    return {name: own_part(p.detach()) for name, p in model.named_parameters()}
