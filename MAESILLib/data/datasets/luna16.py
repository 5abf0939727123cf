"""LUNA16: MetaImage files in ten subsets, lung masks, tables of nodules."""

from __future__ import annotations

import re
from pathlib import Path

from MAESILLib.data.datasets.description import Case, Dataset, LeftOut
from MAESILLib.data.datasets.look import folders, has_volume, patient_of, stem_of, visible

SUBSET = r"subset\d"
MASKS = "seg-lungs-LUNA16"
HEADER_BYTES = 4096


def is_luna16(folder: Path) -> bool:
    """Say whether a folder is laid out like LUNA16."""
    return any(has_volume(subset, r".+\.mhd") for subset in folders(folder, SUBSET))


def luna16_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CTs of LUNA16."""
    visible(folder, left_out)
    cases = []
    for subset in folders(folder, SUBSET):
        files = visible(subset, left_out)
        headers = [path for path in files if path.suffix == ".mhd"]
        stems = {stem_of(path) for path in headers}
        left_out += [LeftOut(p, "voxels without their .mhd") for p in files if _is_lonely(p, stems)]
        for path in headers:
            voxels = _voxels(path)
            if voxels is None or not voxels.is_file():
                missing = f"its voxels {voxels.name} are missing" if voxels else "it does not name its voxels"
                left_out.append(LeftOut(path, missing))
                continue
            name, mask = stem_of(path), folder / MASKS / path.name
            labels = (mask,) if mask.is_file() else ()
            names = dataset.label_values if labels else ()
            patient = patient_of(dataset, name)
            cases.append(Case(name, path, patient, "", dataset.key, dataset.licence, labels, names))
    return cases


def _is_lonely(path: Path, stems: set[str]) -> bool:
    return path.suffix in (".raw", ".zraw") and stem_of(path) not in stems


def _voxels(header: Path) -> Path | None:
    """Return the file that a MetaImage header names as that of its voxels."""
    with open(header, "rb") as file:
        text = file.read(HEADER_BYTES).decode("latin-1")
    match = re.search(r"^ElementDataFile\s*=\s*(.+?)\s*$", text, re.MULTILINE)
    return header.parent / match[1] if match else None
