"""One update of the weights: forward and backward passes, clipping, AdamW, the average.

Nothing in it waits for the device: metrics stay there until somebody asks, and an update whose gradient is not
finite is skipped by the device itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from MAESILLib.config import Config
from MAESILLib.mae.blocks import Block
from MAESILLib.training.batch import Batch
from MAESILLib.training.optimizer import READERS, learning_rate, make_optimizers, update_average
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.task import Task


class Update:
    """The model in training, and how it changes.

    Args:
        model: on its device.

    Attributes:
        average: the model with the moving average of its weights, in evaluation mode.
        metrics: names of what an update returns, means over its passes; ``skipped`` is 1 where nothing was changed.
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
                # they are constants
                broadcast_buffers=False,
            )
        self.optimizers = make_optimizers(model, config.train)
        self.rates = dict.fromkeys(READERS, config.train.reader_learning_rate) | {"core": config.train.learning_rate}
        self.metrics = ("loss", *task.metrics, "gradient_norm", "skipped")
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
        self.before = {name: value.clone() for name, value in self._moved_by_passes().items()}

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
    def finish(self, step: int) -> torch.Tensor:
        """Clip gradients, step the optimizers, update the average; return this rank's metrics on the device."""
        # the core, or, where that is not trained, what reads it
        first, *others = self.optimizers
        norm = self._step(first, torch.zeros((), device=self.device))
        skipped = (~norm.isfinite()).float()
        for part in others:
            self._step(part, skipped)
        for name, value in self._moved_by_passes().items():
            value.copy_(torch.where(skipped > 0, self.before[name], value))
        update_average(self.average, self.model, self.config.train.ema_decay, step)
        return torch.cat([torch.stack(self.passes).mean(0), norm[None], skipped[None]])

    def _step(self, part: str, skipped: torch.Tensor) -> torch.Tensor:
        """Clip a part's gradients and step its optimizer, unless they are not finite or it is skipped; return the norm.

        Args:
            skipped: 1 or 0.
        """
        optimizer = self.optimizers[part]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.train.gradient_clip).detach()
        # the fused optimizer then changes neither weights nor moments nor its count of steps
        optimizer.found_inf = (~norm.isfinite()).float().maximum(skipped)  # type: ignore[attr-defined]
        optimizer.step()
        return norm

    @torch.no_grad()
    def abandon(self) -> None:
        """Undo what the passes of an update that is not finished have changed."""
        for name, value in self._moved_by_passes().items():
            value.copy_(self.before[name])

    def _moved_by_passes(self) -> dict[str, torch.Tensor]:
        """Return what forward passes change themselves, as the table of a VQ-VAE; of MAESIL nothing."""
        fixed = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        return fixed | self._buffers()

    def state(self) -> dict[str, Any]:
        """Return what :meth:`load` needs to resume, on the CPU and under the model's own names."""
        parameters = dict(self.model.named_parameters())
        moments = {p: values for optimizer in self.optimizers.values() for p, values in optimizer.state.items()}
        return {
            "model": _on_cpu(parameters),
            "optimizer": {name: _on_cpu(moments.get(p, {})) for name, p in parameters.items()},
            "average": _on_cpu(dict(self.average.named_parameters())),
            "buffers": _on_cpu(self._buffers()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state`, whatever number of ranks gave it."""
        self.model.load_state_dict(state["model"] | state["buffers"])
        self.average.load_state_dict(state["average"] | state["buffers"])
        optimizer_of = {p: o for o in self.optimizers.values() for group in o.param_groups for p in group["params"]}
        for name, p in self.model.named_parameters():
            if moments := state["optimizer"][name]:
                optimizer_of[p].state[p] = {key: value.to(p.device, copy=True) for key, value in moments.items()}

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Return what the network keeps beside its parameters, the same on every rank, by name."""
        parameters = {name for name, _ in self.model.named_parameters()}
        return {name: value for name, value in self.model.state_dict().items() if name not in parameters}


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
