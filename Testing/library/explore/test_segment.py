"""Segments from strokes, from the library and the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import QUIET, assert_refused, leftovers, maesil, read_array, write_ct, write_image
from numpy.typing import NDArray
from scipy.special import softmax
from volume_factory import geometry, rotation, trunk

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.volume import CTVolume
from MAESILLib.ct.writing import volume_writer
from MAESILLib.explore.encoding import dense_features
from MAESILLib.explore.segment import Settings, Strokes, fit_segments, probabilities, tissue_at
from MAESILLib.explore.similarity import features_at
from MAESILLib.export.encoder import load_encoder

SIZE = (24, 60, 80)
OBLIQUE: dict[str, Any] = {"spacing_dhw": (2.0, 1.2, 0.9), "direction": rotation(10, -5, 20)}
NAMES = {1: "muscle", 3: "a; b = c"}


def halves() -> NDArray[np.int16]:
    """A trunk whose right half is 120 HU denser."""
    hu = trunk(SIZE).astype(np.int16)
    return np.where((hu > -500) & (np.arange(SIZE[2]) >= 40), hu + 120, hu).astype(np.int16)


def write_strokes(path: Path, grid: Geometry, names: dict[int, str] = NAMES) -> None:
    """Paint two segments on a plane of a grid of half the voxels' width, cropped."""
    values = np.zeros(grid.size_dhw, np.uint8)
    values[12, 30:34, 44:60], values[12, 30:34, 90:110] = 1, 3
    fields = {}
    for number, (value, name) in enumerate(names.items()):
        fields |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": str(value)}
        fields |= {f"Segment{number}_ID": f"s{value}", f"Segment{number}_Color": "1 0 0.5"}
    with volume_writer(path, np.uint8, grid, fields=fields) as write:
        write(values)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """An oblique CT, and strokes in it on a finer grid."""
    whole = geometry(SIZE, **OBLIQUE)
    write_image(tmp_path / "scan.nrrd", halves(), whole)
    finer = Geometry((20, 60, 140), (2.0, 1.2, 0.45), tuple(whole.physical_point((2, 0, 0)).tolist()), whole.direction)
    write_strokes(tmp_path / "strokes.seg.nrrd", finer)
    return tmp_path / "scan.nrrd"


def test_scores_of_cells_are_those_of_interpolated_features(lively: Path) -> None:
    volume = CTVolume(halves(), geometry(SIZE, **OBLIQUE), "v")
    features = dense_features(load_encoder(lively), volume)
    place = np.argwhere(features.voxels)[::97]
    points = features.grid.geometry.physical_point(place)
    strokes = Strokes(({"Name": "a"}, {"Name": "b"}, {"Name": "c"}), points, np.arange(len(points)) % 3)
    settings = Settings(smooth_mm=0)
    fitted = fit_segments(volume, features, strokes, settings)
    found = probabilities(fitted, volume, features)[(slice(None), *place.T)].T
    scores = features_at(features, points) @ fitted.weights + fitted.intercept
    scores = scores + tissue_at(volume, features.grid, points, settings) @ fitted.tissue.reshape(-1, 3)
    np.testing.assert_allclose(found, softmax(scores, 1), atol=2e-3)
    # an infinite penalty leaves HU alone
    alone = fit_segments(volume, features, strokes, Settings(penalty=np.inf))
    assert not alone.weights.any()
    assert alone.tissue.any()


def test_fit_fills_and_applies(scan: Path, lively: Path) -> None:
    folder = scan.parent
    fit = ("segment", "fit", scan, "--strokes", folder / "strokes.seg.nrrd", "--checkpoint", lively, *QUIET)
    maesil(*fit, "--output", folder / "m.safetensors", "--fill", folder / "filled").checked()
    image, filled = sitk.ReadImage(str(scan)), sitk.ReadImage(str(folder / "filled" / "scan.seg.nrrd"))
    for name in ("Size", "Spacing", "Origin", "Direction"):
        np.testing.assert_allclose(*(getattr(one, f"Get{name}")() for one in (filled, image)), atol=1e-6)
    described = {key: filled.GetMetaData(key) for key in filled.GetMetaDataKeys() if key.startswith("Segment1")}
    assert described.items() >= {"Segment1_Name": NAMES[3], "Segment1_LabelValue": "2", "Segment1_ID": "s3"}.items()
    labels, shares = sitk.GetArrayFromImage(filled), [read_array(folder / "filled" / f"scan-{n}.nrrd") for n in (1, 2)]
    near = labels > 0
    assert sum(shares)[near].min() > 0.5
    assert sum(shares).max() < 1.001
    # the strokes are on plane 2 + 12, in columns 22 to 30 and 45 to 55
    assert (labels[14, 31:33, 23:29] == 1).all()
    assert (labels[14, 31:33, 46:54] == 2).all()
    assert not labels[:4].any()
    inside = near & (halves() > -500)
    assert ((labels == 2) == (np.arange(SIZE[2]) >= 40))[inside].mean() > 0.9
    # the features are kept: a second fit reads them, whatever the strokes
    kept = folder / "m.features.safetensors"
    before = kept.stat().st_mtime_ns
    maesil(*fit, "--output", folder / "m.safetensors").checked()
    assert kept.stat().st_mtime_ns == before
    # the same anatomy in another scanner, without strokes: everywhere in the patient
    elsewhere = geometry(SIZE, **OBLIQUE, origin_lps=(100.0, -50.0, 30.0))
    write_image(folder / "other.nrrd", halves() + 10, elsewhere)
    apply = ("segment", "apply", folder / "m.safetensors", folder / "other.nrrd", "--checkpoint", lively, *QUIET)
    maesil(*apply, "--output", folder / "applied").checked()
    labels = read_array(folder / "applied" / "other.seg.nrrd")
    assert ((labels == 2) == (np.arange(SIZE[2]) >= 40))[labels > 0].mean() > 0.75
    assert (labels[0] > 0).any()
    assert leftovers(folder) == []


def test_what_cannot_be_is_one_line(scan: Path, lively: Path, tmp_path: Path) -> None:
    common = ("--checkpoint", lively, "--output", tmp_path / "m.safetensors", *QUIET)
    whole = geometry(SIZE, **OBLIQUE)
    moved = Geometry(SIZE, whole.spacing_dhw, (900.0, 0.0, 0.0), whole.direction)
    labels = np.zeros(SIZE, np.int16)
    labels[5:8, 20, 20] = 1
    for name, grid in (("one.nrrd", whole), ("away.nrrd", moved)):
        write_image(tmp_path / name, labels, grid)
    fit = ("segment", "fit", scan, *common)
    assert_refused(maesil(*fit), "needs one INPUT and its --strokes")
    assert_refused(maesil(*fit, "--strokes", tmp_path / "one.nrrd"), "has 1 segments in scan")
    assert_refused(maesil(*fit, "--strokes", tmp_path / "away.nrrd"), "has 0 segments in scan")
    layers = tmp_path / "layers.seg.nrrd"
    layers.write_bytes((tmp_path / "strokes.seg.nrrd").read_bytes().replace(b"Segment1_ID:=s3", b"Segment1_Layer:=1"))
    assert_refused(maesil(*fit, "--strokes", layers), "has segments that overlap")
    strokes = ("--strokes", tmp_path / "strokes.seg.nrrd")
    assert_refused(maesil(*fit, *strokes, "--features", tmp_path), "no such file")
    other = write_ct(tmp_path / "other.nrrd", SIZE)
    maesil("features", other, "--checkpoint", lively, "--output", tmp_path / "f", *QUIET).checked()
    assert_refused(maesil(*fit, *strokes, "--features", tmp_path / "f"), "features of another CT")
    assert_refused(maesil("segment", "apply", lively, scan, *common), "is no classifier of segments")
    maesil(*fit, *strokes).checked()
    embedded = ("segment", "apply", tmp_path / "m.safetensors", scan, "--output", tmp_path / "out", *QUIET)
    assert_refused(maesil(*embedded), "features of another checkpoint")
