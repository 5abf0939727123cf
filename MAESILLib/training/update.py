"""One update of the weights: forward and backward passes, clipping, AdamW, the running mean.

Nothing in it waits for the device: metrics stay there until somebody asks, and an update whose gradient is not
finite is skipped by the device itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from MAESILLib.config import Config
from MAESILLib.training.batch import Batch
from MAESILLib.training.optimizer import READERS, WeightAverage, learning_rate, make_optimizers
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.task import Task


class Update:
    """The model in training, and how it changes.

    Args:
        model: on its device.

    Attributes:
        metrics: names of what an update returns, means over its passes; ``skipped`` is 1 where nothing was changed.
    """

    def __init__(
        self, config: Config, model: nn.Module, ranks: Ranks, device: torch.device, bf16: bool, task: Task
    ) -> None:
        self.config, self.model, self.ranks, self.device, self.bf16 = config, model, ranks, device, bf16
        self.task = task
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
        self.average = WeightAverage(model, config.train.ema_decay)
        self.metrics = ("loss", *task.metrics, "gradient_norm", "skipped")
        self.passes: list[torch.Tensor] = []
        self.step = 0
        self.before: dict[str, torch.Tensor] = {}

    def begin(self, step: int) -> None:
        """Begin update ``step`` (from 0)."""
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
        self.average.update(self.model, step)
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

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Context manager that swaps in the averaged weights."""
        own = self.average.swapped_into(self.model)
        try:
            yield self.model.eval()
        finally:
            self.model.train()
            self.average.put_back(self.model, own)

    def averaged_state(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights and the network's buffers, on the CPU."""
        return {name: value.cpu() for name, value in (self.average.weights | self._buffers()).items()}

    def state(self) -> dict[str, Any]:
        """Return what :meth:`load` needs to resume, on the CPU."""
        saved = {p: values for optimizer in self.optimizers.values() for p, values in optimizer.state.items()}
        return {
            "model": {name: p.detach().cpu() for name, p in self.model.named_parameters()},
            "optimizer": {
                name: {key: value.cpu() for key, value in saved.get(p, {}).items()}
                for name, p in self.model.named_parameters()
            },
            "average": {name: w.cpu() for name, w in self.average.weights.items()},
            "buffers": {name: buffer.cpu() for name, buffer in self._buffers().items()},
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state`, whatever number of ranks gave it."""
        optimizer_of = {p: o for o in self.optimizers.values() for group in o.param_groups for p in group["params"]}
        for name, parameter in self.model.named_parameters():
            parameter.copy_(state["model"][name])
            self.average.weights[name].copy_(state["average"][name])
            if saved := state["optimizer"][name]:
                moments = {key: value.to(parameter.device, copy=True) for key, value in saved.items()}
                optimizer_of[parameter].state[parameter] = moments
        for name, buffer in self._buffers().items():
            buffer.copy_(state["buffers"][name])

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Return what the network keeps beside its parameters, the same on every rank, by name."""
        parameters = {name for name, _ in self.model.named_parameters()}
        return {name: value for name, value in self.model.state_dict().items() if name not in parameters}
