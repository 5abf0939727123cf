"""The superpatch masked autoencoder, in call order.

    image (B, 1, D, H, W) in [0, 1]
      -> patches of the visible tokens -> patch embedding + position
      -> encoder: full attention among visible tokens
      -> decoder: queries of hidden tokens (mask token + position + what the prior shows around them)
         attend to the encoded visible tokens; then neighbours on the token grid mix
      -> convolutional branch (:mod:`MAESILLib.local_branch`): a residual that is smooth across borders
      -> hidden patches = prior + residual

A visible token can be queried too, starting from its own encoded token and without the prior (which
would be the answer): that is auto-encoding. It is read from the decoded query and from the encoded token.

Decoding hidden queries by cross-attention follows CrossMAE (Fu et al. 2024); QK-norm follows Dehghani
et al. 2023 (ViT-22B).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from MAESILLib.config import ModelConfig, Triple
from MAESILLib.cosines import start_at_cosines
from MAESILLib.local_branch import ConvBlock, LocalDecoder, LocalEncoder, TokenMixing
from MAESILLib.masking import hidden_from_visible, hidden_tokens
from MAESILLib.prior import Relax, relaxed, smooth_fill
from MAESILLib.superpatch import token_grid


@dataclass(frozen=True)
class Prediction:
    """What the network says, as patches of P voxels.

    Attributes:
        hidden: (B, N_hidden) int64, sorted token indices.
        hidden_patches: (B, N_hidden, P) predicted intensities, not clipped.
        visible: (B, M) int64, the visible tokens that were queried.
        visible_patches: (B, M, P) their auto-encoded intensities.
    """

    hidden: torch.Tensor
    hidden_patches: torch.Tensor
    visible: torch.Tensor
    visible_patches: torch.Tensor


def patchify(image: torch.Tensor, patch_size: Triple) -> torch.Tensor:
    """Cut (B, 1, D, H, W) into patches (B, tokens, P); tokens and voxels in row-major order."""
    batch, _, depth, height, width = image.shape
    pd, ph, pw = patch_size
    x = image.reshape(batch, depth // pd, pd, height // ph, ph, width // pw, pw)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, -1, pd * ph * pw)


def unpatchify(patches: torch.Tensor, grid: Triple, patch_size: Triple) -> torch.Tensor:
    """Invert :func:`patchify`: (B, tokens, P) on a token grid (D, H, W) to (B, 1, D, H, W)."""
    x = patches.reshape(-1, *grid, *patch_size).permute(0, 1, 4, 2, 5, 3, 6)
    return x.reshape(-1, 1, *(g * p for g, p in zip(grid, patch_size, strict=True)))


def valid_voxels(valid_size: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return (B, 1, D, H, W) bool, True in the first ``valid_size`` voxels of each axis."""
    axes = [torch.arange(n, device=valid_size.device) < valid_size[:, i : i + 1] for i, n in enumerate(shape)]
    d, h, w = axes
    return (d[:, :, None, None] & h[:, None, :, None] & w[:, None, None, :])[:, None]


def take_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gather tokens: x (B, T, C), index (B, N) -> (B, N, C)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def sincos_positions(grid: Triple, width: int, offset: Triple = (0, 0, 0)) -> torch.Tensor:
    """Fixed 3D sine-cosine positions (tokens, width) of a token grid that begins at ``offset``.

    A third of the width for each axis, wavelengths from 2 pi to 20000 pi tokens as in Vaswani et al.
    2017; what three axes cannot share evenly is zero.
    """
    pairs = width // 6
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / max(1, pairs))
    axes = []
    for n, start in zip(grid, offset, strict=True):
        angle = torch.arange(start, start + n, dtype=torch.float64)[:, None] * frequency
        axes.append(torch.cat([angle.sin(), angle.cos()], 1))
    d, h, w = axes
    shape = (*grid, 2 * pairs)
    table = torch.cat(
        [d[:, None, None].expand(shape), h[None, :, None].expand(shape), w[None, None].expand(shape)], -1
    ).reshape(-1, 6 * pairs)
    return F.pad(table, (0, width - table.shape[1])).float()


@lru_cache(maxsize=32)
def _position_table(device: torch.device, reach: Triple, width: int) -> torch.Tensor:
    # inference mode would leave its mark on a table that training uses later
    with torch.inference_mode(False):
        return sincos_positions(reach, width).view(*reach, width).to(device)


def positions_on(device: torch.device, grid: Triple, width: int, offset: Triple, reach: Triple) -> torch.Tensor:
    """Return the positions (tokens, width) of a grid at ``offset``, cut from a table that stays on the device.

    Args:
        reach: the model's whole token grid; tables are as large at least, so that every offset shares one.
    """
    d, h, w = (max(r, o + g) for r, o, g in zip(reach, offset, grid, strict=True))
    table = _position_table(device, (d, h, w), width)
    for axis, (start, length) in enumerate(zip(offset, grid, strict=True)):
        table = table.narrow(axis, start, length)
    return table.reshape(-1, width)


class Attention(nn.Module):
    """Multi-head attention of queries (B, N, C) to a memory (B, M, C); to themselves without one."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.query_norm = nn.RMSNorm(head_width, eps=1e-6)
        self.key_norm = nn.RMSNorm(head_width, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        memory = x if memory is None else memory
        query = self._split(self.query(x))
        key, value = (self._split(t) for t in self.key_value(memory).chunk(2, -1))
        # under autocast the norms compute in fp32
        query = self.query_norm(query.float()).to(value.dtype)
        key = self.key_norm(key.float()).to(value.dtype)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: attention (self, or cross when a memory is given) and MLP."""

    def __init__(self, width: int, head_width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, head_width)
        self.mlp_norm = nn.LayerNorm(width)
        inner = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))

    def start_at_zero(self) -> None:
        """Leave the tokens as they are."""
        for layer in (self.attention.out, self.mlp[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), memory)
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    """Vision transformer over visible tokens: their patches (B, N, P) in, (B, N, width) out, not normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.encoder_width
        pd, ph, pw = config.patch_size
        self.patch_embedding = nn.Linear(pd * ph * pw, config.encoder_width)
        self.blocks = nn.ModuleList(
            Block(config.encoder_width, config.head_width, config.mlp_ratio) for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(config.encoder_width)

    def forward(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # intensities are centred, so that air and soft tissue lie on either side of zero
        x = self.patch_embedding(patches * 2 - 1) + positions
        for block in self.blocks:
            x = block(x)
        return x


class PriorContext(nn.Module):
    """What a hidden token's query knows of its surroundings: the prior near it and who is visible.

    Both are made of visible voxels only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.margin = config.context_margin
        window = 1
        for p in config.patch_size:
            window *= p + 2 * config.context_margin
        self.voxels = nn.Linear(window, config.decoder_width)
        self.neighbours = nn.Linear(27, config.decoder_width, bias=False)

    def forward(self, filled: torch.Tensor, is_visible: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Embed the windows around hidden tokens.

        Args:
            filled: (B, 1, D, H, W), the prior with the visible voxels in it.
            is_visible: (B, D, H, W) bool token grid.
            hidden: (B, N) token indices.

        Returns:
            (B, N, decoder_width)
        """
        place = _token_places(hidden, is_visible.shape[1:])
        neighbours = F.pad(is_visible.float(), (1,) * 6)
        for axis in (1, 2, 3):
            neighbours = neighbours.unfold(axis, 3, 1)
        nearby = self.neighbours(neighbours[place].flatten(2))
        # the margin does not look past the superpatch: its edge voxels are repeated
        around = F.pad(filled, (self.margin,) * 6, mode="replicate")[:, 0] * 2 - 1
        for axis, p in enumerate(self.patch_size, start=1):
            around = around.unfold(axis, p + 2 * self.margin, p)
        return nearby + self.voxels(around[place].flatten(2))


def _token_places(index: torch.Tensor, grid: torch.Size) -> tuple[torch.Tensor, ...]:
    """Split token numbers (B, N) into (batch, d, h, w) index tensors."""
    batch = torch.arange(index.shape[0], device=index.device)[:, None].expand_as(index)
    plane = grid[1] * grid[2]
    return batch, index // plane, index % plane // grid[2], index % grid[2]


class Decoder(nn.Module):
    """Cross-attention decoder: queries attend to encoded visible tokens and become patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.patch_size = config.decoder_width, config.patch_size
        pd, ph, pw = config.patch_size
        voxels = pd * ph * pw
        self.memory = nn.Linear(config.encoder_width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        self.context = PriorContext(config) if config.prior else None
        self.blocks = nn.ModuleList(
            Block(config.decoder_width, config.head_width, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.memory_norm = nn.LayerNorm(config.decoder_width)
        self.norm = nn.LayerNorm(config.decoder_width)
        self.mixing = nn.ModuleList(TokenMixing(config.decoder_width) for _ in range(config.mixing_depth))
        has_branch = config.prior and config.local_channels
        self.local_encoder = LocalEncoder(config) if has_branch else None
        self.local_decoder = LocalDecoder(config) if has_branch else None
        # a patch made of its token alone would not meet its neighbours: with the branch, that is the head
        self.hidden_head = None if has_branch else nn.Linear(config.decoder_width, voxels)
        self.visible_head = nn.Linear(config.decoder_width, voxels)
        self.direct_head = nn.Linear(config.encoder_width, voxels) if config.direct_head else None

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Decode queries (B, N, width) against a memory (B, M, width)."""
        memory = self.memory_norm(memory)
        for block in self.blocks:
            queries = block(queries, memory)
        return self.norm(queries)

    def surroundings(
        self, filled: torch.Tensor, is_visible: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what queries know of the voxels around them (B, N, width), and the branch's features.

        Arguments as of :class:`PriorContext`.
        """
        assert self.context is not None
        context = self.context(filled, is_visible, hidden)
        if self.local_encoder is None:
            return context, []
        features, nearby = self.local_encoder(filled, is_visible)
        return context + take_tokens(nearby, hidden), features

    def mixed(
        self, decoded: torch.Tensor, hidden: torch.Tensor, memory: torch.Tensor, visible: torch.Tensor, grid: Triple
    ) -> torch.Tensor:
        """Put decoded hidden tokens and encoded visible ones on the token grid, and let neighbours mix.

        Args:
            decoded: (B, N, width) of the tokens ``hidden`` (B, N).
            memory: (B, M, width) of the tokens ``visible`` (B, M).

        Returns:
            (B, tokens, width)
        """
        known = self.memory_norm(memory).to(decoded.dtype)
        # every token is hidden or visible, so each place is written once
        order = torch.cat([hidden, visible], 1)
        tokens = torch.cat([decoded, known], 1)
        tokens = torch.zeros_like(tokens).scatter(1, order[..., None].expand_as(tokens), tokens)
        for mixing in self.mixing:
            tokens = mixing(tokens, grid)
        return tokens

    def residual(
        self, tokens: torch.Tensor, hidden: torch.Tensor, grid: Triple, features: list[torch.Tensor]
    ) -> torch.Tensor:
        """Turn tokens (B, tokens, width) of a whole grid into the patches (B, N, P) of the tokens ``hidden``."""
        if self.local_decoder is not None:
            return take_tokens(patchify(self.local_decoder(tokens, grid, features), self.patch_size), hidden)
        assert self.hidden_head is not None
        patches: torch.Tensor = self.hidden_head(take_tokens(tokens, hidden))
        return patches


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder with everything between image and predicted patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.relax: Relax = relaxed
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.apply(_initialise)
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        if self.decoder.direct_head is not None:
            self._start_as_linear_code(self.decoder.direct_head)
        for module in self.modules():
            if isinstance(module, ConvBlock | LocalEncoder | LocalDecoder | TokenMixing):
                module.start_at_zero()
        if config.prior and self.decoder.hidden_head is not None:
            # training starts at the prior
            nn.init.zeros_(self.decoder.hidden_head.weight)
            nn.init.zeros_(self.decoder.hidden_head.bias)

    def forward(
        self,
        image: torch.Tensor,
        visible: torch.Tensor,
        *,
        valid: torch.Tensor | None = None,
        queried: torch.Tensor | None = None,
        filled: torch.Tensor | None = None,
        offset: Triple = (0, 0, 0),
    ) -> Prediction:
        """Reconstruct superpatches from their visible tokens.

        Args:
            image: (B, 1, D, H, W) intensities in [0, 1]; every side a multiple of the patch.
            visible: (B, N) int64, sorted visible tokens.
            valid: (B, 1, D, H, W) bool, False in padding; the prior does not draw on padding.
            queried: (B, M) int64, places in ``visible`` of the visible tokens to decode too.
            filled: (B, 1, D, H, W) the prior, where the caller made it from more than this superpatch
                (:func:`MAESILLib.prior.smooth_fill`); visible voxels are those of ``image``.
            offset: where in the model's token grid the image begins.
        """
        config = self.config
        depth, height, width = (n // p for n, p in zip(image.shape[2:], config.patch_size, strict=True))
        grid = (depth, height, width)
        hidden = hidden_from_visible(visible, depth * height * width)
        if queried is None:
            queried = visible[:, :0]

        patches = patchify(image, config.patch_size)
        reach = token_grid(config.superpatch_size, config.patch_size)
        positions = positions_on(image.device, grid, self.encoder.width, offset, reach).expand(len(image), -1, -1)
        places = take_tokens(positions, visible)
        encoded = self.encoder(take_tokens(patches, visible), places)

        decoder = self.decoder
        positions = positions_on(image.device, grid, decoder.width, offset, reach).expand(len(image), -1, -1)
        memory = decoder.memory(self.encoder.norm(encoded)) + take_tokens(positions, visible)
        queries = decoder.mask_token + take_tokens(positions, hidden)
        n_hidden = hidden.shape[1]
        # in training every part takes part in every step, so that replicas agree on whose gradients there are
        is_completed = n_hidden > 0 or self.training
        base = image.new_zeros(len(image), n_hidden, patches.shape[-1])
        features: list[torch.Tensor] = []
        if config.prior and is_completed:
            is_visible = ~hidden_tokens(visible, grid)
            if filled is None:
                filled = self._fill(image, is_visible, valid)
            base = take_tokens(patchify(filled, config.patch_size), hidden)
            context, features = decoder.surroundings(filled, is_visible, hidden)
            queries = queries + context

        decoded = decoder(torch.cat([queries.to(memory.dtype), take_tokens(memory, queried)], 1), memory)
        decoded, shown = decoded[:, :n_hidden], decoded[:, n_hidden:]
        hidden_patches = base
        if is_completed:
            residual = decoder.residual(decoder.mixed(decoded, hidden, memory, visible, grid), hidden, grid, features)
            hidden_patches = base + residual.float()
        visible_patches = decoder.visible_head(shown).float()
        if decoder.direct_head is not None:
            # where a token lies is known and says nothing of its voxels
            visible_patches = visible_patches + decoder.direct_head(take_tokens(encoded - places, queried)).float()
        return Prediction(hidden, hidden_patches, visible.gather(1, queried), visible_patches)

    def _start_as_linear_code(self, head: nn.Linear) -> None:
        """Start auto-encoding at the lowest cosines of a patch: blocks of the encoder add nothing to them yet."""
        start_at_cosines(self.encoder.patch_embedding, head, self.config.patch_size)
        for module in self.encoder.modules():
            if isinstance(module, Block):
                module.start_at_zero()
        nn.init.zeros_(self.decoder.visible_head.weight)

    def _fill(self, image: torch.Tensor, is_visible: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        known = is_visible[:, None]
        for axis, p in enumerate(self.config.patch_size, start=2):
            known = known.repeat_interleave(p, axis)
        if valid is not None:
            known = known & valid
        with torch.autocast(image.device.type, enabled=False), torch.no_grad():
            # a compiled sweep is one for each shape, and only training has few
            return smooth_fill(image, known, self.config.patch_size, relax=self.relax if self.training else relaxed)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
