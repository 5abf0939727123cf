"""AdamW with decay on matrices only, the learning rate's schedule, and the moving average of the weights."""

import torch
from torch import nn

from MAESILLib.config import TrainConfig
from MAESILLib.mae.checkpoint_info import PARTS


def make_optimizers(model: nn.Module, train: TrainConfig) -> dict[str, torch.optim.AdamW]:
    """Return one AdamW for the core, if it is trained, and one for each reader there is; matrices alone decay."""
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in ("core", *PARTS)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            child = name.partition(".")[0]
            parts[child if child in PARTS else "core"][name] = parameter
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


def learning_rate(train: TrainConfig, step: int, highest: float) -> float:
    """Return the learning rate of update ``step`` (from 0).

    Linear warm-up, constant, and in the cool-down a fall with 1 - sqrt of its share.
    """
    share = min(1.0, (step + 1) / max(1, train.warmup_steps))
    cooled = step + 1 - train.cooldown_from
    if cooled > 0:
        share *= 1 - min(1.0, cooled / (train.steps - train.cooldown_from)) ** 0.5
    final = min(train.final_learning_rate, highest)
    return final + (highest - final) * share


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move ``average`` towards the model after update ``step`` (from 0): an exponential moving average of its weights.

    The decay rises from 0.1 with the number of updates, so that early weights are soon forgotten. Buffers are copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for mean, value in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(value)
