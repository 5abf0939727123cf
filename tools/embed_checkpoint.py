"""Write the checkpoint that ships from that of a run: int8, with data, licence and metrics in its metadata.

    python tools/embed_checkpoint.py RUN/best.safetensors TARGET --data CACHE
    maesil evaluate --data CACHE --checkpoint RUN/best.safetensors TARGET --output EVALUATION
    maesil probe --checkpoint TARGET --points POINTS.csv --output PROBE
    python tools/embed_checkpoint.py RUN/best.safetensors TARGET --data CACHE \
        --evaluation EVALUATION/evaluation.json --probe PROBE/probe.json --points POINTS.csv

The first call writes what the second and third measure, so that the metrics are those of the weights that ship. The
last one prints what int8 costs, where the evaluation has both files. A probe takes long and concerns the encoder alone:
with --probed it may be that of another file with the same encoder, written before the completion was trained.
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch

from MAESILLib.data.cache import Cache, read_cache
from MAESILLib.data.provenance import describe_data
from MAESILLib.mae.checkpoint import read_info, read_weights, save_checkpoint
from MAESILLib.probe import features
from MAESILLib.probe.table import ALL, AUROC, POINTS, SOFT
from MAESILLib.runtime.files import read_json, sha256_of

KEPT = (
    "psnr_masked_db",
    "baseline_harmonic_psnr_masked_db",
    "baseline_biharmonic_psnr_masked_db",
    "mae_masked_hu",
    "psnr_complete_db",
    "ssim_complete",
    "psnr_autoencoding_db",
    "ssim_autoencoding",
    "ssim_composite",
    "border_index",
)
WINDOW = 64
PROBED = {
    "auroc": (features.ENCODER, ALL),
    "auroc_soft": (features.ENCODER, SOFT),
    "handmade_auroc": (features.HAND_MADE, ALL),
    "handmade_auroc_soft": (features.HAND_MADE, SOFT),
    "random_auroc": (features.RANDOM, ALL),
    "random_auroc_soft": (features.RANDOM, SOFT),
}
MOST_BYTES = 4 * 2**20


def data_of(training: dict[str, Any], cache: Cache) -> dict[str, Any]:
    """Return a training's description with its data, and those of trainings before it, described anew."""
    sources = set(training["data"]["sources_sha256"])
    entries = tuple(entry for entry in cache.entries if entry.source_sha256 in sources)
    if len(entries) != len(sources):
        raise SystemExit(f"{cache.folder} holds {len(entries)} of the {len(sources)} volumes that were trained on")
    found = {**training, "data": describe_data(cache, entries)}
    if "initialised_from" in training:
        before = training["initialised_from"]
        found["initialised_from"] = {**before, "training": data_of(before["training"], cache)}
    return found


def evaluation_of(path: Path, hashes: dict[str, str]) -> dict[str, Any]:
    """Return the metrics of the target, and print how they differ from those of the source.

    Args:
        hashes: SHA-256 of source and target.
    """
    result = read_json(path)
    labels = {one["sha256"]: one["name"] for one in result["checkpoints"]}
    lines: dict[str, dict[str, Any]] = {}
    for which, sha256 in hashes.items():
        lines[which] = {row["setting"]: row for row in result["summary"] if row["checkpoint"] == labels.get(sha256)}
    if not lines["target"]:
        raise SystemExit(f"{path} does not measure the target; run maesil evaluate on it")
    for setting, row in lines["target"].items():
        for key in ("psnr_masked_db", "psnr_complete_db", "psnr_autoencoding_db"):
            before = lines["source"].get(setting, {}).get(key)
            if before is not None:
                print(f"{setting}: {key} {before:.3f}, in int8 {row[key]:.3f}, {row[key] - before:+.3f}")
    settings = {
        setting: {key: row[key] for key in KEPT if row.get(key) is not None} for setting, row in lines["target"].items()
    }
    return {"data": result["data"], "window_hu": result["window_hu"], "settings": settings}


def encoder_of(path: Path) -> dict[str, torch.Tensor]:
    """Return the encoder's weights as they are read back."""
    return {name: w for name, w in read_weights(path).items() if name.startswith("core.encoder.")}


def probe_of(path: Path, probed: Path, target: Path, points: str) -> dict[str, Any]:
    """Return the AUROC of the target's encoder, which is that of ``probed``, and of what it has to beat, on points."""
    result, own, other = read_json(path), encoder_of(target), encoder_of(probed)
    if result["checkpoint"]["sha256"] != sha256_of(probed):
        raise SystemExit(f"{path} does not measure {probed}; run maesil probe on it")
    if own.keys() != other.keys() or not all(torch.equal(own[name], other[name]) for name in own):
        raise SystemExit(f"{probed} has another encoder than {target}")
    values = {
        (line["feature"], line["group"]): line["value"]
        for line in result["metrics"]
        if (line["source"], line["window"], line["metric"]) == (POINTS, WINDOW, AUROC)
    }
    missing = [key for key, place in PROBED.items() if place not in values]
    if missing:
        raise SystemExit(f"{path} lacks {missing[0]} at a window of {WINDOW} voxels")
    return {"points": points, "window": WINDOW} | {key: values[place] for key, place in PROBED.items()}


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="cache that was trained on")
    parser.add_argument("--evaluation", type=Path, help="evaluation.json of the target")
    parser.add_argument("--probe", type=Path, help="probe.json of the target")
    parser.add_argument("--probed", type=Path, help="what it measures; the target if not given")
    parser.add_argument("--points", type=Path, default=Path("points.csv"), help="what it was probed with; its name")
    parser.add_argument("--licence", default="weights: Apache-2.0; training data: CC BY 3.0 and CC BY 4.0")
    args = parser.parse_args()
    info = read_info(args.source)
    training = {**data_of(info.training, read_cache(args.data)), "licence": args.licence}
    if args.evaluation:
        hashes = {"source": sha256_of(args.source), "target": sha256_of(args.target)}
        training["evaluation"] = evaluation_of(args.evaluation, hashes)
    if args.probe:
        training["probe"] = probe_of(args.probe, args.probed or args.target, args.target, args.points.name)
    if found := re.search(r'"(/|~|[A-Za-z]:\\)[^"]*"', json.dumps(training)):
        raise SystemExit(f"the metadata hold a path: {found[0]}")
    unchecked = args.target.with_suffix(".unchecked")
    save_checkpoint(unchecked, read_weights(args.source), dataclasses.replace(info, training=training), as_int8=True)
    size = unchecked.stat().st_size
    if size > MOST_BYTES:
        unchecked.unlink()
        raise SystemExit(f"{args.target} would have {size} bytes, more than {MOST_BYTES}")
    unchecked.replace(args.target)
    print(f"{args.target}: {size} of {MOST_BYTES} bytes, {training['steps']} steps, {training['samples']} crops")


if __name__ == "__main__":
    main()
