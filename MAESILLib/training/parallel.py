"""One model over several ranks: DDP keeps a copy on each, FSDP2 a part on each.

States and checkpoints hold whole tensors under the model's own names, however the model was divided: a run may
go on with another number of ranks, or the other way of dividing it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from MAESILLib.model import Block
from MAESILLib.training.ranks import Ranks


def divide(model: nn.Module, ranks: Ranks, parallel: str, device: torch.device) -> nn.Module:
    """Return what is called for a forward pass; with ``fsdp`` the model's own parameters are divided in place.

    Args:
        parallel: ddp or fsdp.
    """
    if ranks.size == 1:
        return model
    if parallel == "ddp":
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # they are constants
            broadcast_buffers=False,
        )
    mesh = init_device_mesh(device.type, (ranks.size,))
    for module in list(model.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def forget_whole(model: nn.Module) -> None:
    """Let a divided model, which keeps what it gathered for a forward pass, go back to its parts."""
    if isinstance(model, FSDPModule):
        model.reshard()


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this rank holds of a tensor: all of it, unless the model is divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Put a tensor together from the parts of all ranks; every rank has to call.

    Args:
        part: what this rank holds of it.
        like: the parameter it belongs to, which knows how it is divided.
    """
    if not isinstance(like, DTensor):
        return part
    full = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return full.full_tensor()


def part_of(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a whole tensor, divided as the parameter ``like`` is."""
    full = full.to(like.device)
    if not isinstance(like, DTensor):
        return full
    # every rank read the same file: there is nothing to send
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()
