"""What of a step is compiled: the parts that otherwise move every voxel or token through memory many times.

The blocks of the network, one sweep of the prior, the augmentation and the loss are compiled each by itself. That
takes seconds where the whole step takes minutes for every share of hidden tokens, and it is where the time goes:
matrix products and attention are the vendor's own either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from MAESILLib.config import Config
from MAESILLib.device import precision_context
from MAESILLib.masking import MaskSpec, draw_visible, generator_for
from MAESILLib.model import Block, MaskedAutoencoder
from MAESILLib.prior import relaxed
from MAESILLib.superpatch import token_grid
from MAESILLib.training.batch import augmented
from MAESILLib.training.loss import masked_loss


@dataclass(frozen=True)
class Kernels:
    """The functions of a step, compiled or not."""

    masked_loss: Callable[..., Any] = masked_loss
    augmented: Callable[..., Any] = augmented


EAGER = Kernels()


def compiled(model: MaskedAutoencoder, config: Config, size: int, bf16: bool) -> tuple[Kernels, str]:
    """Compile the blocks of a model and its prior in place, and the functions of its step.

    Args:
        size: superpatches of a pass; a step of that size is tried.

    Returns:
        the functions, and why it does not work here: with the loss, then the rest is compiled, or at all, then
        everything is as it was.

    Raises:
        torch.OutOfMemoryError: such a step does not fit.
    """
    # a shape for each resolution of the prior, and one for each number of superpatches
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # blocks are compiled one by one already; DDP's own cutting of graphs would only come in between
    torch._dynamo.config.optimize_ddp = False
    problems: list[str] = []
    grid = token_grid(config.train.crop_size, config.model.patch_size)
    # shapes of the image are always the same, those of the tokens change with the share that is hidden
    augment = torch.compile(augmented, dynamic=False)
    for kernels in (Kernels(torch.compile(masked_loss), augment), Kernels(masked_loss, augment)):
        _compile(model)
        try:
            # the usual share of tokens, and all of them, which takes most memory
            for ratio in (0.5, 0.0):
                visible = draw_visible(grid, MaskSpec("dual", ratio, ratio), size, generator_for(0))
                _try(model, kernels, config, visible, bf16)
            return kernels, problems[0] if problems else ""
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # whatever a compiler that is missing or broken raises
            problems.append(" ".join((str(error) or type(error).__name__).split())[:200])
            _undo(model)
        finally:
            model.zero_grad(set_to_none=True)
    return EAGER, problems[-1]


def _blocks(model: MaskedAutoencoder) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def _compile(model: MaskedAutoencoder) -> None:
    for block in _blocks(model):
        block.compile()
    model.relax = torch.compile(relaxed, dynamic=False)


def _undo(model: MaskedAutoencoder) -> None:
    for block in _blocks(model):
        block._compiled_call_impl = None
    model.relax = relaxed


def _try(model: MaskedAutoencoder, kernels: Kernels, config: Config, visible: torch.Tensor, bf16: bool) -> None:
    """Do a step on air, without changing a weight."""
    device = next(model.parameters()).device
    visible = visible.to(device)
    hu = torch.zeros(len(visible), 1, *config.train.crop_size, dtype=torch.int16, device=device)
    jitter = torch.ones(len(visible), 3, device=device)
    image, target = kernels.augmented(hu, jitter, torch.zeros_like(hu, dtype=torch.float32), (-1000.0, 1000.0))
    count = round(visible.shape[1] * config.train.visible_share)
    queried = torch.arange(count, device=device).expand(len(visible), -1)
    with precision_context(device, bf16):
        prediction = model(image, visible, queried=queried)
    weights = {"visible_weight": config.train.visible_weight, "gradient_weight": config.train.gradient_weight}
    weights["ssim_weight"] = config.train.ssim_weight
    kernels.masked_loss(prediction, target, None, config.model.patch_size, **weights).total.backward()
