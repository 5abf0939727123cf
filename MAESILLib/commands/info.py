"""``maesil info``: what is in a checkpoint, a cache, a volume or a folder of them, or what this machine has."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAESILLib.commands.common import add_reading_arguments, given_from
from MAESILLib.config import Preprocessing, to_dict
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.ct.dicom import Series
    from MAESILLib.ct.scan import Given
    from MAESILLib.data.sources import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="checkpoint, export, cache, volume, DICOM folder or folder of CTs"
    )
    parser.add_argument("--system", action="store_true", help="describe this machine: versions, devices, memory")
    parser.add_argument("--verify", action="store_true", help="of a cache: read all volumes and list the damaged ones")
    parser.add_argument("--series", metavar="UID", help="DICOM series: UID, number, or largest")
    add_reading_arguments(parser, "--spacing", "--input-spacing")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    if (args.file is None) != args.system:
        raise InputError("info describes one thing", "give a FILE, or --system without one")
    if args.verify:
        _verify(Path(args.file or ""), reporter, stop)
    what, details, text = _system() if args.system else _file(Path(args.file), args, reporter, stop)
    reporter.info(what, **details)
    # the result is what was asked for, so people get it in every mode
    if args.progress != "json":
        print(text)


def _file(
    path: Path, args: argparse.Namespace, reporter: Reporter, stop: StopRequest
) -> tuple[str, dict[str, Any], str]:
    """Return what it is, its description in plain JSON values, and as text for people."""
    from MAESILLib.data.index import index_paths
    from MAESILLib.data.sources import find_sources
    from MAESILLib.export.description import FORMAT, describe

    if not path.exists():
        raise InputError(f"no such file or folder: {path}", "check the path")
    if path.suffix == ".safetensors":
        details = describe(path)
        if details.get("format") == FORMAT:
            return "export", {"path": str(path), **details}, json.dumps(details, indent=2)
        return _checkpoint(path)
    if index_paths(path):
        return _cache(path)
    series = args.series
    if path.is_dir() and series is None:
        sources = find_sources([path], reporter=reporter, stop=stop)
        first = [one.series.slices[0] if one.series else None for one in sources if one.series or one.path.is_file()]
        if None in first or len({(one.patient, one.study_uid) for one in first if one}) > 1:
            return _folder(path, sources, given_from(args), stop)
        series = sources[0].series if len(sources) == 1 else None
    return _volume(path, series, given_from(args), stop)


def _verify(path: Path, reporter: Reporter, stop: StopRequest) -> None:
    """Read all volumes of a cache.

    Raises:
        InputError: it is no cache, or volumes are damaged; names them.
    """
    from MAESILLib.data.cache import REPAIR, read_cache
    from MAESILLib.data.index import index_paths

    if not index_paths(path):
        raise InputError("--verify reads the volumes of a cache", "give the folder of one")
    cache, damaged = read_cache(path), []
    for number, entry in enumerate(cache.entries):
        stop.check()
        reporter.progress("verify", number / len(cache.entries), entry.name)
        try:
            cache.verify(entry)
        except InputError as error:
            reporter.warning(str(error))
            damaged.append(entry.name)
    reporter.progress("verify", 1.0)
    if damaged:
        raise InputError(f"{len(damaged)} of {len(cache.entries)} volumes are damaged: {', '.join(damaged)}", REPAIR)


def _checkpoint(path: Path) -> tuple[str, dict[str, Any], str]:
    from MAESILLib.mae.checkpoint import checkpoint_identity, read_info
    from MAESILLib.mae.checkpoint_info import parameter_counts, samples_seen

    info, parts = read_info(path), parameter_counts(path)
    details = {
        **checkpoint_identity(path),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "parts": parts,
        "model": to_dict(info.model),
        "preprocessing": to_dict(info.preprocessing),
        "mask": info.mask,
        "training": info.training,
        "library_version": info.library_version,
    }
    model, data = info.model, info.training.get("data", {})
    counts = [f"{part} {count / 1e6:.2f} M" for part, count in parts.items()]
    windows = ", ".join(f"{low:g} to {high:g}" for low, high in info.preprocessing.windows_hu)
    size, patch = (" x ".join(map(str, one)) for one in (model.superpatch_size, model.patch_size))
    trained = f"{samples_seen(info.training):,} crops of {len(data.get('volumes', ()))} CTs"
    lines = [
        f"{details['name']}: {details['megabytes']} MB, maesil {info.library_version}, sha256 {details['sha256']}",
        f"parameters: {sum(parts.values()) / 1e6:.2f} M: {', '.join(counts)}",
        f"encoder: {model.encoder_depth} blocks of {model.encoder_width}; decoder: {model.decoder_depth} of "
        f"{model.decoder_width}; superpatch {size}, patch {patch} (D x H x W)",
        f"input: {info.preprocessing.spacing_mm:g} mm, windows {windows} HU",
        f"trained on: {', '.join([trained, *data.get('licences', ())])}",
        _probed(info.training),
    ]
    if "licence" in info.training:
        lines.append(f"licence: {info.training['licence']}")
    return "checkpoint", {"path": str(path), **details}, "\n".join(lines)


def _probed(training: dict[str, Any]) -> str:
    """Return the line about whether the encoder beats hand-made features, as the checkpoint's probe states it."""
    found = training.get("probe") or {}
    keys = ("auroc", "auroc_soft", "handmade_auroc", "handmade_auroc_soft", "random_auroc")
    if not all(isinstance(found.get(key), int | float) for key in keys):
        return "encoder against hand-made features: not probed"
    own, own_soft, made, made_soft, random = (found[key] for key in keys)
    above = [
        name for name, is_above in (("all structures", own > made), ("soft tissue", own_soft > made_soft)) if is_above
    ]
    verdict = f"beats hand-made features for {' and '.join(above)}" if above else "does not beat hand-made features"
    return (
        f"encoder {verdict}: AUROC {own:.3f}, soft tissue {own_soft:.3f}; hand-made {made:.3f}, {made_soft:.3f}; "
        f"random weights {random:.3f} ({found.get('points')}, window {found.get('window')})"
    )


def _cache(path: Path) -> tuple[str, dict[str, Any], str]:
    from MAESILLib.data.cache import read_cache
    from MAESILLib.data.report import cache_text, refused_text

    cache = read_cache(path)
    rows = [
        f"  {e.name}: {' x '.join(map(str, e.shape_dhw))}, patient {e.patient_label}, {e.split or '-'}"
        for e in cache.entries
    ]
    details = {
        "path": str(path),
        "fingerprint": cache.fingerprint(),
        "spacing_mm": cache.spacing_mm,
        "volumes": [asdict(entry) for entry in cache.entries],
        "refused": [{"name": name, "reason": reason} for name, reason in cache.refused.items()],
        "unfinished": list(cache.unfinished),
    }
    return "cache", details, "\n".join(filter(None, [cache_text(cache), refused_text(cache.refused, {}), *rows]))


def _volume(
    path: Path, series: str | Series | None, given: Given, stop: StopRequest
) -> tuple[str, dict[str, Any], str]:
    from MAESILLib.ct.volume import model_grid
    from MAESILLib.data.apart import read_apart

    volume = read_apart(path, stop, series=series, given=given)
    spacing_mm = Preprocessing().spacing_mm
    geometry, grid = volume.geometry, model_grid(volume.geometry, spacing_mm)
    low, high = float(volume.hu.min()), float(volume.hu.max())
    details = {
        "path": str(path),
        "name": volume.name,
        "voxel_type": str(volume.hu.dtype),
        "size_dhw": geometry.size_dhw,
        "spacing_dhw_mm": geometry.spacing_dhw,
        "origin_lps_mm": geometry.origin_lps,
        "direction_lps": geometry.direction,
        "hu_range": (low, high),
        "model_grid": {"size_dhw": grid.geometry.size_dhw, "spacing_mm": spacing_mm},
        "warnings": volume.warnings,
    }
    lines = [
        f"{volume.name}: {volume.hu.dtype} {' x '.join(map(str, geometry.size_dhw))} (D x H x W)",
        f"spacing {' x '.join(f'{s:g}' for s in geometry.spacing_dhw)} mm (D x H x W)",
        f"HU {low:g} to {high:g}",
        f"at {spacing_mm:g} mm: {' x '.join(map(str, grid.geometry.size_dhw))}",
    ]
    return "volume", details, "\n".join([*lines, *(f"warning: {warning}" for warning in volume.warnings)])


def _folder(path: Path, sources: list[Source], given: Given, stop: StopRequest) -> tuple[str, dict[str, Any], str]:
    """Describe the CTs of a folder by their headers, named as ``maesil prepare`` names them."""
    from MAESILLib.data.names import plan_names
    from MAESILLib.data.tree import LIMIT_S
    from MAESILLib.data.workers import run_in_workers

    # a header may end the process that reads it, too
    found = run_in_workers(partial(_header, given), sources, 1, stop, limit_s=LIMIT_S, failed=_no_header)
    rows, lines = [], []
    for row, name in zip(found, plan_names([Path(one.key) for one in sources]), strict=True):
        rows.append({"name": name, **row})
        size, spacing = (" x ".join(f"{n:g}" for n in row.get(key, ())) for key in ("size_dhw", "spacing_dhw_mm"))
        lines.append(f"  {name}: {row['problem'] or f'{size}, {spacing} mm'}")
    usable = sum(not row["problem"] for row in rows)
    head = f"{path}: {usable} CTs (D x H x W, by their headers), {len(rows) - usable} that cannot be used"
    return "folder", {"path": str(path), "inputs": rows}, "\n".join([head, *lines])


def _header(given: Given, source: Source) -> dict[str, Any]:
    from MAESILLib.ct.reading import read_geometry

    row: dict[str, Any] = {"source": source.key, "problem": source.problem}
    if not source.problem:
        try:
            geometry = read_geometry(source.path, series=source.series, given=given)
            row |= {"size_dhw": geometry.size_dhw, "spacing_dhw_mm": geometry.spacing_dhw}
        except InputError as error:
            row["problem"] = str(error)
    return row


def _no_header(source: Source, reason: str) -> dict[str, Any]:
    return {"source": source.key, "problem": reason.split(". ")[0]}


def _system() -> tuple[str, dict[str, Any], str]:
    from MAESILLib.runtime.system import describe_system

    details = describe_system()
    lines = [f"maesil {details['maesil']}, Python {details['python']}, {details['platform']}"]
    lines += [f"{name} {version or details['problems'][name]}" for name, version in details["packages"].items()]
    for device in details["devices"]:
        problem = details["problems"].get(device["kind"])
        lines.append(_line_of(device, details["auto"]) + (f" ({problem})" if problem else ""))
    return "system", details, "\n".join(lines)


def _line_of(device: dict[str, Any], auto: str) -> str:
    parts = [f"{device['kind']}{' (auto)' if device['kind'] == auto else ''}: {device['name']}"]
    if "cores" in device:
        parts.append(f"{device['cores']} cores")
    for key, word in (("memory_total_gib", "memory"), ("memory_free_gib", "free")):
        if device[key] is not None:
            parts.append(f"{device[key]:.1f} GiB {word}")
    return ", ".join(parts)
