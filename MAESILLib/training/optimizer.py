"""AdamW with decay on matrices only, the learning rate's schedule, and the running mean of the weights."""

from __future__ import annotations

import torch
from torch import nn

from MAESILLib.config import TrainConfig

READERS = ("completion", "readout")
"""Children of a network that read it without teaching it; each is optimised apart."""


def make_optimizers(model: nn.Module, train: TrainConfig) -> dict[str, torch.optim.AdamW]:
    """Return one AdamW for the core, if it is trained, and one for each reader there is; matrices alone decay."""
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in ("core", *READERS)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            child = name.partition(".")[0]
            parts[child if child in READERS else "core"][name] = parameter
    return {
        part: torch.optim.AdamW(
            [
                {"params": [p for n, p in named.items() if is_decayed(n, p)], "weight_decay": train.weight_decay},
                {"params": [p for n, p in named.items() if not is_decayed(n, p)], "weight_decay": 0.0},
            ],
            lr=train.learning_rate,
            betas=train.betas,
            fused=True,
        )
        for part, named in parts.items()
        if named
    }


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Say whether weight decay applies: to matrices, not to biases, norms, tokens and the kernels of convolutions."""
    return parameter.dim() == 2 and not name.endswith("token")


def schedule(train: TrainConfig, step: int) -> float:
    """Return the learning rate of update ``step`` (from 0), relative to the highest.

    Linear warm-up, constant, and in the cool-down a fall with 1 - sqrt of its share.
    """
    rise = min(1.0, (step + 1) / max(1, train.warmup_steps))
    cooled = step + 1 - train.cooldown_from
    return rise if cooled <= 0 else rise * (1 - min(1.0, cooled / (train.steps - train.cooldown_from)) ** 0.5)


def learning_rate(train: TrainConfig, step: int, highest: float) -> float:
    """Return the learning rate of update ``step`` (from 0)."""
    final = min(train.final_learning_rate, highest)
    return final + (highest - final) * schedule(train, step)


class WeightAverage:
    """Exponential moving average of a model's weights, kept in fp32.

    The decay rises from 0.1 with the number of updates, so that early weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone().float() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after update ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach().float() for p in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @torch.no_grad()
    def swapped_into(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Give the model the averaged weights; return its own."""
        parameters = dict(model.named_parameters())
        own = {name: p.detach().clone() for name, p in parameters.items()}
        torch._foreach_copy_([p.data for p in parameters.values()], [self.weights[name] for name in parameters])
        return own

    @torch.no_grad()
    def put_back(self, model: nn.Module, own: dict[str, torch.Tensor]) -> None:
        """Undo :meth:`swapped_into`."""
        torch._foreach_copy_([p.data for p in model.parameters()], list(own.values()))

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the averaged weights whose names begin with ``prefix``, without it."""
        return {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}
