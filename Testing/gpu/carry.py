"""Takes a cache to a bare machine in few bytes, and a checkpoint back in small files.

    python carry.py pack CACHE FOLDER [--parts 2] [--step 12]    FOLDER/part1.npz, part2.npz, ...
    python carry.py unpack CACHE PART.npz...                     again a cache; parts may come one after the other
    python carry.py split CHECKPOINT FOLDER [--megabytes 15]     the weights in fp16, in pieces: cat them together
    python carry.py steps BENCH.json MINUTES [PRESET]            updates that fit into a time, from bench_gpu.py

HU are clipped to what the window and its jitter can show and rounded to a multiple of ``--step``, whose error (sd 3.5
HU at 12) is below the noise of a CT; a validation that counts is done on the original cache. What a voxel differs from
its three lower neighbours is deflated.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from MAESILLib.data.cache import Cache, CacheEntry, is_cache, read_cache, store_volume, write_index

INDEX = "index"
RANGE_HU = (-1100, 1400)
SHARE_OF_TIME = 0.9
"""Of the time that updates may take; the rest goes to validation, previews and states."""


def residual(volume: np.ndarray) -> np.ndarray:
    """Return what each voxel differs from the Lorenzo predictor of its lower neighbours; int16 wraps around."""
    for axis in range(3):
        first = np.zeros_like(volume.take([0], axis))
        volume = np.diff(volume, axis=axis, prepend=first)
    return volume


def restored(differences: np.ndarray) -> np.ndarray:
    """Invert :func:`residual`."""
    for axis in range(3):
        differences = np.cumsum(differences, axis=axis, dtype=np.int16)
    return differences


def pack(cache: Cache, folder: Path, parts: int, step: int) -> list[Path]:
    """Write the cache as ``parts`` archives of about the same size."""
    folder.mkdir(parents=True, exist_ok=True)
    by_size = sorted(cache.entries, key=lambda entry: -int(np.prod(entry.shape_dhw)))
    paths = []
    for number in range(parts):
        # the largest ones first and in turn, so that no part holds all of them
        chosen = [entry for place, entry in enumerate(by_size) if place % parts == number]
        arrays: dict[str, np.ndarray] = {}
        for entry in chosen:
            rounded = np.rint(np.clip(cache.open(entry), *RANGE_HU) / step).astype(np.int16)
            difference = residual(rounded).view(np.uint16)
            # sign into the lowest bit, and low and high bytes apart: most high bytes are zero
            folded = (difference << 1) ^ (difference.view(np.int16) >> 15).view(np.uint16)
            arrays[f"{entry.name}.low"] = (folded & 255).astype(np.uint8)
            arrays[f"{entry.name}.high"] = (folded >> 8).astype(np.uint8)
        described = {"spacing_mm": cache.spacing_mm, "step": step, "volumes": [asdict(entry) for entry in chosen]}
        arrays[INDEX] = np.frombuffer(json.dumps(described).encode(), np.uint8)
        paths.append(folder / f"part{number + 1}.npz")
        np.savez_compressed(paths[-1], **arrays)  # type: ignore[arg-type]
    return paths


def unpack(folder: Path, parts: list[Path]) -> Cache:
    """Add the volumes of archives to a cache."""
    entries = {entry.name: entry for entry in read_cache(folder).entries} if is_cache(folder) else {}
    spacing = 0.0
    for part in parts:
        with np.load(part, allow_pickle=False) as arrays:
            described = json.loads(arrays[INDEX].tobytes())
            spacing = described["spacing_mm"]
            for values in described["volumes"]:
                name = values["name"]
                folded = arrays[f"{name}.low"].astype(np.uint16) | (arrays[f"{name}.high"].astype(np.uint16) << 8)
                difference = ((folded >> 1) ^ (0 - (folded & 1)).astype(np.uint16)).view(np.int16)
                volume = restored(difference) * np.int16(described["step"])
                shape = tuple(int(n) for n in values.pop("shape_dhw"))
                values["crc32"] = store_volume(folder, name, volume)
                entries[name] = CacheEntry(shape_dhw=shape, **values)  # type: ignore[arg-type]
    write_index(Cache(folder, spacing, tuple(entries[name] for name in sorted(entries))))
    return read_cache(folder)


def split(checkpoint: Path, folder: Path, megabytes: int) -> list[Path]:
    """Write a checkpoint in fp16, in pieces."""
    from MAESILLib.mae.checkpoint import load_checkpoint, save_checkpoint

    model, info = load_checkpoint(checkpoint)
    half = folder / "half.safetensors"
    save_checkpoint(half, model.state_dict(), info, "fp16")
    data, size = half.read_bytes(), megabytes * 10**6
    half.unlink()
    paths = []
    for number, start in enumerate(range(0, len(data), size)):
        paths.append(folder / f"{checkpoint.stem}.safetensors.{number}")
        paths[-1].write_bytes(data[start : start + size])
    return paths


def steps_in(bench: Path, minutes: float, name: str) -> int:
    """Return how many updates of a preset fit into a time, at the rate that was measured."""
    rows = {row["name"]: row for row in json.loads(bench.read_text())["rows"]}
    # the row with the shares of hidden tokens that training draws: fewer hidden, longer steps
    found = [rows[n] for n in (f"{name}, {how}, mixture" for how in ("compiled", "eager")) if n in rows]
    if not found:
        raise SystemExit(f"{bench} has no mixture of {name}")
    return int(SHARE_OF_TIME * 60 * minutes * found[0]["samples_per_s"] / found[0]["batch"])


def main() -> None:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pack")
    command.add_argument("cache", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("--parts", type=int, default=2)
    command.add_argument("--step", type=int, default=12)
    command = commands.add_parser("unpack")
    command.add_argument("cache", type=Path)
    command.add_argument("parts", type=Path, nargs="+")
    command = commands.add_parser("split")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("--megabytes", type=int, default=15)
    command = commands.add_parser("steps")
    command.add_argument("bench", type=Path)
    command.add_argument("minutes", type=float)
    command.add_argument("preset", nargs="?", default="small")
    args = parser.parse_args()
    if args.command == "pack":
        for path in pack(read_cache(args.cache), args.folder, args.parts, args.step):
            print(f"{path} {path.stat().st_size / 1e6:.1f} MB")
    elif args.command == "unpack":
        print(f"{len(unpack(args.cache, args.parts).entries)} volumes in {args.cache}")
    elif args.command == "split":
        print("\n".join(map(str, split(args.checkpoint, args.folder, args.megabytes))))
    else:
        print(steps_in(args.bench, args.minutes, args.preset))


if __name__ == "__main__":
    main()
