"""What a training does to the encoder, beyond the loss: whether its blocks are used, and what its tokens hold."""

import torch

from MAESILLib.mae.model import Encoder, patchify

RIDGE = 1e-3
"""Of the regression from standardised tokens, relative to their number."""


@torch.no_grad()
def attention_shares(encoder: Encoder, image: torch.Tensor) -> list[float]:
    """Return for each block the mean length of what attention adds to a token, relative to the token's.

    Near 0 a block mixes nothing; random weights have a third to a half.

    Args:
        image: (B, windows, D, H, W) in [0, 1].
    """
    lengths: list[torch.Tensor] = []
    handles = [b.register_forward_pre_hook(lambda _, x: lengths.append(x[0].norm(dim=-1))) for b in encoder.blocks]
    handles += [
        b.get_submodule("attn").register_forward_hook(lambda _, __, y: lengths.append(y.norm(dim=-1)))
        for b in encoder.blocks
    ]
    try:
        # inside of a compiled block no hook is called
        with torch.compiler.set_stance("force_eager"):
            encoder(image)
    finally:
        for handle in handles:
            handle.remove()
    return [float((added / token).mean()) for token, added in zip(lengths[::2], lengths[1::2], strict=True)]


@torch.no_grad()
def patch_r2(encoder: Encoder, image: torch.Tensor, valid: torch.Tensor) -> float:
    """Return how much of its own patch a token tells, by ridge regression: R2 over voxels of the first window.

    Every second token of the image fits the regression, the others are measured.

    Args:
        image: (1, windows, D, H, W) in [0, 1].
        valid: (1, 1, D, H, W) bool, False in padding; tokens with padding are left out.
    """
    patch_size = encoder.config.patch_size
    whole = patchify(valid.float(), patch_size)[0].mean(1) == 1
    tokens = encoder(image)[-1][0][whole].double()
    patches = patchify(image[:, :1], patch_size)[0][whole].double()
    fit, test = slice(0, None, 2), slice(1, None, 2)
    x = (tokens - tokens[fit].mean(0)) / tokens[fit].std(0).clamp_min(1e-6)
    mean = patches[fit].mean(0)
    gram = x[fit].T @ x[fit]
    ridge = RIDGE * len(x[fit]) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + ridge, x[fit].T @ (patches[fit] - mean))
    error = patches[test] - mean - x[test] @ weight
    return float(1 - error.square().sum() / (patches[test] - mean).square().sum())
