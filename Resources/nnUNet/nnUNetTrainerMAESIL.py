"""nnU-Net trainer (nnunetv2 2.8) that fine-tunes Primus from a MAESIL encoder.

``maesil export --format nnunet`` writes this file beside the weights. nnU-Net finds it where the environment variable
nnUNet_extTrainer names their folder, in training and inference. Optimiser, schedule, augmentation and loss are those
of nnU-Net's own Primus trainers. Needs images in LPS, one channel "noNorm" in dataset.json, and plans with
``-overwrite_target_spacing`` at the encoder's spacing.
"""

import json
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus
from safetensors import safe_open

WEIGHTS = Path(__file__).with_name("maesil_encoder.safetensors")


class MAESILPrimus(Primus):
    """Primus on HU windows, each mapped to [-1, 1], that it makes of raw HU (B, 1, D, H, W).

    Args:
        export: metadata of the weights.
        classes: channels of the output.
        shape: voxels (D, H, W) of an image.
    """

    def __init__(self, export: dict[str, Any], classes: int, shape: tuple[int, ...]) -> None:
        model, windows = export["model"], torch.tensor(export["preprocessing"]["windows_hu"])
        super().__init__(
            len(windows),
            model["encoder_width"],
            tuple(model["patch_size"]),
            classes,
            model["encoder_depth"],
            model["encoder_width"] // model["head_width"],
            tuple(shape),
            use_abs_pos_embed=False,
            drop_path_rate=0.2,
            rope_kwargs={"temperature": 100.0},
            init_values=None,
            scale_attn_inner=False,
        )
        low, high = windows.view(1, -1, 1, 1, 1, 2).unbind(-1)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", high - low, persistent=False)

    def forward(self, x: torch.Tensor, ret_mask: bool = False) -> Any:
        """Segment raw HU (B, 1, D, H, W)."""
        return super().forward(((x - self.low) / self.width).clamp(0, 1) * 2 - 1, ret_mask)


class nnUNetTrainerMAESIL(AbstractPrimus):  # noqa: N801 (nnU-Net's way of naming)
    """nnU-Net's Primus trainer with encoder and patch embedding of a MAESIL checkpoint."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """Build the network and load the weights.

        Raises:
            ValueError: the plans do not fit the encoder.
        """
        with safe_open(WEIGHTS, "pt") as file:
            export = json.loads(file.metadata()["maesil"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        check_plans(export, plans_manager, configuration_manager, num_input_channels)
        network = MAESILPrimus(export, num_output_channels, configuration_manager.patch_size)
        lacking, surplus = network.load_state_dict(weights, strict=False)
        lacking = [name for name in lacking if not name.startswith("up_projection.") and name != "mask_token"]
        if lacking or surplus:
            raise ValueError(
                f"{WEIGHTS} does not fit Primus: {len(lacking)} tensors missing, {len(surplus)} unexpected"
            )
        return network


def check_plans(export: dict[str, Any], plans: Any, configuration: Any, channels: int) -> None:
    """Raise ValueError where nnU-Net would prepare images that the encoder was not trained on."""
    spacing, patch = export["preprocessing"]["spacing_mm"], export["model"]["patch_size"]
    sides, voxel = list(configuration.patch_size), list(configuration.spacing)
    schemes = list(configuration.normalization_schemes)
    if channels != 1 or schemes != ["NoNormalization"]:
        raise ValueError(f'dataset.json must name one channel, {{"0": "noNorm"}}: got {schemes} of {channels} channels')
    if len(voxel) != 3 or any(abs(v - spacing) > 0.01 * spacing for v in voxel):
        raise ValueError(
            f"the encoder needs 3D voxels of {spacing} mm, the plans have {voxel}: plan with "
            f"-overwrite_target_spacing {spacing} {spacing} {spacing}"
        )
    if list(plans.transpose_forward) != [0, 1, 2]:
        raise ValueError(f"the plans permute axes, transpose_forward {plans.transpose_forward}: set it to [0, 1, 2]")
    if any(side % p for side, p in zip(sides, patch, strict=True)):
        raise ValueError(f"the plans' patch_size {sides} must be a multiple of {patch} on each axis")
