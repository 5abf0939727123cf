"""Miniature trees of public data sets, as their pages describe them; most files are empty, since names alone matter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cli_factory import write_ct, write_image
from volume_factory import geometry, trunk, write_dicom

SMALL = (16, 24, 20)
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001"


def touch(*paths: Path) -> None:
    """Make files whose names alone matter."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_labels(path: Path) -> None:
    """A label map as large as the CTs."""
    write_image(path, np.digitize(trunk(SMALL), [-500, 0]).astype(np.uint8), geometry(SMALL))


def totalsegmentator(root: Path, real: bool = False) -> Path:
    image: Callable[[Path], object] = (lambda p: write_ct(p, SMALL, int(p.parent.name[1:]))) if real else touch
    label = write_labels if real else touch
    for number in (0, 1, 2, 10):
        image(root / f"s{number:04d}" / "ct.nii.gz")
        for organ in ("liver", "aorta"):
            label(root / f"s{number:04d}" / "segmentations" / f"{organ}.nii.gz")
    touch(root / "s0001" / "._ct.nii.gz", root / "s0001" / "segmentations" / "._liver.nii.gz", root / ".DS_Store")
    touch(root / "s0004" / "mri.nii.gz", root / "s0005" / "ct.nii.gz")
    rows = ["image_id;age;split", "s0000;60;train", "s0001;50;val", "s0002;40;test", "s0004;1;train"]
    (root / "meta.csv").write_text("\n".join([*rows, "s0010;33;train", "s0011;1;train"]), encoding="utf-8")
    return root


def msd_task(root: Path, name: str, stem: str, real: bool = False) -> Path:
    task = root / name
    image: Callable[[Path], object] = (lambda p: write_ct(p, SMALL, 20 + int(p.name[-8]))) if real else touch
    label = write_labels if real else touch
    for number in (0, 1):
        image(task / "imagesTr" / f"{stem}_{number}.nii.gz")
        label(task / "labelsTr" / f"{stem}_{number}.nii.gz")
        touch(task / "imagesTr" / f"._{stem}_{number}.nii.gz")
    image(task / "imagesTs" / f"{stem}_2.nii.gz")
    return task


def msd(root: Path) -> Path:
    msd_task(root, "Task03_Liver", "liver")
    msd_task(root, "Task02_Heart", "la")
    return root


def tree(names: str) -> Callable[[Path], Path]:
    """What makes a tree of empty files with these names, separated by spaces."""

    def make(root: Path) -> Path:
        touch(*(root / name for name in names.split()))
        return root

    return make


amos = tree("""
    imagesTr/amos_0001.nii.gz imagesTr/amos_0004.nii.gz imagesTr/amos_0507.nii.gz imagesTr/notes.txt
    labelsTr/amos_0001.nii.gz labelsTr/amos_0004.nii.gz labelsTr/amos_0507.nii.gz
    imagesVa/amos_0008.nii.gz imagesVa/amos_0600.nii.gz labelsVa/amos_0008.nii.gz labelsVa/amos_0600.nii.gz
    imagesTs/amos_0002.nii.gz imagesTs/amos_0499.nii.gz imagesTs/amos_0500.nii.gz
""")
flare = tree("""
    imagesTr/FLARE22_Tr_0001_0000.nii.gz imagesTr/FLARE22_Tr_0001_0001.nii.gz imagesTr/FLARE22_Tr_0002_0000.nii.gz
    labelsTr/FLARE22_Tr_0001.nii.gz labelsTr/FLARE22_Tr_0009.nii.gz imagesTs/FLARETs_0001_0000.nii.gz
""")
btcv = tree("""
    Abdomen/RawData/Training/img/img0001.nii.gz Abdomen/RawData/Training/label/label0001.nii.gz
    Abdomen/RawData/Training/img/img0021.nii.gz Abdomen/RawData/Training/label/label0021.nii.gz
    Abdomen/RawData/Training/img/readme.nii.gz Abdomen/RawData/Testing/img/img0061.nii.gz
""")
idc = tree("""
    rider_pilot/P-1/1.2.1/CT_1.2.1.1/1.dcm rider_pilot/P-1/1.2.1/SEG_1.2.1.2/1.dcm
    rider_pilot/P-1/1.2.2/CT_1.2.2.1/1.dcm
    rider_pilot/P-2/1.2.3/MR_1.2.3.2/1.dcm rider_pilot/P-2/1.2.3/CT_1.2.3.3/1.dcm
""")


def luna16(root: Path) -> Path:
    for number, subset in ((1, 0), (2, 9)):
        write_ct(root / f"subset{subset}" / f"{UID}.{number}.mhd", SMALL, 30 + number)
    write_labels(root / "seg-lungs-LUNA16" / f"{UID}.1.mhd")
    touch(root / "annotations.csv", root / "candidates_V2.csv")
    return root


def series(folder: Path, uid: str, count: int = 8, modality: str = "CT", patient: str = "P", **more: Any) -> Path:
    """A DICOM series of ``count`` slices; ``more``: the trunk's seed, the series' number, tags, the files' prefix."""
    stored = trunk((count, *SMALL[1:]), more.pop("seed", 0)) + 1024
    tags = {"0008|0060": modality, "0010|0020": patient, "0020|0011": more.pop("number", "3")} | more.pop("tags", {})
    write_dicom(folder, stored, spacing_dhw=(1.5, 1.5, 1.5), uid=uid, tags=tags, **more)
    return folder


def lidc(root: Path) -> Path:
    one, two = root / "LIDC-IDRI" / "LIDC-IDRI-0001", root / "LIDC-IDRI" / "LIDC-IDRI-0002"
    touch(series(one / "01-01-2000-NA-30178" / "3000566.000000-NA-03192", f"{UID}.11", seed=1) / "069.xml")
    series(one / "01-01-2000-NA-35511" / "3000923.000000-NA-62357", f"{UID}.12", count=2, modality="DX")
    series(two / "01-01-2000-NA-98329" / "3000522.000000-NA-04919", f"{UID}.21", seed=2)
    series(two / "01-01-2000-NA-98329" / "1.000000-NA-1", f"{UID}.22", count=2)
    return root


MAKERS = {
    "totalsegmentator": totalsegmentator,
    "lidc-idri": lidc,
    "luna16": luna16,
    "flare": flare,
    "amos": amos,
    "msd": msd,
    "btcv": btcv,
    "idc": idc,
}
