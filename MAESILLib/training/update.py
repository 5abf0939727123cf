"""One update of the weights: forward and backward passes, clipping, AdamW, the running mean.

Nothing in it waits for the device: figures stay there until somebody asks, and an update whose gradient is not
finite is left out by the device itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from MAESILLib.config import Config
from MAESILLib.device import precision_context
from MAESILLib.training.batch import Batch, intensities
from MAESILLib.training.kernels import EAGER, Kernels
from MAESILLib.training.loss import Loss
from MAESILLib.training.optimizer import WeightAverage, learning_rate, make_optimizer
from MAESILLib.training.parallel import divide, forget_whole, own_part, part_of, whole
from MAESILLib.training.ranks import Ranks

FIGURES = ("loss", "hidden_mse", "visible_mse", "gradient_error", "gradient_norm", "left_out")
"""What an update tells of itself, means over its passes; ``left_out`` is 1 where nothing was changed."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class Update:
    """The model in training, and how it changes.

    Args:
        model: on its device; with several ranks and ``train.parallel`` fsdp it is divided in place.
        kernels: the functions of a step, where they are compiled.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        ranks: Ranks,
        device: torch.device,
        bf16: bool,
        kernels: Kernels = EAGER,
    ) -> None:
        self.config, self.model, self.ranks, self.device, self.bf16 = config, model, ranks, device, bf16
        self.kernels = kernels
        self.network = divide(model, ranks, config.train.parallel, device)
        self.optimizer = make_optimizer(model, config.train)
        self.average = WeightAverage(model, config.train.ema_decay)
        self.passes: list[torch.Tensor] = []
        self.step = 0
        self.before: dict[str, torch.Tensor] = {}

    def begin(self, step: int) -> None:
        """Begin update ``step`` (from 0)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.train, step)
        self.optimizer.zero_grad(set_to_none=True)
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
            loss = self.loss(batch)
            (loss.total / count).backward()
        self.passes.append(torch.stack([loss.total.detach(), loss.hidden_mse, loss.visible_mse, loss.gradient]))

    @torch.no_grad()
    def finish(self, step: int) -> torch.Tensor:
        """Change the weights; return this rank's :data:`FIGURES` on the device."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.gradient_clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # gradients are those of all ranks together: one that is not finite reaches every rank's norm
        left_out = (~norm.isfinite()).float()
        # the fused optimizer then changes neither weights nor moments nor its count of steps
        self.optimizer.found_inf = left_out  # type: ignore[attr-defined]
        self.optimizer.step()
        for name, value in self._moved_by_passes().items():
            value.copy_(torch.where(left_out > 0, self.before[name], value))
        self.average.update(self.model, step)
        return torch.cat([torch.stack(self.passes).mean(0), norm.detach()[None], left_out[None]])

    @torch.no_grad()
    def abandon(self) -> None:
        """Undo what the passes of an update that is not finished have changed."""
        for name, value in self._moved_by_passes().items():
            value.copy_(self.before[name])

    def _moved_by_passes(self) -> dict[str, torch.Tensor]:
        """Return what forward passes change themselves, as the table of a VQ-VAE; of MAESIL nothing."""
        fixed = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        return fixed | self._buffers()

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of one pass."""
        train = self.config.train
        image, target, valid = intensities(
            batch, self.config.preprocessing.window_hu, self.device, self.kernels.augmented
        )
        visible = batch.visible.to(self.device, non_blocking=True)
        queried = batch.queried.to(self.device, non_blocking=True) if batch.queried.shape[1] else None
        with precision_context(self.device, self.bf16):
            prediction = self.network(image, visible, valid=valid, queried=queried, offset=batch.offset)
        loss: Loss = self.kernels.masked_loss(
            prediction,
            target,
            valid,
            self.config.model.patch_size,
            visible_weight=train.visible_weight,
            gradient_weight=train.gradient_weight,
            ssim_weight=train.ssim_weight if self.step >= train.ssim_from * train.steps else 0.0,
        )
        return loss

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Lend the model with its averaged weights."""
        own = self.average.swapped_into(self.model)
        try:
            yield self.model.eval()
        finally:
            self.model.train()
            forget_whole(self.model)
            self.average.put_back(self.model, own)

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, whole and on the CPU; every rank has to ask."""
        return {name: self._gathered(self.average.weights[name], p) for name, p in self.model.named_parameters()}

    def averaged_state(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights and the network's buffers, whole and on the CPU; every rank has to ask."""
        return self.averaged_weights() | {name: buffer.cpu() for name, buffer in self._buffers().items()}

    def _gathered(self, part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Put one tensor together; only the first rank, which writes it, keeps it."""
        full = whole(part, like)
        return full.cpu() if self.ranks.is_main else full.new_empty(0)

    def state(self) -> dict[str, Any]:
        """Return what :meth:`load` needs to go on, whole and on the CPU of the first rank; every rank has to ask."""
        state: dict[str, Any] = {"model": {}, "optimizer": {}, "average": self.averaged_weights()}
        state["buffers"] = {name: buffer.cpu() for name, buffer in self._buffers().items()}
        for name, parameter in self.model.named_parameters():
            of_it = self.optimizer.state.get(parameter, {})
            moments = {key: self._gathered(own_part(of_it[key]), parameter) for key in MOMENTS if key in of_it}
            if of_it:
                moments["step"] = of_it["step"].cpu()
            state["model"][name] = self._gathered(own_part(parameter.detach()), parameter)
            state["optimizer"][name] = moments
        return state

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`, whatever number of ranks gave it."""
        for name, parameter in self.model.named_parameters():
            own_part(parameter).copy_(part_of(state["model"][name], parameter))
            self.average.weights[name] = part_of(state["average"][name], parameter).clone()
            if state["optimizer"][name]:
                self.optimizer.state[parameter] = self._moments(state["optimizer"][name], parameter)

        # a state that names none is of a network without
        for name, buffer in self._buffers().items():
            buffer.copy_(state["buffers"][name])

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Return what the network keeps beside its parameters, the same on every rank, by name."""
        parameters = {name for name, _ in self.model.named_parameters()}
        return {name: value for name, value in self.model.state_dict().items() if name not in parameters}

    def _moments(self, saved: dict[str, torch.Tensor], parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        moments = {"step": saved["step"].to(parameter.device).clone()}
        for key in MOMENTS:
            moments[key] = torch.zeros_like(parameter, requires_grad=False)
            own_part(moments[key]).copy_(part_of(saved[key], parameter))
        return moments
