"""Fine-tune a pretrained encoder with a small head on few labelled cases, beside the same network from scratch.

    python Testing/Benchmarks/finetune_few_labels.py --labels CACHE --checkpoint C --output FILE.json [--cases 1 5 10]

CACHE holds CTs with label maps, as for ``maesil probe --labels``; every labelled voxel counts as
foreground. A case is a patient. The head is one linear layer from a token to the voxels of its patch. Both arms have
the same crops, order, optimizer and steps, nothing is chosen by what is held out, and the Dice is that of the voxels of
whole volumes of patients who are labelled in no case of the draw. ``maesil probe --labels`` measures frozen encoders.
"""

import argparse
import copy
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import parser_of
from numpy.typing import NDArray
from torch import nn

from MAESILLib.mae.checkpoint import checkpoint_identity
from MAESILLib.mae.model import Mix, unpatchify
from MAESILLib.probe.features import load_frozen, with_random_weights
from MAESILLib.probe.fit import interval
from MAESILLib.probe.labels import find_labelled
from MAESILLib.probe.windows import PATCH, cut, tiles
from MAESILLib.runtime.files import write_json

ARMS = ("pretrained", "from scratch")
SIDE = 64
"""Voxels on a side of a crop."""
WARMUP = 0.1


@dataclass(frozen=True, eq=False)
class Case:
    """A CT on the 1.5 mm grid: HU (D, H, W), and where it is labelled."""

    patient: str
    hu: NDArray[np.int16]
    labelled: NDArray[np.bool_]


class Segmenter(nn.Module):
    """An encoder of HU, a mix of its blocks, and a linear layer to the voxels of each patch."""

    def __init__(self, encode: nn.Module, depth: int, width: int) -> None:
        super().__init__()
        self.encode, self.mix, self.head = encode, Mix(depth), nn.Linear(width, PATCH**3)

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        """Return logits (B, D, H, W) for HU (B, D, H, W)."""
        d, h, w = (n // PATCH for n in hu.shape[1:])
        return unpatchify(self.head(self.mix(self.encode(hu))), (d, h, w), (PATCH,) * 3)[:, 0]


def read_cases(path: Path) -> list[Case]:
    """Read every CT that has a label map."""
    cases = []
    for volume in find_labelled(path):
        hu, codes, _ = volume.read()
        cases.append(Case(volume.entry.patient_label, hu, codes > 0))
    return cases


def draw_batch(cases: list[Case], count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw crops (B, D, H, W) around random voxels, in half of them labelled ones, left and right mirrored in half."""
    crops = []
    for number in range(count):
        case = cases[rng.integers(len(cases))]
        inside = np.flatnonzero(case.labelled if number % 2 == 0 else case.hu > -500)
        centre = np.array(np.unravel_index(inside[rng.integers(len(inside))], case.hu.shape))
        start = centre - rng.integers(SIDE // 4, 3 * SIDE // 4, 3)
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        both = cut(case.hu, start, SIDE), cut(case.labelled, start, SIDE, "constant")
        crops.append([np.ascontiguousarray(one[:, :, flip]) for one in both])
    hu, labelled = (torch.from_numpy(np.stack(one)).float() for one in zip(*crops, strict=True))
    return hu, labelled


def train(net: Segmenter, cases: list[Case], args: argparse.Namespace, seed: list[int]) -> None:
    """Train every weight in place: cross-entropy plus soft Dice, warm-up and a cosine to 0."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), args.learning_rate, weight_decay=0.05)
    for step in range(args.steps):
        share = (step + 1) / args.steps
        rate = min(1.0, share / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = args.learning_rate * rate
        hu, labelled = draw_batch(cases, args.batch, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = net(hu)
        logits, p = logits.float(), logits.float().sigmoid()
        dice = (2 * (p * labelled).sum() + 1) / (p.sum() + labelled.sum() + 1)
        optimizer.zero_grad()
        (F.binary_cross_entropy_with_logits(logits, labelled) + 1 - dice).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


@torch.inference_mode()
def dice_of(net: Segmenter, case: Case, bf16: bool) -> float:
    """Return the Dice of a whole volume, predicted in windows side by side."""
    both = predicted = 0
    for start in tiles(case.hu.shape, SIDE, [0]):
        hu, labelled = (
            torch.from_numpy(cut(one, start, SIDE, how))
            for one, how in ((case.hu, "edge"), (case.labelled, "constant"))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = net(hu[None].float())[0] > 0
        inside = torch.from_numpy(cut(np.ones(case.hu.shape, bool), start, SIDE, "constant"))
        both += int((found & labelled).sum())
        predicted += int((found & inside).sum())
    return 2 * both / (predicted + int(case.labelled.sum()))


def run(cases: list[Case], args: argparse.Namespace) -> dict[str, Any]:
    """Return the Dice of each arm, number of cases, draw and held-out patient, and means with intervals."""
    frozen, info = load_frozen(args.checkpoint)
    patients = sorted({case.patient for case in cases})
    found: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for draw in range(args.draws):
        order = np.random.default_rng([args.seed, draw]).permutation(patients)
        held_out = [case for case in cases if case.patient in order[max(args.cases) :]]
        for count in args.cases:
            labelled = [case for case in cases if case.patient in order[:count]]
            for arm in ARMS:
                began = time.monotonic()
                encode = copy.deepcopy(frozen) if arm == ARMS[0] else with_random_weights(frozen, draw)
                torch.manual_seed(draw)
                net = Segmenter(encode, info.model.encoder_depth, info.model.encoder_width)
                train(net.train(), labelled, args, [args.seed, draw, count])
                dice = {case.patient: dice_of(net.eval(), case, args.bf16) for case in held_out}
                for patient, value in dice.items():
                    found[count, arm][patient].append(value)
                mean, seconds = np.mean(list(dice.values())), time.monotonic() - began
                print(f"draw {draw}, {count} labelled, {arm}: Dice {mean:.3f}, {seconds:.0f} s", flush=True)
    return {"dice": {f"{count} {arm}": values for (count, arm), values in found.items()}, "means": means_of(found)}


def means_of(found: dict[tuple[int, str], dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return for each number of cases the mean Dice of both arms, and their difference with its interval."""
    lines = []
    for count in sorted({count for count, _ in found}):
        tables = [np.array([[np.mean(one)] for one in found[count, arm].values()]) for arm in ARMS]
        line = {
            "cases": count,
            "patients": len(tables[0]),
            **{a: float(t.mean()) for a, t in zip(ARMS, tables, strict=True)},
        }
        lines.append(line | {"difference": line[ARMS[0]] - line[ARMS[1]], **interval(tables)})
    return lines


def main() -> None:
    """Run both arms and print them side by side."""
    parser = parser_of(__doc__, "--labels", "--output", "--checkpoint")
    parser.add_argument("--cases", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    result = run(read_cases(args.labels), args)
    settings = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    write_json(args.output, {"settings": settings, "checkpoint": checkpoint_identity(args.checkpoint), **result})
    print(f"\n| labelled | {ARMS[0]} | {ARMS[1]} | difference (95 %) |\n|---|---|---|---|")
    for line in result["means"]:
        ends = f"{line['low']:+.3f} to {line['high']:+.3f}"
        print(f"| {line['cases']} | {line[ARMS[0]]:.3f} | {line[ARMS[1]]:.3f} | {line['difference']:+.3f} ({ends}) |")


if __name__ == "__main__":
    main()
