"""From a folder to the cases in it: which layout it has, and what of it goes into a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from MAESILLib.data.datasets.catalogue import DATASETS
from MAESILLib.data.datasets.description import Case, Dataset, LeftOut, Listing
from MAESILLib.data.datasets.luna16 import is_luna16, luna16_cases
from MAESILLib.data.datasets.nifti import (
    amos_cases,
    btcv_cases,
    flare_cases,
    is_amos,
    is_btcv,
    is_flare,
    is_msd,
    msd_cases,
)
from MAESILLib.data.datasets.tcia import idc_cases, is_idc, is_lidc, lidc_cases
from MAESILLib.data.datasets.totalsegmentator import is_totalsegmentator, totalsegmentator_cases
from MAESILLib.data.sources import Source
from MAESILLib.errors import InputError

SPLITS = ("train", "val", "test")


class Reader(NamedTuple):
    """How folders of a set are told and read."""

    fits: Callable[[Path], bool]
    cases: Callable[[Path, Dataset, list[LeftOut]], list[Case]]


# a folder may fit several: the narrower come first
READERS = {
    "totalsegmentator": Reader(is_totalsegmentator, totalsegmentator_cases),
    "luna16": Reader(is_luna16, luna16_cases),
    "lidc-idri": Reader(is_lidc, lidc_cases),
    "btcv": Reader(is_btcv, btcv_cases),
    "msd": Reader(is_msd, msd_cases),
    "amos": Reader(is_amos, amos_cases),
    "flare": Reader(is_flare, flare_cases),
    "idc": Reader(is_idc, idc_cases),
}


def find_dataset(key: str) -> Dataset:
    """Return the description of a set.

    Raises:
        InputError: there is none of this name.
    """
    if key not in DATASETS:
        raise InputError(f"no data set '{key}' is known", f"choose from {', '.join(DATASETS)}")
    return DATASETS[key]


def recognise(folder: Path | str) -> Dataset | None:
    """Return the set that a folder is laid out like; None if it is like none. Looks at few names only.

    What may not be looked at is like none: who reads it says what is wrong.
    """
    folder = Path(folder)
    try:
        return next((DATASETS[key] for key, reader in READERS.items() if folder.is_dir() and reader.fits(folder)), None)
    except PermissionError:
        return None


def list_cases(key: str, folder: Path | str) -> Listing:
    """List the cases in a folder of a data set; no image is opened.

    Raises:
        InputError: there is no such set or folder, the folder is not laid out like it, or holds no CT of it.
    """
    dataset, folder = find_dataset(key), Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}", f"give the folder that holds {dataset.expects}")
    if not READERS[key].fits(folder):
        raise InputError(
            f"{folder} is not laid out like {dataset.key}: expected in it {dataset.expects}",
            f"see maesil datasets {key}",
        )
    left_out: list[LeftOut] = []
    cases = READERS[key].cases(folder, dataset, left_out)
    left_out.sort(key=lambda one: (str(one.path), one.reason))
    if not cases:
        first = f"; {left_out[0].path}: {left_out[0].reason}" if left_out else ""
        raise InputError(f"{folder} holds no CT of {dataset.key}{first}", f"see maesil datasets {key}")
    return Listing(dataset, folder, tuple(cases), tuple(left_out))


def choose(listing: Listing, split: str | None = None) -> Listing:
    """Return the cases of a split as a cache takes them.

    Args:
        split: train (and what has none), val or test; None for all but test. Test cases are left out unless asked
            for alone, and then are the cache's ``val``: what is measured on, never trained on.

    Raises:
        InputError: there are none.
    """
    kept, left_out = [], list(listing.left_out)
    for case in listing.cases:
        here = case.split or "train"
        if here == split or (split is None and here != "test"):
            kept.append(replace(case, split="val") if here == "test" else case)
        else:
            how = "--split test takes these alone" if here == "test" else f"not of the split {split}"
            left_out.append(LeftOut(case.image, f"{here} case: {how}"))
    if not kept:
        found = ", ".join(sorted({case.split or "undecided" for case in listing.cases}))
        raise InputError(f"{listing.folder} has no case for --split {split or 'train or val'}", f"there is: {found}")
    return replace(listing, cases=tuple(kept), left_out=tuple(left_out))


def source_of(case: Case) -> Source:
    """Return a case as a source to prepare."""
    return Source(case.image, case.patient, case.split, case.dataset, case.licence, case.labels_path)


def overlaps(datasets: Iterable[str]) -> list[str]:
    """Say which of some sets, by key or collection, hold scans of the same patients under other names."""
    keys = sorted({name.replace("_", "-") for name in datasets} & DATASETS.keys())
    return [
        f"{one} and {other} are in one cache: {DATASETS[one].overlap}, so a patient may be on both sides of the split"
        for one in keys
        for other in DATASETS[one].overlaps
        if other in keys and one < other
    ]
