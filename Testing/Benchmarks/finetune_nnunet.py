"""Fine-tune an exported encoder in nnU-Net itself, from two CTs to a trained model, on a CPU.

Checks that the trainer is found, that its network gives the checkpoint's tokens of a batch as nnU-Net loads it, that
training changes the encoder, and that inference loads the result. With more --epochs and --cases it is a real training.

    python -m venv nnunet && nnunet/bin/python -m pip install nnunetv2==2.8.1
    PYTHONPATH=. nnunet/bin/python Testing/Benchmarks/finetune_nnunet.py --data DATA --work FOLDER [--checkpoint C]

DATA holds MANIFEST.csv with the columns file, dataset and labels, and beside each volume NAME.nii.gz its label map
NAME_seg.nii.gz, in which 1 is the tumour. FOLDER becomes nnU-Net's; it must be new.
"""

import argparse
import copy
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from MAESILLib.config import ModelConfig, Preprocessing
from MAESILLib.export.encoder import load_encoder
from MAESILLib.export.nnunet import export_nnunet
from MAESILLib.mae.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.mae.network import Network

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from torchvision_cpu import import_torchvision

DATASET, PLANS, CONFIGURATION = "Dataset701_Sarcoma", "nnUNetPlansMAESIL", "3d_fullres"
SUFFIX = ".nii.gz"
WITHIN = 1e-5


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="default: a small network of random weights")
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--side", type=int, default=64, help="voxels of a patch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=10, help="of an epoch")
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True)
    torch.manual_seed(0)
    checkpoint = args.checkpoint or write_random_checkpoint(args.work / "random.safetensors")
    export_nnunet(checkpoint, args.work / "export")
    write_dataset(args.data, args.cases, args.work / "raw" / DATASET)
    set_environment(args.work)
    prepare(args.work / "preprocessed" / DATASET / f"{PLANS}.json", args.side, load_encoder(checkpoint).spacing_mm)
    fine_tune(checkpoint, args.epochs, args.iterations)


def write_random_checkpoint(path: Path) -> Path:
    """Write a checkpoint of a small network with random weights."""
    config = ModelConfig(superpatch_size=(64, 64, 64), encoder_width=96, encoder_depth=3, decoder_width=48)
    info = CheckpointInfo(config, Preprocessing())
    save_checkpoint(path, Network(config, info.preprocessing.windows_hu, info.parts).state_dict(), info)
    return path


def write_dataset(data: Path, cases: int, folder: Path) -> None:
    """Write the first labelled sarcomas as an nnU-Net data set, in LPS."""
    with open(data / "MANIFEST.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "sts" and row["labels"]][:cases]
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, row in enumerate(rows):
        path = data / row["file"]
        label = path.with_name(path.name.removesuffix(SUFFIX) + "_seg" + SUFFIX)
        for source, target in ((path, f"imagesTr/c{number}_0000"), (label, f"labelsTr/c{number}")):
            sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(source)), "LPS"), str(folder / (target + SUFFIX)))
    description = {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(rows),
        "file_ending": SUFFIX,
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def set_environment(work: Path) -> None:
    """Name nnU-Net's folders and the exported trainer's, and keep nnU-Net to one process."""
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ |= {"nnUNet_extTrainer": str(work / "export"), "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}


def prepare(plans_file: Path, side: int, spacing_mm: float) -> None:
    """Plan at the encoder's spacing with a patch that a CPU can train on, and preprocess."""
    run("nnUNetv2_extract_fingerprint", "-d", 701, "-np", 1)
    spacing = ("-overwrite_target_spacing", *3 * [spacing_mm])
    run("nnUNetv2_plan_experiment", "-d", 701, *spacing, "-overwrite_plans_name", PLANS)
    plans = json.loads(plans_file.read_text())
    plans["configurations"][CONFIGURATION] |= {"patch_size": 3 * [side], "batch_size": 2}
    plans_file.write_text(json.dumps(plans))
    run("nnUNetv2_preprocess", "-d", 701, "-c", CONFIGURATION, "-plans_name", PLANS, "-np", 1)


def run(command: str, *arguments: object) -> None:
    """Run one of nnU-Net's commands, installed beside this Python."""
    subprocess.run([Path(sys.executable).parent / command, *map(str, arguments)], check=True)


def fine_tune(checkpoint: Path, epochs: int, iterations: int) -> None:
    """Train with the exported trainer and check what it started from and what it wrote."""
    import_torchvision()
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    # planning refuses 0, which loads in this process
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    cpu = torch.device("cpu")
    trainer = get_trainer_from_args("701", CONFIGURATION, "all", "nnUNetTrainerMAESIL", PLANS, device=cpu)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, iterations, 2
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[1])["data"]
    difference = compare_tokens(trainer.network, checkpoint, batch)
    before = trainer.network.eva.blocks[0].attn.q_proj.weight.detach().clone()
    start = time.monotonic()
    trainer.run_training()
    seconds = (time.monotonic() - start) / (epochs * iterations)
    moved = float((trainer.network.eva.blocks[0].attn.q_proj.weight.detach() - before).abs().max())
    assert moved > 0, "the encoder did not train"
    predictor = nnUNetPredictor(device=cpu, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",))
    with torch.no_grad():
        same = torch.equal(predictor.network.eval()(batch), trainer.network.eval()(batch))
    assert same, "inference does not load what training wrote"
    losses = trainer.logger.get_value("train_losses", step=None)
    print(f"batch {tuple(batch.shape)}, HU {float(batch.min()):.0f} to {float(batch.max()):.0f}")
    print(f"largest difference of tokens {difference:.1e}; largest change of block 1's queries {moved:.1e}")
    print(f"losses {', '.join(f'{loss:.4f}' for loss in losses)}; {seconds:.2f} s an iteration; inference loads it")


def compare_tokens(network: Any, checkpoint: Path, batch: torch.Tensor) -> float:
    """Return the largest difference of the network's tokens and the checkpoint's, in double precision."""
    network, encoder = copy.deepcopy(network).double().eval(), load_encoder(checkpoint).double()
    tokens: list[torch.Tensor] = []
    network.eva.norm.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    with torch.no_grad():
        network(batch)
        expected = encoder(encoder.intensities(batch[:, 0]).double())
    difference = float((tokens[0] - expected).abs().max())
    assert tokens[0].shape == expected.shape
    assert difference <= WITHIN, f"tokens differ by {difference}"
    return difference


if __name__ == "__main__":
    main()
