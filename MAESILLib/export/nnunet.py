"""Export for nnU-Net (Isensee et al. 2021): weights under the names of Primus, and a trainer that loads them."""

from pathlib import Path

import torch

from MAESILLib.export.description import EncoderInfo
from MAESILLib.export.encoder import load_source, write_export
from MAESILLib.mae.model import Encoder
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import write_bytes
from MAESILLib.runtime.resources import resource_path

WEIGHTS = "maesil_encoder.safetensors"
TRAINER = "nnUNetTrainerMAESIL.py"


def primus_weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Return an encoder's weights under the names of ``dynamic_network_architectures``' Primus.

    The input of Primus is then ``2 x - 1`` of the encoder's. Folding this into the patch embedding would lose digits:
    in soft tissue both windows are near 1/2, and kernel and bias cancel.
    """
    weights = {f"eva.{name}": value for name, value in encoder.state_dict().items() if not name.startswith("embed.")}
    weights["down_projection.proj.weight"] = encoder.embed.weight.unflatten(1, (-1, *encoder.config.patch_size))
    weights["down_projection.proj.bias"] = encoder.embed.bias
    return weights


def export_nnunet(checkpoint: Path, folder: Path) -> EncoderInfo:
    """Write the encoder of a checkpoint and the trainer that loads it into ``folder``; older files are replaced.

    Raises:
        InputError: the checkpoint or ``folder`` cannot be used, or Primus has no positions of this kind.
    """
    output = folder / WEIGHTS
    source = load_source(checkpoint, output)
    if source.info.model.positions != "rotary":
        raise InputError(
            f"{checkpoint} has positions '{source.info.model.positions}', Primus rotary ones alone",
            "use --format torch",
        )
    info = write_export(output, "nnunet", primus_weights(source.encoder), source.info)
    write_bytes(folder / TRAINER, resource_path(f"nnUNet/{TRAINER}").read_bytes())
    return info
