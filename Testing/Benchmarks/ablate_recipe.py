"""Trains variants of the network and the recipe with equal budgets and measures what they reconstruct.

    python Testing/Benchmarks/ablate_recipe.py CACHE OUT VARIANT [VARIANT ...] [--samples 3000] [--seed 0]

Superpatches of 64^3 on one CPU thread in bf16, the library's own trainer. Every row says dB of hidden
patches (dual .5/.5) above the harmonic fill of the same masks, with the averaged weights and with those of the
last update, the border index of the composite, and PSNR and SSIM of auto-encoding, all over the validation
volumes of the cache. What the library has no key for is a change of the trainer, in ``CHANGES``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from MAESILLib.model import MaskedAutoencoder, unpatchify

from MAESILLib import config as configuration
from MAESILLib.checkpoint import load_checkpoint, save_checkpoint
from MAESILLib.data.cache import read_cache
from MAESILLib.harmonic import harmonic_fill
from MAESILLib.masking import MaskSpec, draw_visible, generator_for, hidden_from_visible, hidden_tokens
from MAESILLib.metrics import border_index, psnr, ssim
from MAESILLib.training.optimizer import is_decayed
from MAESILLib.training.trainer import Trainer
from MAESILLib.training.validation import validation_set

PLAIN = {"mixing_depth": 0, "local_channels": [], "direct_head": False, "context_margin": 4, "decoder_depth": 4}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {"model": PLAIN},
    "small": {},
    "no_mixing": {"model": {"mixing_depth": 0}},
    "no_branch": {"model": {"local_channels": []}},
    "branch_alone": {"model": {"encoder_depth": 1, "decoder_depth": 1}},
    "wide_branch": {"model": {"local_channels": [24, 64]}},
    "three_levels": {"model": {"local_channels": [16, 32, 96]}},
    "narrow": {"model": {"encoder_width": 192, "decoder_width": 128}},
    "shallow": {"model": {"encoder_depth": 4}},
    "wide_shallow": {"model": {"encoder_width": 448, "encoder_depth": 4}},
    "no_gradient": {"train": {"gradient_weight": 0.0}},
    "gradient_1": {"train": {"gradient_weight": 1.0}},
    "gradient_4": {"train": {"gradient_weight": 4.0}},
    "no_noise": {"train": {"noise": 0.0}},
    "no_jitter": {"train": {"scale_jitter": 0.0, "shift_jitter": 0.0, "noise": 0.0}},
    "hidden_only": {"train": {"visible_weight": 0.0}},
    "more_visible": {"train": {"visible_weight": 4.0}},
    "share_75": {"mask": {"hidden_shares": [0.75]}},
    "shares_50_90": {"mask": {"hidden_shares": [0.5, 0.75, 0.75, 0.9]}},
    "dual_alone": {"mask": {"strategies": ["dual"]}},
    "ssim": {"train": {"ssim_weight": 0.1}},
    "as_shipped": {"train": {"ssim_weight": 0.1, "visible_weight": 4.0}},
    "window_attention": {},
    "decay_kernels": {},
}
MASK = MaskSpec("dual", 0.5, 0.5)
REACH = 2
"""Tokens that a query of ``window_attention`` sees along each axis: a window of 5x5x5."""


def with_window_attention(trainer: Trainer) -> None:
    """Let each query of the decoder attend to visible tokens at most REACH tokens away; to all where there is none."""
    model = cast(MaskedAutoencoder, trainer.model)
    places: dict[str, torch.Tensor] = {}

    def remember(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        image, visible = args
        _, h, w = grid = tuple(n // 8 for n in image.shape[2:])
        queried = kwargs.get("queried")
        query = torch.cat(
            [hidden_from_visible(visible, math.prod(grid)), *([] if queried is None else [visible.gather(1, queried)])],
            1,
        )
        far = torch.zeros(len(visible), query.shape[1], visible.shape[1], dtype=torch.bool)
        for of in (lambda t: t // (h * w), lambda t: t // w % h, lambda t: t % w):
            far |= (of(query)[:, :, None] - of(visible)[:, None]).abs() > REACH
        places["near"] = (~far | far.all(2, keepdim=True))[:, None]

    def near(attention: Any) -> Callable[..., torch.Tensor]:
        def forward(x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
            query = attention._split(attention.query(x))
            key, value = (attention._split(t) for t in attention.key_value(memory).chunk(2, -1))
            query = attention.query_norm(query.float()).to(value.dtype)
            key = attention.key_norm(key.float()).to(value.dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=places["near"])
            return attention.out(attended.transpose(1, 2).flatten(2))

        return forward

    model.register_forward_pre_hook(remember, with_kwargs=True)
    for block in cast(list[Any], list(model.decoder.blocks)):
        block.attention.forward = near(block.attention)


def with_decayed_kernels(trainer: Trainer) -> None:
    """Let weight decay apply to the kernels of convolutions too."""
    kernels = [p for name, p in trainer.model.named_parameters() if p.dim() > 2 and "token" not in name]
    assert not any(is_decayed("", p) for p in kernels)
    optimizer, known = trainer.update.optimizer, {id(p) for p in kernels}
    decayed, plain = optimizer.param_groups
    decayed["params"] += kernels
    plain["params"] = [p for p in plain["params"] if id(p) not in known]


CHANGES: dict[str, Callable[[Trainer], None]] = {
    "window_attention": with_window_attention,
    "decay_kernels": with_decayed_kernels,
}


def build(name: str, samples: int, seed: int, rate: float, batch: int) -> configuration.Config:
    """Return the configuration of a variant."""
    values: dict[str, Any] = {
        "preset": "small",
        "model": {"superpatch_size": [64, 64, 64]},
        "train": {
            "steps": samples // batch,
            "batch_size": batch,
            "crop_size": [64, 64, 64],
            "learning_rate": rate,
            "precision": "bf16",
            "validate_every": 10**6,
            "validation_superpatches": 28,
            "preview_at": 0,
            "checkpoint_every": 10**6,
            # what rows stand beside: the defaults from before the two were chosen
            "visible_weight": 0.5,
            "ssim_weight": 0.0,
            "seed": seed,
        },
    }
    for section, changes in VARIANTS[name].items():
        values[section] = {**values.get(section, {}), **changes}
    return configuration.from_dict(values)


@torch.inference_mode()
def measure(model: MaskedAutoencoder, superpatches: list[Any]) -> dict[str, float]:
    """Return means over the superpatches."""
    rows = []
    for one in superpatches:
        image, valid = one.image, one.valid
        grid = tuple(n // 8 for n in image.shape[2:])
        visible = draw_visible(grid, MASK, 1, generator_for(1000, one.volume, int(image.sum())))
        known = ~hidden_tokens(visible, grid)[:, None]
        for axis in (2, 3, 4):
            known = known.repeat_interleave(8, axis)
        filled = harmonic_fill(image, known & valid)
        everything = torch.arange(math.prod(grid))[None]
        with torch.autocast("cpu", torch.bfloat16):
            out = model(image, visible, valid=valid, filled=filled)
            shown = model(image, everything, valid=valid, queried=everything).visible_patches
        patches = image.new_zeros(1, math.prod(grid), 512)
        patches.scatter_(1, out.hidden[..., None].expand_as(out.hidden_patches), out.hidden_patches)
        predicted = unpatchify(patches, grid, (8, 8, 8))
        composite = torch.where(known, image, predicted).clamp(0, 1)[0, 0].numpy()
        truth, fill, where = image[0, 0].numpy(), filled[0, 0].numpy(), (~known & valid)[0, 0].numpy()
        auto = unpatchify(shown, grid, (8, 8, 8)).clamp(0, 1)[0, 0].numpy()
        counted = valid[0, 0].numpy()
        body = counted & (truth > 0.1)
        rows.append(
            {
                "psnr": psnr(truth, composite, where),
                "harmonic": psnr(truth, fill, where),
                "border": border_index(truth, composite, 8, where=body),
                "border_harmonic": border_index(truth, fill, 8, where=body),
                "ae_psnr": psnr(truth, auto, counted),
                "ae_ssim": ssim(truth, auto, body),
                "ae_border": border_index(truth, auto, 8, where=body),
            }
        )
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {"above_harmonic": means["psnr"] - means["harmonic"], **means}


def gigaflop(model: MaskedAutoencoder, side: int = 128, hidden_share: float = 0.75) -> float:
    """Return GFLOP of a forward pass of one superpatch."""
    from torch.utils.flop_counter import FlopCounterMode

    grid = (side // 8,) * 3
    ratio = 1 - (1 - hidden_share) ** 0.5
    visible = draw_visible(grid, MaskSpec("dual", ratio, ratio), 1, generator_for(0))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.rand(1, 1, side, side, side), visible)
    # the counter does not know attention on a CPU: two products of queries x keys x width in each block
    seen, hidden = visible.shape[1], math.prod(grid) - visible.shape[1]
    config = model.config
    attention = seen * seen * config.encoder_width * config.encoder_depth
    attention += hidden * seen * config.decoder_width * config.decoder_depth
    return (counter.get_total_flops() + 4 * attention) / 1e9


def resized(initial: str, folder: str) -> Path:
    """Return a copy of a checkpoint that says it is for superpatches of 64^3; no weight depends on it."""
    model, info = load_checkpoint(initial)
    path = Path(folder) / "initial.safetensors"
    save_checkpoint(path, model.state_dict(), replace(info, model=replace(info.model, superpatch_size=(64, 64, 64))))
    return path


def run(name: str, cache: Any, samples: int, seed: int, rate: float, batch: int, initial: str | None) -> dict[str, Any]:
    """Train and measure one variant."""
    config = build(name, samples, seed, rate, batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, cache, Path(folder) / "run", initial=initial and resized(initial, folder))
        superpatches = validation_set(cache, cache.select("val"), config)
        CHANGES.get(name, lambda _: None)(trainer)
        begin = time.monotonic()
        trainer._preview = lambda: None  # type: ignore[method-assign]
        trainer._validate = lambda: None  # type: ignore[method-assign]
        trainer.run()
        seconds = time.monotonic() - begin
        model = cast(MaskedAutoencoder, trainer.model)
        with trainer.update.averaged():
            figures = measure(model, superpatches)
        last = measure(model.eval(), superpatches)
        figures["above_harmonic_last"] = last["above_harmonic"]
    return {
        "variant": name,
        "gigaflop": gigaflop(model),
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "samples": samples,
        "seed": seed,
        "rate": rate,
        "batch": batch,
        "initial": initial is not None,
        "seconds_per_step": seconds / (samples // batch),
        **figures,
    }


def main() -> None:
    """Run the variants one after the other and append their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("out", type=Path, help="a file of JSON lines")
    parser.add_argument("variants", nargs="+", choices=sorted(VARIANTS))
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--init", default=None, help="a checkpoint to start from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cache = read_cache(arguments.cache)
    for name in arguments.variants:
        row = run(name, cache, arguments.samples, arguments.seed, arguments.rate, arguments.batch, arguments.init)
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        row["rate"] = arguments.rate
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
