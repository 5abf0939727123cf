"""The network of the first release, for reconstruction with its checkpoint only.

    image (B, 1, D, H, W) in [0, 1] and its harmonic fill
      -> transformer on visible tokens -> cross-attention of hidden tokens -> convolutions between neighbours
      -> residual of a U-Net over the fill

It is neither trained nor exported any more, and goes when a checkpoint of :mod:`MAESILLib.mae` replaces its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from MAESILLib.checkpoint_info import FirstReleaseModel
from MAESILLib.config import Triple, Window
from MAESILLib.mae.completion import ConvBlock, doubled, halved
from MAESILLib.mae.model import patchify, sincos_table, take_tokens, token_grid
from MAESILLib.mae.network import Reconstructed
from MAESILLib.masking import hidden_from_visible, hidden_tokens


class _Attention(nn.Module):
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
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), *self.key_value(memory).chunk(2, -1))
        )
        query, key = (n(t.float()).to(t.dtype) for n, t in ((self.query_norm, query), (self.key_norm, key)))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, width: int, head_width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _Attention(width, head_width)
        self.mlp_norm = nn.LayerNorm(width)
        inner = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), memory)
        return x + self.mlp(self.mlp_norm(x))


class _Encoder(nn.Module):
    def __init__(self, config: FirstReleaseModel) -> None:
        super().__init__()
        width = config.encoder_width
        self.patch_embedding = nn.Linear(512, width)
        self.blocks = nn.ModuleList(
            _Block(width, config.head_width, config.mlp_ratio) for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(patches * 2 - 1) + positions
        for block in self.blocks:
            x = block(x)
        return x


class _Context(nn.Module):
    """What a hidden token's query gets of the fill in its place and of which neighbours are visible."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.voxels = nn.Linear(512, width)
        self.neighbours = nn.Linear(27, width, bias=False)

    def forward(self, filled: torch.Tensor, is_visible: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        around = F.pad(is_visible.float(), (1,) * 6)
        for axis in (1, 2, 3):
            around = around.unfold(axis, 3, 1)
        nearby = take_tokens(around.flatten(4).flatten(1, 3), hidden)
        return self.neighbours(nearby) + self.voxels(take_tokens(patchify(filled, (8, 8, 8)), hidden) * 2 - 1)


class _LocalEncoder(nn.Module):
    def __init__(self, config: FirstReleaseModel) -> None:
        super().__init__()
        fine, coarse = config.local_channels
        self.stem = nn.Conv3d(9, fine, 3, padding=1)
        self.down = nn.ModuleList([nn.Conv3d(fine, coarse, 2, stride=2)])
        self.blocks = nn.ModuleList([ConvBlock(coarse)])
        self.context = nn.Conv3d(coarse, config.decoder_width, 2, stride=2)

    def forward(self, filled: torch.Tensor, is_visible: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        known = is_visible[:, None].to(filled.dtype)
        for axis in (2, 3, 4):
            known = known.repeat_interleave(4, axis)
        fine = self.stem(torch.cat([halved(filled * 2 - 1), known], 1))
        coarse = self.blocks[0](self.down[0](F.relu(fine)))
        return [fine, coarse], self.context(F.relu(coarse)).flatten(2).transpose(1, 2)


class _TokenMixing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv3d(width, width, 3, padding=1)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, grid: Triple) -> torch.Tensor:
        mixed = self.conv(self.norm(x).unflatten(1, grid).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).flatten(1, 3)
        return x + self.out(F.gelu(mixed, approximate="tanh"))


class _OverlappingHead(nn.Module):
    """Tokens to windows two voxels larger than a patch on all sides, tapered where they overlap."""

    taper: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.windows = nn.ConvTranspose3d(width, 8, 6, stride=4, padding=1)
        ramp = torch.sin(torch.pi / 8 * (torch.arange(4) + 0.5)) ** 2
        taper = torch.cat([ramp, torch.ones(4), ramp.flip(0)])
        window = taper[:, None, None] * taper[:, None] * taper
        self.register_buffer("taper", halved(window[None, None]), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        one = self.windows
        return F.conv_transpose3d(tokens, one.weight * self.taper, one.bias, one.stride, padding=1)


class _LocalDecoder(nn.Module):
    def __init__(self, config: FirstReleaseModel) -> None:
        super().__init__()
        fine, coarse = config.local_channels
        self.tokens = nn.ConvTranspose3d(config.decoder_width, coarse, 2, stride=2)
        self.blocks = nn.ModuleList([ConvBlock(coarse)])
        self.up = nn.ModuleList([nn.ConvTranspose3d(coarse, fine, 2, stride=2)])
        self.last = nn.Conv3d(fine, fine, 3, padding=1)
        self.voxels = nn.Conv3d(fine, 8, 3, padding=1)
        self.windows = _OverlappingHead(config.decoder_width)

    def forward(self, tokens: torch.Tensor, grid: Triple, features: list[torch.Tensor]) -> torch.Tensor:
        onto_grid = tokens.unflatten(1, grid).permute(0, 4, 1, 2, 3)
        x = self.up[0](F.relu(self.blocks[0](self.tokens(onto_grid) + features[1]))) + features[0]
        return doubled(self.voxels(F.relu(self.last(F.relu(x)))) + self.windows(onto_grid))


class _Decoder(nn.Module):
    def __init__(self, config: FirstReleaseModel) -> None:
        super().__init__()
        width = config.decoder_width
        self.memory = nn.Linear(config.encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.context = _Context(width)
        self.blocks = nn.ModuleList(
            _Block(width, config.head_width, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.memory_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.mixing = nn.ModuleList([_TokenMixing(width)])
        self.local_encoder = _LocalEncoder(config)
        self.local_decoder = _LocalDecoder(config)
        self.visible_head = nn.Linear(width, 512)
        self.direct_head = nn.Linear(config.encoder_width, 512)


class FirstRelease(nn.Module):
    """The network of checkpoints of the first release; patches of 8x8x8 voxels."""

    def __init__(self, config: FirstReleaseModel, windows_hu: tuple[Window, ...]) -> None:
        super().__init__()
        self.config, self.windows_hu = config, windows_hu
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def reconstruct(
        self, image: torch.Tensor, visible: torch.Tensor, filled: torch.Tensor | None, *, completed: bool = True
    ) -> Reconstructed:
        """Predict hidden patches and auto-encode visible ones, as :meth:`MAESILLib.mae.network.Network.reconstruct`."""
        grid, decoder = token_grid(image, self.config.patch_size), self.decoder
        hidden = hidden_from_visible(visible, grid[0] * grid[1] * grid[2])
        places, wanted, asked = (
            sincos_table(grid, width, (0, 0, 0), image.device)[index]
            for width, index in (
                (self.config.encoder_width, visible),
                (self.config.decoder_width, visible),
                (self.config.decoder_width, hidden),
            )
        )
        encoded = self.encoder(take_tokens(patchify(image, self.config.patch_size), visible), places)
        memory = decoder.memory(self.encoder.norm(encoded)) + wanted
        queries = (decoder.mask_token + asked).to(memory.dtype)
        features: list[torch.Tensor] = []
        if filled is not None:
            is_visible = ~hidden_tokens(visible, grid)
            features, nearby = decoder.local_encoder(filled, is_visible)
            queries = queries + decoder.context(filled, is_visible, hidden) + take_tokens(nearby, hidden)
        known = decoder.memory_norm(memory)
        tokens = torch.cat([queries, memory], 1)
        for block in decoder.blocks:
            tokens = block(tokens, known)
        decoded, shown = decoder.norm(tokens).split([hidden.shape[1], visible.shape[1]], 1)
        patches = image.new_zeros(*hidden.shape, 512)
        if filled is not None:
            order = torch.cat([hidden, visible], 1)[..., None].expand(-1, -1, decoded.shape[-1])
            whole = torch.cat([decoded, known.to(decoded.dtype)], 1)
            whole = decoder.mixing[0](torch.zeros_like(whole).scatter(1, order, whole), grid)
            residual = decoder.local_decoder(whole, grid, features)
            patches = take_tokens(patchify(filled + residual.float(), self.config.patch_size), hidden)
        visible_patches = decoder.visible_head(shown).float() + decoder.direct_head(encoded - places).float()
        return Reconstructed(hidden, patches, visible_patches)
