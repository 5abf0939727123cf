"""Running ``maesil prepare`` in tests: small CTs and manifests in, and what a cache holds."""

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cli_factory import QUIET, Result, maesil, read_rows, write_ct
from dataset_factory import SMALL

from MAESILLib.data.cache import read_cache
from MAESILLib.data.names import plan_names


def write_cts(folder: Path, count: int = 3) -> Path:
    """Write p0.nrrd, p1.nrrd and so on; each holds ``trunk(SMALL, number)``."""
    for number in range(count):
        write_ct(folder / f"p{number}.nrrd", SMALL, number)
    return folder


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write a manifest as CSV or JSON, as the suffix says."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def awkward_inputs(folder: Path) -> Path:
    """Good CTs, two duplicates, a patient on both sides, a bad file, and names that collide."""
    rows = []
    for number in range(8):
        path = write_ct(folder / f"p{number % 4}" / f"ct{number // 4}.nrrd", SMALL, number % 6)
        split = "val" if number in (0, 7) else "train"
        rows.append({"file": str(path), "patient": f"P{number % 3}", "split": split})
    (folder / "bad.nrrd").write_text("no volume")
    rows.insert(2, {"file": str(folder / "bad.nrrd"), "patient": "", "split": ""})
    return write_manifest(folder / "m.csv", rows)


LINKS: dict[Path, dict[str, str]] = {}
"""Of each cache, the paths of sources by the names of their volumes."""


def prepare(output: Path, *arguments: object, status: int = 0) -> Result:
    """Prepare in this process; inputs and further options, of which the last counts."""
    link = output.with_name(f"{output.name}.link.csv")
    result = maesil("prepare", "--output", output, "--workers", 0, "--link", link, *QUIET, *arguments)
    assert result.status == status, result
    assert "Traceback" not in result.err
    if link.exists():
        remember(output, link)
    return result


def remember(cache: Path, link: Path) -> None:
    """Keep what ``--link`` wrote for the functions below, and remove the file."""
    LINKS.setdefault(cache, {}).update((row["name"], row["source"]) for row in read_rows(link))
    link.unlink()


def names_of(cache: Path) -> dict[str, str]:
    """Return the names of volumes by those that their sources' paths would give."""
    link = LINKS.get(cache, {})
    return dict(zip(plan_names([Path(path) for path in link.values()]), link, strict=True))


def report_of(cache: Path) -> dict[str, Any]:
    """Return the report of the last run."""
    return json.loads((cache / "report.json").read_text())


def entries_of(cache: Path) -> dict[str, dict[str, Any]]:
    """Return the volumes of a cache by the names that their sources' paths would give."""
    entries = {entry.name: asdict(entry) for entry in read_cache(cache, allow_empty=True).entries}
    return {path_name: entries[name] for path_name, name in names_of(cache).items() if name in entries}


def reasons_of(cache: Path) -> dict[str, str]:
    """Return why sources were refused, by the names of their files; volumes in them are named by their sources."""
    refused, link = read_cache(cache, allow_empty=True).refused, LINKS[cache]
    volume = re.compile("|".join(rf"\b{name}\b" for name in link))
    return {Path(link[name]).name: volume.sub(lambda m: link[m[0]], reason) for name, reason in refused.items()}


def stored(cache: Path, name: str) -> np.ndarray:
    """Return a stored volume, read with numpy alone; its name as in :func:`entries_of`."""
    return np.load(file_of(cache, name), allow_pickle=False)


def file_of(cache: Path, name: str, suffix: str = ".npy") -> Path:
    """Return what is stored of a volume; its name as in :func:`entries_of`."""
    return cache / "volumes" / f"{names_of(cache)[name]}{suffix}"


def assert_same(left: Path, right: Path) -> None:
    """Check that two caches are complete, with the same index and the same files."""
    first, second = read_cache(left), read_cache(right)
    assert replace(first, folder=right) == second
    assert (first.fingerprint(), first.unfinished) == (second.fingerprint(), ())
    one, other = ({p.name: p.read_bytes() for p in (folder / "volumes").iterdir()} for folder in (left, right))
    assert one == other
