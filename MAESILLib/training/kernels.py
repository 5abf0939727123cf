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
from MAESILLib.training.batch import augmented
from MAESILLib.training.loss import masked_loss


@dataclass(frozen=True)
class Kernels:
    """The functions of a step, compiled or not."""

    masked_loss: Callable[..., Any] = masked_loss
    augmented: Callable[..., Any] = augmented


EAGER = Kernels()


def compiled(
    model: MaskedAutoencoder, config: Config, size: int, device: torch.device, bf16: bool
) -> tuple[Kernels, str]:
    """Compile the blocks of a model and its prior in place, and the functions of its step.

    Args:
        size: superpatches of a pass; a step of that size is tried.

    Returns:
        the functions, and why it does not work here, in which case everything is as it was.
    """
    # a shape for each resolution of the prior, with one superpatch in validation and a batch in training
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile()
    # shapes of the image are always the same, those of the tokens change with the share that is hidden
    model.relax = torch.compile(relaxed, dynamic=False)
    kernels = Kernels(torch.compile(masked_loss), torch.compile(augmented, dynamic=False))
    try:
        _try(model, kernels, config, size, device, bf16)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # whatever a compiler that is missing or broken raises
        for block in blocks:
            block._compiled_call_impl = None
        model.relax = relaxed
        return EAGER, " ".join((str(error) or type(error).__name__).split())[:200]
    finally:
        model.zero_grad(set_to_none=True)
    return kernels, ""


def _try(
    model: MaskedAutoencoder, kernels: Kernels, config: Config, size: int, device: torch.device, bf16: bool
) -> None:
    """Do a step on air, without changing a weight."""
    d, h, w = (c // p for c, p in zip(config.train.crop_size, config.model.patch_size, strict=True))
    visible = draw_visible((d, h, w), MaskSpec("dual", 0.5, 0.5), size, generator_for(0)).to(device)
    hu = torch.zeros(size, 1, *config.train.crop_size, dtype=torch.int16, device=device)
    jitter = torch.ones(size, 3, device=device)
    image, target = kernels.augmented(hu, jitter, torch.zeros_like(hu, dtype=torch.float32), (-1000.0, 1000.0))
    queried = torch.zeros_like(visible[:, :1])
    with precision_context(device, bf16):
        prediction = model(image, visible, queried=queried)
    weights = {"visible_weight": config.train.visible_weight, "gradient_weight": config.train.gradient_weight}
    kernels.masked_loss(prediction, target, None, config.model.patch_size, **weights).total.backward()
