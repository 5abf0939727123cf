"""Read changed inputs of every kind, and count what no reader may do.

    python Testing/fuzz/fuzz.py --kind file --cases 20000 --seed 1

Cases follow from kind, seed and number alone: ``--first N --cases 1`` repeats one. Counted: tracebacks; processes that
died; cases of over 10 s; memory above what the untouched input takes; text with control characters; files written
beside the folder; results that differ without a word where the format lets a reader notice; and the share of harmless
changes that is read. Linux.
"""

import argparse
import io
import json
import resource
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "Testing" / "support"), str(Path(__file__).parent)]
import mutations as change  # noqa: E402

LIMIT_S = 10.0
"""Of the processor: other work on the machine does not count. A process is killed after six times as long."""
MEMORY_MIB = 256
"""Above the peak of the worker before."""
CEILING = 6 << 30
FILES = (
    *("raw.nii", "packed.nii.gz", "pair.hdr", "raw.nrrd", "packed.nrrd", "apart.nhdr"),
    *("raw.mha", "packed.mha", "apart.mhd"),
)
INPUTS = {
    "file": FILES,
    "dicom": ("series", "rle", "enhanced"),
    "checkpoint": ("fp32.safetensors", "int8.safetensors"),
    "cache": ("cache",),
    "state": ("run",),
}
READ = {
    "file": (".nii", ".gz", ".hdr", ".img", ".nrrd", ".nhdr", ".raw", ".mha", ".mhd"),
    "dicom": (".dcm",),
    "checkpoint": (".safetensors",),
    "cache": (".jsonl", ".npy"),
    "state": (".pt", ".csv"),
}
"""Suffixes of what is read of an input."""
FAULTS = ("traceback", "crash", "hang", "memory", "silent", "text", "escape", "not read")


@dataclass(frozen=True)
class Outcome:
    """What became of a case; ``fault`` is one of FAULTS, or empty."""

    number: int
    what: str
    kind: str
    fault: str = ""
    detail: str = ""
    is_read: bool = False


def write_inputs(folder: Path, kind: str) -> None:
    """Write the valid inputs of a kind; small, because every case copies and reads one."""
    import SimpleITK as sitk
    from cli_factory import maesil, write_checkpoint, write_ct
    from volume_factory import geometry, image_of, trunk

    size = (12, 20, 16)
    if kind == "file":
        image = image_of(trunk(size), geometry(size, (2.5, 0.8, 0.7)))
        for name in FILES:
            (folder / name).mkdir()
            sitk.WriteImage(image, str(folder / name / name), useCompression="packed" in name)
    elif kind == "dicom":
        write_series(folder, trunk((10, 20, 16)))
    elif kind == "checkpoint":
        from MAESILLib.mae.checkpoint import load_checkpoint, save_checkpoint

        training = {
            "samples": 5,
            "steps": 1,
            "data": {"volumes": ["a"], "licences": ["CC BY 4.0"]},
            "probe": {"auroc": 0.5},
        }
        for name in INPUTS[kind]:
            (folder / name).mkdir()
            network, info = load_checkpoint(write_checkpoint(folder / name / name, training=training))
            save_checkpoint(folder / name / name, network.state_dict(), info, as_int8="int8" in name)
    elif kind == "cache":
        for number in range(2):
            write_ct(folder / "cts" / f"p{number}.nii", size, number)
        assert maesil("prepare", folder / "cts", "--output", folder / "cache", "--workers", 0).status == 0
    else:
        from training_factory import make_cache, tiny_config

        from MAESILLib.training.trainer import Trainer

        config = tiny_config(steps=1, completion=False, readout=False, teacher_weight=0.0)
        Trainer(config, make_cache(folder / "volumes", [(32, 32, 32)]), folder / "run").run()


def write_series(folder: Path, hu: Any) -> None:
    """Write a series, one in RLE, and an enhanced CT."""
    import pydicom
    from pydicom.uid import EnhancedCTImageStorage, RLELossless
    from volume_factory import write_dicom

    paths = write_dicom(folder / "series", hu + 1024, tags={"0010|0010": "NAME"})
    found = [pydicom.dcmread(path) for path in paths]
    (folder / "rle").mkdir()
    (folder / "enhanced").mkdir()
    whole = pydicom.dcmread(paths[0])
    groups = []
    for data, path in zip(found, paths, strict=True):
        group, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = data.ImagePositionPatient
        group.PlanePositionSequence = [place]
        groups.append(group)
        data.compress(RLELossless)
        data.save_as(folder / "rle" / path.name)
    del whole.ImagePositionPatient
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.NumberOfFrames, whole.PerFrameFunctionalGroupsSequence = len(groups), groups
    whole.PixelData = b"".join(pydicom.dcmread(path).PixelData for path in paths)
    whole.save_as(folder / "enhanced" / "all.dcm")


def mutate(kind: str, folder: Path, name: str, rng: Random) -> tuple[str, str]:
    """Change an input in its place; return what was done, and its kind."""
    if kind == "dicom" and name != "enhanced" and rng.random() < 0.3:
        return change.change_folder(folder, rng)
    files = [path for path in folder.rglob("*") if path.suffix in READ[kind]]
    path = rng.choice(sorted(files))
    if kind == "dicom":
        return mutate_slice(path, rng)
    if kind == "file":
        if rng.random() < 0.15 and (found := change.add_comment(path, rng)):
            return found
        if path.suffix in (".nhdr", ".mhd") and rng.random() < 0.15:
            return change.rename_data(path, rng)
        return change.change_bytes(path, begin_of(path), rng, "packed" in name or path.suffix == ".gz")
    if kind == "checkpoint" and rng.random() < 0.7:
        return mutate_metadata(path, rng)
    if kind == "state" and path.name == "state.pt" and rng.random() < 0.7:
        import torch

        values = torch.load(path, weights_only=True)
        done = change.change_json(values, rng)
        torch.save(values, path)
        return done
    if path.suffix == ".jsonl" and rng.random() < 0.8:
        lines = path.read_text().splitlines()
        number = rng.randrange(len(lines))
        values = json.loads(lines[number])
        done = change.change_json(values, rng)
        lines[number] = change.as_json(values, rng).decode()
        path.write_text("\n".join(lines) + "\n")
        return done
    if kind == "cache" and rng.random() < 0.1:
        path.unlink()
        return f"no {path.name}", change.RESTATED
    return change.change_bytes(path, begin_of(path), rng, is_packed=path.suffix in (".npy", ".pt"))


def begin_of(path: Path) -> int:
    """Return where the voxels of a file begin; 0 where it has no header."""
    data = path.read_bytes()
    if path.suffix in (".nii", ".hdr"):
        return 352
    if path.suffix in (".nrrd", ".mha"):
        marker = b"\n\n" if path.suffix == ".nrrd" else b"ElementDataFile = LOCAL\n"
        return data.index(marker) + len(marker)
    if path.suffix == ".safetensors":
        return 8 + int.from_bytes(data[:8], "little")
    return {".npy": 128, ".nhdr": len(data), ".mhd": len(data), ".jsonl": len(data), ".pt": len(data)}.get(
        path.suffix, 0
    )


def mutate_slice(path: Path, rng: Random) -> tuple[str, str]:
    """Change a DICOM file: its bytes, or the text of a tag."""
    import pydicom

    if rng.random() < 0.6:
        data = path.read_bytes()
        begin = data.find(b"\xe0\x7f\x10\x00") + 12
        return change.change_bytes(path, begin, rng, is_packed=False)
    data = pydicom.dcmread(path)
    if rng.random() < 0.4:
        data.PatientComments, data.PatientName = change.EVIL, rng.choice((change.EVIL, "=1+1", "|"))
        data.add_new(0x00090010, "LO", "PRIVATE")
        data.add_new(0x00091001, "OB", rng.randbytes(rng.choice((2, 512, 100_000))))
        data.save_as(path)
        return f"private tags of {path.name}", change.HARMLESS
    tag = rng.choice([one for one in data if one.keyword and one.VR in ("DS", "IS", "US", "CS", "UI", "LO", "SH")])
    if tag.VR == "US":
        tag.value = rng.choice((0, 1, 7, 65535))
    else:
        texts = ("0", "-1", "1e30", "nan", "inf", "1\\2", "", change.EVIL, "../x", "x" * 64, "99999999999")
        tag._value = rng.choice(texts).split("\\") if tag.VM > 1 else rng.choice(texts)
    try:
        data.save_as(path)
    except (ValueError, TypeError, OverflowError):
        # pydicom does not write it
        return "nothing", change.RESTATED
    return f"{tag.keyword} {str(tag.value)[:40]!r} of {path.name}", change.RESTATED


def mutate_metadata(path: Path, rng: Random) -> tuple[str, str]:
    """Change the header of a checkpoint, or the metadata in it."""
    data = path.read_bytes()
    begin = begin_of(path)
    header = json.loads(data[8:begin])
    metadata = json.loads(header["__metadata__"]["maesil"])
    kind = rng.random()
    if kind < 0.15:
        done = "unknown fields", change.HARMLESS
        metadata["training"]["unknown"], header["__metadata__"]["other"] = change.EVIL, change.EVIL
    else:
        done = change.change_json(metadata if kind < 0.7 else header, rng)
    if "__metadata__" in header and isinstance(header["__metadata__"], dict) and kind < 0.7:
        text = json.dumps(metadata) if done[1] == change.HARMLESS else change.as_json(metadata, rng).decode()
        header["__metadata__"]["maesil"] = text
    text = json.dumps(header).encode() if kind < 0.7 else change.as_json(header, rng)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])
    return done


def read(kind: str, path: Path, volumes: Path) -> tuple[int, bool]:
    """Read an input as commands do; return a check sum of what it holds, and whether there was a word of warning."""
    if kind in ("file", "dicom"):
        from MAESILLib.ct.reading import read_volume

        volume = read_volume(path)
        return zlib.crc32(repr(volume.geometry).encode(), zlib.crc32(np.ascontiguousarray(volume.hu))), bool(
            volume.warnings
        )
    if kind == "checkpoint":
        from MAESILLib.export.description import read_encoder_info
        from MAESILLib.mae.checkpoint import load_checkpoint

        read_encoder_info(path)
        network, info = load_checkpoint(path)
        return _sum_of(network.state_dict(), (info.model, info.preprocessing, info.parts)), False
    if kind == "cache":
        from MAESILLib.data.cache import read_cache

        cache = read_cache(path)
        for entry in cache.entries:
            cache.verify(entry)
        return _sum_of({e.name: cache.open(e) for e in cache.entries}, cache.fingerprint()), bool(cache.unfinished)
    from MAESILLib.training.state import read_state

    values = read_state(path).values
    return _sum_of(
        {f"{part} {key}": values[part][key] for part in ("model", "average") for key in values[part]}, ""
    ), False


def _sum_of(arrays: dict[str, Any], more: object) -> int:
    total = zlib.crc32(repr(more).encode())
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]), zlib.crc32(name.encode(), total))
    return total


def commands_for(kind: str, path: Path, base: Path) -> list[list[object]]:
    """Return the command lines that a user would give a changed input."""
    if kind == "cache":
        again = ["prepare", base / "cts", "--output", path, "--workers", 0]
        return [["info", path], [*again, "--progress", "bar"], ["info", path, "--verify"]]
    if kind == "state":
        return [["pretrain", "--data", base / "volumes", "--output", path, "--resume", "--device", "cpu"]]
    return [["info", path]]


def peak_mib() -> int:
    """Return the peak of this process's memory since the last call."""
    text = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(text.split("VmHWM:")[1].split()[0]) // 1024


REFERENCES: dict[tuple[Path, str], int] = {}


def do_case(base: Path, seed: int, case: tuple[str, int]) -> Outcome:
    """Change an input, read it, and judge what came of it."""
    from cli_factory import maesil

    from MAESILLib.runtime.errors import MAESILError

    (kind, number), base = case, base / case[0]
    rng = Random(f"{seed}-{kind}-{number}")
    name = rng.choice(INPUTS[kind])
    if (base, name) not in REFERENCES:
        resource.setrlimit(resource.RLIMIT_DATA, (CEILING, CEILING))
        REFERENCES[base, name] = read(kind, input_path(base, name), base / "volumes")[0]
    with tempfile.TemporaryDirectory(dir=base) as scratch:
        folder = Path(scratch) / name
        shutil.copytree(base / name, folder)
        canaries = [Path(scratch) / f"outside.npy{suffix}" for suffix in ("", ".npy", ".foreground.npy")]
        for canary in canaries:
            canary.write_text("canary")
        what, sort = mutate(kind, folder, name, rng)
        path, fault, detail, is_read = input_path(Path(scratch), name), "", "", False
        before, begin = peak_mib(), time.process_time()
        try:
            found, warned = read(kind, path, base / "volumes")
            is_read = True
            if sort != change.RESTATED and found != REFERENCES[base, name] and not warned:
                fault, detail = "silent", "other results without a word"
        except MAESILError as error:
            detail = str(error)
        except MemoryError as error:
            fault, detail = "memory", repr(error)
        except Exception as error:
            fault, detail = "traceback", _described(error)
        for command in () if fault else commands_for(kind, path, base):
            try:
                result = maesil(*command)
            except Exception as error:
                fault, detail = "traceback", f"{command[0]}: {_described(error)}"
                break
            text = result.out + result.err
            if wrong := {c for c in text if not c.isprintable() and c != "\n"}:
                fault, detail = "text", f"{command[0]} printed {sorted(wrong)}: {text!r}"
            if result.status not in (0, 2):
                fault, detail = "memory", text
        if time.process_time() - begin > LIMIT_S and not fault:
            fault = "hang"
        if (more := peak_mib() - before) > MEMORY_MIB and not fault:
            fault, detail = "memory", f"{more} MiB more; {detail}"
        beside = {one.name for one in Path(scratch).iterdir()} - {folder.name, *(c.name for c in canaries)}
        if (
            beside
            or Path("/tmp/outside.npy").exists()
            or any(c.read_text() != "canary" for c in canaries if c.exists())
        ):
            fault, detail = "escape", f"written beside the folder: {beside}"
        if not all(canary.exists() for canary in canaries):
            fault, detail = "escape", "removed beside the folder"
    if sort == change.HARMLESS and not is_read and not fault:
        fault = "not read"
    return Outcome(number, f"{name}: {what}", sort, fault, detail, is_read)


def input_path(folder: Path, name: str) -> Path:
    """Return what is read of an input: its folder, or the file of the same name in it."""
    return folder / name / name if (folder / name / name).is_file() else folder / name


def _described(error: BaseException) -> str:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__}: {str(error)[:200]} in {where}"


def failed(case: tuple[str, int], reason: str) -> Outcome:
    """Return the outcome of a case that ended its process or took too long."""
    return Outcome(case[1], case[0], "", "hang" if "too long" in reason else "crash", reason)


def run(cases: list[tuple[str, int]], seed: int) -> list[Outcome]:
    """Do cases, each a kind and a number, in a worker process, one after the other."""
    from MAESILLib.data.workers import run_in_workers
    from MAESILLib.runtime.stopping import NEVER

    with tempfile.TemporaryDirectory() as folder:
        for kind in {kind for kind, _ in cases}:
            (Path(folder) / kind).mkdir()
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                write_inputs(Path(folder) / kind, kind)
        work = partial(do_case, Path(folder), seed)
        return list(run_in_workers(work, cases, 1, NEVER, limit_s=6 * LIMIT_S, failed=failed))


def main() -> None:
    """Run cases of the kinds that are asked for; print the counts and each fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", choices=sorted(INPUTS), default=list(INPUTS))
    parser.add_argument("--cases", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every case")
    args = parser.parse_args()
    for kind in args.kind:
        begin = time.monotonic()
        outcomes = run([(kind, number) for number in range(args.first, args.first + args.cases)], args.seed)
        for one in outcomes:
            if one.fault or args.verbose:
                end = one.fault or ("read" if one.is_read else "refused")
                print(f"{kind} {one.number}: {end}: {one.what} ({one.kind}): {one.detail}")
        harmless = [one for one in outcomes if one.kind == change.HARMLESS]
        faults = Counter(one.fault for one in outcomes)
        counts = ", ".join(f"{faults[fault]} {fault}" for fault in FAULTS)
        count, seconds = sum(one.is_read for one in harmless), time.monotonic() - begin
        print(f"{kind}: {len(outcomes)} cases in {seconds:.0f} s: {counts}; {count} of {len(harmless)} harmless read")


if __name__ == "__main__":
    main()
