"""Turn the best checkpoint of a run into the one that ships: half precision, data, licence and figures inside.

maesil evaluate --data CACHE --checkpoint RUN/best.safetensors --output EVALUATION
python Testing/Benchmarks/embed_checkpoint.py RUN/best.safetensors EVALUATION/evaluation.json TARGET
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from MAESILLib.checkpoint import load_checkpoint, save_checkpoint
from MAESILLib.files import read_json

KEPT = (
    "psnr_masked_db",
    "baseline_harmonic_psnr_masked_db",
    "mae_masked_hu",
    "psnr_complete_db",
    "ssim_complete",
    "psnr_autoencoding_db",
    "ssim_autoencoding",
    "ssim_composite",
    "border_index",
)
MOST_BYTES = 32_000_000


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--licence", default="weights: Apache-2.0; training data: CC BY 3.0 and CC BY 4.0")
    args = parser.parse_args()
    model, info = load_checkpoint(args.checkpoint)
    evaluation = read_json(args.evaluation)
    figures = {
        row["setting"]: {key: row[key] for key in KEPT if row.get(key) is not None} for row in evaluation["summary"]
    }
    training = {
        **info.training,
        "licence": args.licence,
        "evaluation": {"data": evaluation["data"], "window_hu": evaluation["window_hu"], "settings": figures},
    }
    save_checkpoint(args.target, model.state_dict(), dataclasses.replace(info, training=training), "fp16")
    size = args.target.stat().st_size
    print(f"{args.target}: {size / 1e6:.1f} MB, {training['steps']} steps, {training['samples']} samples")
    if size > MOST_BYTES:
        raise SystemExit(f"{args.target} is larger than {MOST_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
