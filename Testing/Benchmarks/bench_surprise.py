"""False alarms of ``maesil surprise`` on patients left out, and how well it finds what was put into their CTs.

    python Testing/Benchmarks/bench_surprise.py --data DIR --cache DIR --output FILE.json [--covers N]

DIR holds validation CTs, one a patient; a calibration is made of all but the one that is measured. Each gets metal, a
lesion of 15 and of 25 mm and a shifted block. AUROC of their voxels against the untouched ones of the same patient,
beside how rare the smoothed HU are in the other patients, and beside the error of the harmonic fill.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser_of, show
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from MAESILLib.ct.body import body_mask
from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.volume import CTVolume, hu_to_unit, model_grid, unit_to_hu
from MAESILLib.explore.surprise import SMOOTH_MM, Errors, calibrate, errors_of, predict, surprise
from MAESILLib.probe.fit import auroc
from MAESILLib.reconstruct.plan import Plan
from MAESILLib.reconstruct.reconstruction import reconstruct
from MAESILLib.reconstruct.results import Model, load_model
from MAESILLib.runtime.files import write_json
from MAESILLib.runtime.resources import embedded_checkpoint

ANOMALIES = {3: ("lesion 25 mm", 25), 4: ("shifted block", 30), 2: ("lesion 15 mm", 15), 1: ("metal", 8)}
"""Code, name and size in mm, in the order in which they find a place."""
APART_MM, LESION_HU, METAL_HU, SHIFT = 45, 40, 3000, 10
BINS_HU = np.arange(-1000, 1001, 20)
ARMS = ("surprise", "HU outliers", "harmonic error")
Arrays = dict[str, NDArray[Any]]


def with_anomalies(hu: NDArray[np.float32], body: NDArray[np.bool_], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return HU with anomalies in soft tissue of the patient, and their codes, both (D, H, W) at 1.5 mm."""
    rng, changed, codes = np.random.default_rng(seed), hu.copy(), np.zeros(hu.shape, np.uint8)
    inner, soft = distance_transform_edt(body) * 1.5, gaussian_filter(hu, 2)
    axes = np.ogrid[tuple(map(slice, hu.shape))]
    free = np.ones(hu.shape, bool)
    for code, (_, size) in ANOMALIES.items():
        room = free & (inner > size / 2 + 4) & ((code == 4) | ((soft > -20) & (soft < 120)))
        at = np.argwhere(room)
        if not len(at):
            continue
        centre = at[rng.integers(len(at))]
        away = sum(((axis - c) * 1.5) ** 2 for axis, c in zip(axes, centre, strict=True)) ** 0.5
        free &= away > APART_MM
        inside = away <= size / 2
        if code == 4:
            block = tuple(slice(c - 10, c + 10) for c in centre)
            axis = int(rng.integers(3))
            step = SHIFT if centre[axis] < hu.shape[axis] // 2 else -SHIFT
            changed[block] = np.roll(hu, -step, axis)[block]
            inside = np.zeros(hu.shape, bool)
            inside[block] = True
        elif code == 1:
            changed[inside] = METAL_HU
        else:
            changed += gaussian_filter(inside.astype(np.float32), 0.8) * LESION_HU * rng.choice([-1, 1])
        codes[inside] = code
    return changed, codes


def predicted(model: Model, volume: CTVolume, anomalous: bool, number: int, covers: int, cache: Path) -> Arrays:
    """Return HU, mean, spread, harmonic fill (HU), body and codes, kept in a folder."""
    kept = cache / f"{volume.name}.{covers}.{'anomalous' if anomalous else 'usual'}.npz"
    if not kept.exists():
        hu = model_grid(volume.geometry).to_model(volume.hu)
        body, codes = body_mask(hu), np.zeros(hu.shape, np.uint8)
        if anomalous:
            hu, codes = with_anomalies(hu, body, number)
        mean, spread = predict(model, hu, volume.name, covers)
        window = model.info.preprocessing.windows_hu[0]
        once = reconstruct(
            model.network, hu_to_unit(hu, window), Plan(coverage="complete"), name=volume.name, completed=False
        )
        fill = unit_to_hu(once.filled, window)
        np.savez(kept, hu=hu, mean=mean, spread=spread, fill=fill, body=body, codes=codes)
        print(kept.name, flush=True)
    return dict(np.load(kept))


def errors(arrays: Arrays, volume: CTVolume, model: Model) -> Errors:
    """Return the errors of a patient's voxels."""
    grid, window = model_grid(volume.geometry), model.info.preprocessing.windows_hu[0]
    return errors_of(*(arrays[key] for key in ("hu", "mean", "spread", "body")), grid, window)


def smoothed(arrays: Arrays) -> NDArray[np.float32]:
    """Return the smoothed HU (N,) of the patient."""
    found: NDArray[np.float32] = gaussian_filter(np.clip(arrays["hu"], -1000, 1000), SMOOTH_MM / 1.5)[arrays["body"]]
    return found


def main() -> None:
    """Measure every patient by the others."""
    parser = parser_of(__doc__, "--data", "--cache", "--output")
    parser.add_argument("--covers", type=int, default=8)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    args.cache.mkdir(exist_ok=True)
    model = load_model(embedded_checkpoint(), torch.device("cpu"))
    files = [path for path in args.data.glob("*.nii.gz") if "_seg" not in path.name]
    volumes = [read_volume(path) for path in sorted(files, key=lambda path: path.stat().st_size)]
    usual = [predicted(model, volume, False, n, args.covers, args.cache) for n, volume in enumerate(volumes)]
    known = [errors(arrays, volume, model) for arrays, volume in zip(usual, volumes, strict=True)]
    alarms: dict[str, float] = {}
    areas: dict[str, dict[str, dict[str, float]]] = {name: {arm: {} for arm in ARMS} for name, _ in ANOMALIES.values()}
    for number, volume in enumerate(volumes):
        others = [one for n, one in enumerate(known) if n != number]
        calibration = calibrate(others, "", args.covers)
        alarms[volume.name] = float((surprise(known[number], calibration) > 2).mean())
        print(f"{volume.name}: {alarms[volume.name]:.2%} marked", flush=True)
        arrays = predicted(model, volume, True, number, args.covers, args.cache)
        counts = sum(np.histogram(smoothed(one), BINS_HU)[0] for n, one in enumerate(usual) if n != number)
        rare = -np.log(counts + 1.0)[np.clip(np.digitize(smoothed(arrays), BINS_HU) - 1, 0, len(BINS_HU) - 2)]
        off = gaussian_filter(np.clip(arrays["hu"], -1000, 1000) - arrays["fill"], SMOOTH_MM / 1.5)[arrays["body"]]
        scores = (surprise(errors(arrays, volume, model), calibration), rare, abs(off))
        codes = arrays["codes"][arrays["body"]]
        for code, (name, _) in ANOMALIES.items():
            rows = (codes == 0) | (codes == code)
            if (codes == code).any():
                for arm, values in zip(ARMS, scores, strict=True):
                    areas[name][arm][volume.name] = auroc(codes[rows] == code, values[rows])
    write_json(args.output, {"covers": args.covers, "alarms": alarms, "auroc": areas})
    show(areas, "surprise")


if __name__ == "__main__":
    main()
