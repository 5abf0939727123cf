"""The superpatch masked autoencoder (MAE), in call order.

    image (B, windows, D, H, W) in [0, 1]
      -> embed: patches of 8x8x8 voxels become tokens
      -> mask: visible tokens alone are kept
      -> encode: transformer blocks among visible tokens
      -> decode: mask tokens in the places of hidden tokens attend to the encoded ones
      -> patches of the hidden tokens (B, N, windows * P)

The decoder reads a learned mix of the outputs of all encoder blocks, so no block has to carry voxels for it, and
decodes hidden tokens alone by cross-attention (CrossMAE, Fu et al. 2024, arXiv 2401.14391). With ``decoder =
"self"`` all tokens pass through self-attention instead, as in the first MAE (He et al. 2021, arXiv 2111.06377).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from MAESILLib.config import ModelConfig, Triple, Window
from MAESILLib.mae.blocks import EPS, Block, rotary_table
from MAESILLib.mae.masking import hidden_from_visible


def patchify(image: torch.Tensor, patch_size: Triple) -> torch.Tensor:
    """Cut (B, C, D, H, W) into patches (B, tokens, C * P); channels slowest, tokens and voxels in row-major order."""
    batch, channels, depth, height, width = image.shape
    pd, ph, pw = patch_size
    x = image.reshape(batch, channels, depth // pd, pd, height // ph, ph, width // pw, pw)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels * pd * ph * pw)


def unpatchify(patches: torch.Tensor, grid: Triple, patch_size: Triple) -> torch.Tensor:
    """Invert :func:`patchify`: (B, tokens, C * P) on a token grid (D, H, W) to (B, C, D, H, W)."""
    x = patches.reshape(len(patches), *grid, -1, *patch_size).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(len(patches), x.shape[1], *(g * p for g, p in zip(grid, patch_size, strict=True)))


def windowed(hu: torch.Tensor, windows_hu: tuple[Window, ...]) -> torch.Tensor:
    """Map HU (..., 1, D, H, W) to intensities (..., windows, D, H, W): each window to [0, 1], clipped."""
    return torch.cat([((hu - low) / (high - low)).clamp(0, 1) for low, high in windows_hu], -4)


def take_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gather tokens: x (B, T, C), index (B, N) -> (B, N, C)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def valid_voxels(valid_size: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return (B, 1, D, H, W) bool, True in the first ``valid_size`` (B, 3) voxels of each axis: no padding."""
    d, h, w = (torch.arange(n, device=valid_size.device) < valid_size[:, i : i + 1] for i, n in enumerate(shape))
    return (d[:, :, None, None] & h[:, None, :, None] & w[:, None, None, :])[:, None]


def composite(image: torch.Tensor, index: torch.Tensor, patches: torch.Tensor, patch_size: Triple) -> torch.Tensor:
    """Return images (B, C, D, H, W) with patches (B, N, C * P) in the places ``index`` (B, N)."""
    tokens = patchify(image, patch_size)
    placed = tokens.scatter(1, index.unsqueeze(-1).expand_as(patches), patches.to(tokens.dtype))
    return unpatchify(placed, token_grid(image, patch_size), patch_size)


def spread(tokens: torch.Tensor, patch_size: Triple) -> torch.Tensor:
    """Repeat each token of a grid (B, D, H, W) over the voxels of its patch: (B, 1, D, H, W) in voxels."""
    for axis, p in enumerate(patch_size, start=1):
        tokens = tokens.repeat_interleave(p, axis)
    return tokens[:, None]


@lru_cache(maxsize=16)
def sincos_table(grid: Triple, width: int, offset: Triple, device: torch.device) -> torch.Tensor:
    """Return fixed 3D sine-cosine positions (tokens, width) of a token grid that begins at ``offset``.

    A third of the width for each axis, wavelengths from 2 pi to 20000 pi tokens (Vaswani et al. 2017); what three
    axes cannot share evenly is zero.
    """
    pairs = width // 6
    with torch.inference_mode(False):
        frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        index = torch.stack(
            torch.meshgrid(*(torch.arange(n) + o for n, o in zip(grid, offset, strict=True)), indexing="ij"), -1
        )
        angle = index.view(-1, 3, 1) * frequency
        table = torch.cat([angle.sin(), angle.cos()], 2).flatten(1).float()
        return F.pad(table, (0, width - table.shape[1])).to(device)


@dataclass(frozen=True)
class Prediction:
    """What the network makes of a batch.

    Attributes:
        encoded: outputs (B, N_visible, width) of the encoder's blocks, the last one normalised.
        tokens: (B, N, decoder_width), the decoder's last tokens of the ``decoded`` tokens.
        decoded: (B, N) int64, sorted indices of the hidden tokens that were decoded.
        patches: (B, N, windows * P) their predicted intensities, not clipped.
    """

    encoded: list[torch.Tensor]
    tokens: torch.Tensor
    decoded: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class Positions:
    """The positions of a token grid: rotary tables for attention, or sines and cosines to add."""

    config: ModelConfig
    grid: Triple
    offset: Triple
    device: torch.device

    def rotary(self, index: torch.Tensor) -> torch.Tensor | None:
        """Return the rotary table (B, N, 2, head_width) of the tokens ``index`` (B, N), if positions are rotary."""
        if self.config.positions != "rotary":
            return None
        return rotary_table(self.grid, self.config.head_width, self.device)[index]

    def add_to(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Add sine-cosine positions of the tokens ``index`` (B, N) to x (B, N, C), if positions are such."""
        if self.config.positions != "sincos":
            return x
        return x + sincos_table(self.grid, x.shape[-1], self.offset, self.device)[index]


class Encoder(nn.Module):
    """Vision transformer over visible tokens."""

    def __init__(self, config: ModelConfig, windows: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(windows * math.prod(config.patch_size), config.encoder_width)
        self.blocks = nn.ModuleList(Block(config.encoder_width, config.head_width) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(config.encoder_width, eps=EPS)

    def forward(
        self, image: torch.Tensor, visible: torch.Tensor | None = None, offset: Triple = (0, 0, 0)
    ) -> list[torch.Tensor]:
        """Encode the visible tokens.

        Args:
            image: (B, windows, D, H, W) in [0, 1]; every side a multiple of the patch.
            visible: (B, N) int64, sorted; by default all of them.
            offset: where in the superpatch's token grid the image begins; rotary positions do not depend on it.

        Returns:
            the output (B, N, width) of each block; that of the last one is normalised.
        """
        grid = token_grid(image, self.config.patch_size)
        if visible is None:
            visible = torch.arange(math.prod(grid), device=image.device).expand(len(image), -1)
        positions = Positions(self.config, grid, offset, image.device)
        # intensities are centred, so that air and soft tissue lie on either side of zero
        x = self.embed(take_tokens(patchify(image, self.config.patch_size), visible) * 2 - 1)
        x, rotary = positions.add_to(x, visible), positions.rotary(visible)
        outputs = []
        for block in self.blocks:
            x = block(x, rotary=rotary)
            outputs.append(x)
        return [*outputs[:-1], self.norm(x)]


class Mix(nn.Module):
    """Learned softmax mix of the outputs of all encoder blocks, each layer-normed."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(depth))

    def forward(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        weights = self.weight.softmax(0)
        return torch.stack([w * F.layer_norm(x, x.shape[-1:]) for w, x in zip(weights, outputs, strict=True)]).sum(0)


class Decoder(nn.Module):
    """From encoded visible tokens to the patches of hidden ones."""

    def __init__(self, config: ModelConfig, windows: int) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_width
        self.mix = Mix(config.encoder_depth) if config.block_mix else None
        self.memory = nn.Linear(config.encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, config.head_width) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, windows * math.prod(config.patch_size))

    def forward(
        self, encoded: list[torch.Tensor], visible: torch.Tensor, decoded: torch.Tensor, positions: Positions
    ) -> torch.Tensor:
        """Return the decoder's last tokens (B, M, width) in the places ``decoded`` (B, M)."""
        memory = positions.add_to(self.memory(encoded[-1] if self.mix is None else self.mix(encoded)), visible)
        queries = positions.add_to(self.mask_token.expand(*decoded.shape, -1).to(memory.dtype), decoded)
        if self.config.decoder == "self":
            x, rotary = torch.cat([memory, queries], 1), positions.rotary(torch.cat([visible, decoded], 1))
            for block in self.blocks:
                x = block(x, rotary=rotary)
            return self.norm(x[:, memory.shape[1] :])
        rotary, memory_rotary = positions.rotary(decoded), positions.rotary(visible)
        for block in self.blocks:
            queries = block(queries, memory, rotary, memory_rotary)
        return self.norm(queries)


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder: all that pretraining teaches.

    Args:
        windows: HU windows of the image, its channels.
    """

    def __init__(self, config: ModelConfig, windows: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, windows)
        self.decoder = Decoder(config, windows)
        self.apply(initialise)
        # for a tensor without memory torch would import its compiler, which takes longer than to load a checkpoint
        if not self.decoder.mask_token.is_meta:
            nn.init.normal_(self.decoder.mask_token, std=0.02)

    def forward(
        self,
        image: torch.Tensor,
        visible: torch.Tensor,
        decoded: torch.Tensor | None = None,
        offset: Triple = (0, 0, 0),
    ) -> Prediction:
        """Predict hidden patches of superpatches from their visible ones.

        Args:
            image: (B, windows, D, H, W) in [0, 1]; every side a multiple of the patch.
            visible: (B, N) int64, sorted visible tokens.
            decoded: (B, M) int64, sorted hidden tokens to decode; by default all of them.
            offset: as :meth:`Encoder.forward`.
        """
        grid = token_grid(image, self.config.patch_size)
        return self.decode(self.encoder(image, visible, offset), visible, grid, decoded, offset)

    def decode(
        self,
        encoded: list[torch.Tensor],
        visible: torch.Tensor,
        grid: Triple,
        decoded: torch.Tensor | None = None,
        offset: Triple = (0, 0, 0),
    ) -> Prediction:
        """Predict hidden patches from what the encoder made of the visible ones; arguments as :meth:`forward`."""
        decoded = hidden_from_visible(visible, math.prod(grid)) if decoded is None else decoded
        tokens = self.decoder(encoded, visible, decoded, Positions(self.config, grid, offset, visible.device))
        return Prediction(encoded, tokens, decoded, self.decoder.head(tokens).float())


def token_grid(image: torch.Tensor, patch_size: Triple) -> Triple:
    """Return the token grid (D, H, W) of an image (B, C, D, H, W)."""
    d, h, w = (n // p for n, p in zip(image.shape[2:], patch_size, strict=True))
    return d, h, w


def initialise(module: nn.Module) -> None:
    """Start linear layers as Xavier & Bengio (2010), biases at zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
