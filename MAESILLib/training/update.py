"""One update of the weights: forward and backward passes, clipping, AdamW, learning rates, the moving average."""

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from MAESILLib.config import Config, TrainConfig
from MAESILLib.mae.blocks import Block
from MAESILLib.mae.checkpoint_info import PARTS
from MAESILLib.training.batch import Batch
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.task import Task


class Update:
    """The model in training, and how it changes.

    Attributes:
        average: the model with the moving average of its weights, in evaluation mode.
    """

    def __init__(
        self, config: Config, model: nn.Module, ranks: Ranks, device: torch.device, bf16: bool, task: Task
    ) -> None:
        self.config, self.model, self.ranks, self.device, self.bf16 = config, model, ranks, device, bf16
        self.task = task
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        if config.train.compile:
            _compile_blocks(model)
            _compile_blocks(self.average)
        self.network = model
        if ranks.size > 1:
            self.network = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
        self.optimizers = make_optimizers(model, config.train)
        self.rates = dict.fromkeys(PARTS, config.train.reader_learning_rate) | {"core": config.train.learning_rate}
        self.passes: list[torch.Tensor] = []
        self.step = 0
        self.before: dict[str, torch.Tensor] = {}

    def begin(self, step: int) -> None:
        """Set the learning rates of update ``step`` (from 0), forget the gradients of the one before."""
        for part, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config.train, step, self.rates[part])
            optimizer.zero_grad(set_to_none=True)
        self.passes, self.step = [], step
        # forward passes themselves change the table of a VQ-VAE
        state = self.model.state_dict(keep_vars=True)
        self.before = {name: value.detach().clone() for name, value in state.items() if not value.requires_grad}

    def add(self, batch: Batch) -> None:
        """Do one forward and backward pass; gradients are exchanged in the last one of the update."""
        count = self.config.train.accumulation
        # a network that draws (a VAE does) draws the same after a resume
        seeds = (self.config.train.seed, self.step, len(self.passes), self.ranks.rank)
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        is_last = len(self.passes) + 1 == count
        holds_back = isinstance(self.network, DistributedDataParallel) and not is_last
        with self.network.no_sync() if holds_back else nullcontext():  # type: ignore[operator]
            loss = self.task.loss(self, batch)
            # their graphs do not meet
            total = loss.core if loss.readers is None else loss.core + loss.readers
            (total / count).backward()
        metrics = [loss.metrics[name] for name in self.task.metrics]
        self.passes.append(torch.stack([loss.core.detach(), *metrics]))

    @torch.no_grad()
    def finish(self, step: int) -> dict[str, float]:
        """Clip gradients, step the optimizers, update the average; return metrics, means over passes and ranks.

        ``gradient_norm`` is that of the core, or of what reads it where the core is not trained. If it is not finite,
        nothing is stepped and ``skipped`` is 1; a reader whose own norm is not finite is not stepped alone.
        """
        clip = self.config.train.gradient_clip
        groups = [[p for g in optimizer.param_groups for p in g["params"]] for optimizer in self.optimizers.values()]
        norms = torch.stack([nn.utils.clip_grad_norm_(parameters, clip) for parameters in groups])
        # read all at once, because reading waits for the device
        row = (self.ranks.sum(torch.cat([torch.stack(self.passes).mean(0), norms])) / self.ranks.size).tolist()
        gradient_norms = row[-len(norms) :]
        skipped = not math.isfinite(gradient_norms[0])
        if skipped:
            self.abandon()
        for optimizer, norm in zip(self.optimizers.values(), gradient_norms, strict=True):
            if not skipped and math.isfinite(norm):
                optimizer.step()
        update_average(self.average, self.model, self.config.train.ema_decay, step)
        names = ("loss", *self.task.metrics, "gradient_norm")
        return dict(zip(names, row, strict=False)) | {"skipped": float(skipped)}

    def abandon(self) -> None:
        """Undo what the passes of an update that is not finished have changed."""
        self.model.load_state_dict(self.before, strict=False)

    def state(self) -> dict[str, Any]:
        """Return what :meth:`load` needs to resume, on the CPU and under the model's own names."""
        parameters = dict(self.model.named_parameters())
        moments = {p: values for optimizer in self.optimizers.values() for p, values in optimizer.state.items()}
        return {
            "model": _on_cpu(parameters),
            "optimizer": {name: _on_cpu(moments.get(p, {})) for name, p in parameters.items()},
            "average": _on_cpu(dict(self.average.named_parameters())),
            "buffers": _on_cpu({n: v for n, v in self.model.state_dict().items() if n not in parameters}),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state`, whatever number of ranks gave it.

        Raises:
            RuntimeError, LookupError, TypeError, AttributeError: it is of another model.
        """
        self.model.load_state_dict(state["model"] | state["buffers"])
        self.average.load_state_dict(state["average"] | state["buffers"])
        optimizer_of = {p: o for o in self.optimizers.values() for group in o.param_groups for p in group["params"]}
        for name, p in self.model.named_parameters():
            if moments := state["optimizer"][name]:
                if any(value.shape not in ((), p.shape) for value in moments.values()):
                    raise RuntimeError(f"the optimizer's '{name}' has another shape")
                optimizer_of[p].state[p] = {key: value.to(p.device, copy=True) for key, value in moments.items()}


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _compile_blocks(model: nn.Module) -> None:
    """Compile transformer blocks one by one.

    A block is compiled for each width, with and without memory and gradients; past torch's limit it would not be. DDP's
    own cutting of graphs would only come in between.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.optimize_ddp = False
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


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
