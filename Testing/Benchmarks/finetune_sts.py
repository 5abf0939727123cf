"""Fine-tune MONAI's UNETR to segment tumours, from the pretrained encoder and from scratch, at the same budget.

Both arms have the same network, samples, order, optimiser and number of steps, and for one seed the same random
decoder; only the weights of the encoder differ. Validation is on other patients, the mean Dice over whole volumes.

    python Testing/Benchmarks/finetune_sts.py --data DATA [--checkpoint C] [--cases N] [--steps N] [--output FILE]

DATA holds MANIFEST.csv with the columns file, dataset, split (train or val) and labels, and beside each volume
NAME.nii.gz of --dataset whose labels are named there its label map NAME_seg.nii.gz, in which 1 is the tumour.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib.export.description import EncoderInfo, read_encoder_info
from MAESILLib.export.monai_nets import monai_unetr
from MAESILLib.files import write_json
from MAESILLib.reading import read_volume
from MAESILLib.resources import embedded_checkpoint
from MAESILLib.volume import hu_to_unit, model_grid

ARMS = ("pretrained", "scratch")
SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class Case:
    """One CT as the network takes it: image float32 in [0, 1] and label uint8, both (1, D, H, W)."""

    name: str
    image: torch.Tensor
    label: torch.Tensor


def find_cases(data: Path, dataset: str, split: str) -> list[Path]:
    """Return the labelled volumes of a split, in the order of their names."""
    with open(data / "MANIFEST.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["dataset"], row["split"]) == (dataset, split)]
    return sorted(data / row["file"] for row in rows if row["labels"])


def read_case(path: Path, info: EncoderInfo) -> Case:
    """Read a CT and its label map onto the model's grid: LPS, its spacing, its window."""
    volume = read_volume(path)
    label = read_volume(path.with_name(path.name.removesuffix(SUFFIX) + "_seg" + SUFFIX), check=False)
    if label.geometry.size_dhw != volume.geometry.size_dhw:
        raise SystemExit(f"{path} and its label map differ in size")
    grid = model_grid(volume.geometry, info.preprocessing.spacing_mm)
    image = hu_to_unit(grid.to_model(volume.hu), info.preprocessing.window_hu)
    tumour = grid.to_model((label.hu == 1).astype(np.float32)) > 0.5
    return Case(volume.name, torch.from_numpy(image)[None], torch.from_numpy(tumour.astype(np.uint8))[None])


def augmentation(crop: int, seed: int) -> Any:
    """Return the transform that draws a crop, two of three around a voxel of the tumour, and flips it."""
    from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd, SpatialPadd

    keys = ("image", "label")
    size = (crop, crop, crop)
    draw = RandCropByPosNegLabeld(keys, "label", size, pos=2, neg=1, num_samples=1)
    flips = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)]
    transform = Compose([SpatialPadd(keys, size), draw, *flips])
    transform.set_random_state(seed)
    return transform


def train(net: torch.nn.Module, cases: list[Case], args: argparse.Namespace, seed: int) -> list[float]:
    """Train in place; return the loss of every step."""
    from monai.losses import DiceCELoss

    order, transform = random.Random(seed), augmentation(args.crop, seed)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(net.parameters(), args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.1)
    net.train()
    losses = []
    for _ in range(args.steps):
        drawn = []
        for case in order.choices(cases, k=args.batch):
            drawn += transform({"image": case.image, "label": case.label})
        image, label = (torch.stack([torch.as_tensor(d[key]) for d in drawn]) for key in ("image", "label"))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            predicted = net(image)
        loss = criterion(predicted.float(), label)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def dice_of(net: torch.nn.Module, case: Case, args: argparse.Namespace) -> float:
    """Return the Dice of a whole volume, predicted window by window."""
    from monai.inferers import sliding_window_inference

    net.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        predicted = sliding_window_inference(case.image[None], (args.crop,) * 3, 1, net, overlap=0.25)
    found, tumour = predicted.argmax(1) == 1, case.label == 1
    return float(2 * (found & tumour).sum() / (found.sum() + tumour.sum()).clamp(min=1))


def run(arm: str, seed: int, train_cases: list[Case], val_cases: list[Case], args: argparse.Namespace) -> dict:
    """Train and measure one arm with one seed."""
    begin = time.monotonic()
    torch.manual_seed(seed)
    net = monai_unetr(args.checkpoint, 2, args.crop, args.features, pretrained=arm == "pretrained")
    losses = train(net, train_cases, args, seed)
    dice = {case.name: round(dice_of(net, case, args), 4) for case in val_cases}
    row = {"arm": arm, "seed": seed, "mean_dice": round(statistics.mean(dice.values()), 4), "dice": dice}
    row |= {"first_losses": _mean(losses[:20]), "last_losses": _mean(losses[-20:])}
    row["seconds"] = round(time.monotonic() - begin)
    print(f"{arm:10} seed {seed}: Dice {row['mean_dice']:.3f}, loss {row['first_losses']:.3f} to", end=" ")
    print(f"{row['last_losses']:.3f}, {row['seconds']} s", flush=True)
    return row


def _mean(values: list[float]) -> float:
    return round(statistics.mean(values), 4)


def means_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean Dice of each arm, as far as it was run."""
    dice = {arm: [row["mean_dice"] for row in rows if row["arm"] == arm] for arm in ARMS}
    return {arm: _mean(values) for arm, values in dice.items() if values}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as plain JSON values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", default="sts")
    parser.add_argument("--checkpoint", type=Path, help="the embedded one if not given; or an export of it")
    parser.add_argument("--cases", type=int, help="number of training cases, the first by name; all if not given")
    parser.add_argument("--val-cases", type=int, help="number of validation cases; all if not given")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=64, help="side of a crop in voxels, a multiple of the patch")
    parser.add_argument("--features", type=int, default=16, help="UNETR's feature_size")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bf16", action="store_true", help="compute the network in bfloat16")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    args = parser.parse_args(argv)
    args.checkpoint = args.checkpoint or embedded_checkpoint()
    return args


def main(argv: list[str] | None = None) -> None:
    """Run both arms with every seed and print them side by side."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    info = read_encoder_info(args.checkpoint)
    train_paths = find_cases(args.data, args.dataset, "train")[: args.cases]
    val_paths = find_cases(args.data, args.dataset, "val")[: args.val_cases]
    if not train_paths or not val_paths:
        raise SystemExit(f"{args.data} has no labelled cases of {args.dataset} in train and val")
    train_cases, val_cases = ([read_case(p, info) for p in paths] for paths in (train_paths, val_paths))
    print(f"{len(train_cases)} training and {len(val_cases)} validation cases")
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for arm in ARMS:
            rows.append(run(arm, seed, train_cases, val_cases, args))
            if args.output:
                write_json(args.output, {"settings": settings_of(args), "mean_dice": means_of(rows), "runs": rows})
    print(f"mean Dice of {len(val_cases)} cases and {len(args.seeds)} seeds: {means_of(rows)}")


if __name__ == "__main__":
    main()
