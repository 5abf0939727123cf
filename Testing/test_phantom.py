"""The generated sample CT: anatomy where it belongs, HU of the textbook, the same bits for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from MAESILLib import phantom
from MAESILLib.errors import InputError

SMALL = {"size_dhw": (80, 96, 128), "spacing_mm": 3.0}

# Textbook HU of each tissue, widened by noise and by the contrast agent some organs take up.
HU_RANGES = {
    "right lung": (-930, -700),
    "left lung": (-930, -700),
    "liver": (50, 140),
    "spleen": (60, 160),
    "trachea": (-1024, -900),
    "aorta": (100, 220),
    "vertebra": (80, 350),
    "stomach gas": (-1024, -880),
    "stomach fluid": (-15, 50),
}


@pytest.fixture(scope="module")
def full() -> np.ndarray:
    return phantom.body_phantom(0)


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    return phantom.body_phantom(5, **SMALL)


def region_hu(hu: np.ndarray, voxel: tuple[int, int, int], reach: int = 1) -> float:
    return float(np.median(hu[tuple(slice(n - reach, n + reach + 1) for n in voxel)]))


def body_mask(hu: np.ndarray, vertebra: tuple[int, int, int]) -> np.ndarray:
    """The patient without the couch: the component of non-air that holds the spine."""
    parts, _ = ndimage.label(ndimage.binary_opening(hu > -300))
    assert parts[vertebra] > 0
    return parts == parts[vertebra]


def lung_parts(hu: np.ndarray, body: np.ndarray) -> list[np.ndarray]:
    inside = np.stack([ndimage.binary_fill_holes(section) for section in body])
    parts, count = ndimage.label(ndimage.binary_opening((hu < -600) & (hu > -960) & inside))
    sizes = ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1))
    return [parts == 1 + int(n) for n in np.argsort(sizes)[::-1][:2]]


def test_default_shape_and_type(full: np.ndarray) -> None:
    assert full.shape == (160, 192, 256)
    assert full.dtype == np.int16
    assert full.min() >= -1024
    assert 800 < full.max() <= 3071


def test_same_seed_same_bits_other_seed_other_patient(small: np.ndarray) -> None:
    np.testing.assert_array_equal(phantom.body_phantom(5, **SMALL), small)
    other = phantom.body_phantom(6, **SMALL)
    assert np.mean(np.abs(other.astype(float) - small) > 100) > 0.03


@pytest.mark.parametrize("name", HU_RANGES)
def test_hu_of_named_regions(full: np.ndarray, small: np.ndarray, name: str) -> None:
    low, high = HU_RANGES[name]
    assert low <= region_hu(full, phantom.landmarks(0)[name]) <= high
    assert low <= region_hu(small, phantom.landmarks(5, **SMALL)[name]) <= high


def test_body_is_one_piece_on_a_couch(full: np.ndarray) -> None:
    marks = phantom.landmarks(0)
    body = body_mask(full, marks["vertebra"])
    assert all(body[marks[name]] for name in ("liver", "spleen", "aorta"))
    parts, count = ndimage.label(ndimage.binary_opening(full > -300))
    outside = [np.argwhere(parts == n) for n in range(1, count + 1) if n != parts[marks["vertebra"]]]
    spine_row = marks["vertebra"][1]
    assert all(len(part) < 200 or part[:, 1].min() > spine_row for part in outside)
    assert 0.15 < body.mean() < 0.6


def test_couch_lies_behind_the_patient(full: np.ndarray) -> None:
    body = body_mask(full, phantom.landmarks(0)["vertebra"])
    back = np.argwhere(body)[:, 1].max()
    behind = (full > -500) & ~body
    behind[:, : back - 30] = False
    columns = behind.any(1).mean(0)
    assert columns[30:-30].min() > 0.9  # a shell in every slice, across the field of view
    assert (full[:, :10] < -900).all()  # and nothing in front of the patient


def test_two_lungs_mostly_in_the_upper_half(full: np.ndarray) -> None:
    lungs = lung_parts(full, body_mask(full, phantom.landmarks(0)["vertebra"]))
    centres = [ndimage.center_of_mass(lung) for lung in lungs]
    assert all(centre[0] > full.shape[0] / 2 for centre in centres)
    assert min(c[2] for c in centres) < 0.42 * full.shape[2] < 0.58 * full.shape[2] < max(c[2] for c in centres)
    volumes_ml = [lung.sum() * 1.5**3 / 1000 for lung in lungs]
    assert all(700 < volume < 3500 for volume in volumes_ml)
    assert 0.5 < volumes_ml[0] / volumes_ml[1] < 2.0


def test_lung_is_denser_where_the_patient_lies_on_it(full: np.ndarray) -> None:
    lungs = np.logical_or(*lung_parts(full, body_mask(full, phantom.landmarks(0)["vertebra"])))
    lungs = ndimage.binary_erosion(lungs, iterations=2)
    rows = np.argwhere(lungs)[:, 1]
    front, back = np.quantile(rows, (0.25, 0.75)).astype(int)
    anterior = np.median(full[:, :front][lungs[:, :front]])
    posterior = np.median(full[:, back:][lungs[:, back:]])
    assert 10 < posterior - anterior < 90


def test_sides_and_gravity(full: np.ndarray) -> None:
    marks = phantom.landmarks(0)
    middle = full.shape[2] / 2
    k = marks["liver"][0]
    smooth = ndimage.gaussian_filter(full[k].astype(np.float32), 2)
    liver_hu = region_hu(full, marks["liver"], 2)
    like_liver = ndimage.binary_opening(np.abs(smooth - liver_hu) < 25, iterations=3)
    parts, _ = ndimage.label(like_liver)
    liver = parts == parts[marks["liver"][1:]]
    assert ndimage.center_of_mass(liver)[1] < middle < marks["spleen"][2]
    assert liver.sum() * 1.5**2 > 5000  # mm2
    gas = ndimage.binary_opening(full[k] < -900, iterations=2)
    gas[:, : int(middle)] = False
    gas &= ndimage.binary_fill_holes(body_mask(full, marks["vertebra"])[k])
    fluid_row = marks["stomach fluid"][1]
    assert gas.any()
    assert np.argwhere(gas)[:, 0].max() < fluid_row


def test_noise_is_that_of_a_scanner(full: np.ndarray) -> None:
    k, j, i = phantom.landmarks(0)["liver"]
    patch = full[k - 4 : k + 5, j - 6 : j + 7, i - 6 : i + 7].astype(float)
    assert 7 < patch.std() < 25
    neighbours = np.corrcoef(patch[:, :, :-1].ravel(), patch[:, :, 1:].ravel())[0, 1]
    assert 0.1 < neighbours < 0.9  # correlated, unlike white noise
    air = full[:, :8, :20].astype(float)
    assert air.std() < 0.7 * patch.std()
    assert abs(air.mean() + 1000) < 5


def test_edges_are_not_jagged(full: np.ndarray) -> None:
    """Between air and skin there are voxels of every value, as a scanner's blur leaves them."""
    column = full[40:120, :, 128].astype(float)
    between = ((column > -900) & (column < -250)).any(1)
    assert between.all()


@pytest.mark.parametrize(("size", "spacing"), [((64, 64, 64), 1.5), ((33, 70, 47), 5.0), ((48, 64, 200), 2.0)])
def test_any_size_holds_the_whole_body(size: tuple[int, int, int], spacing: float) -> None:
    hu = phantom.body_phantom(1, size_dhw=size, spacing_mm=spacing)
    assert hu.shape == size
    middle = hu[size[0] // 2]
    marks = phantom.landmarks(1, size_dhw=size, spacing_mm=spacing)
    front = middle[: marks["vertebra"][1]]  # in front of the couch
    assert max(front[0].max(), front[:, 0].max(), front[:, -1].max()) < -850
    for name in ("right lung", "left lung"):
        assert -960 < hu[marks[name]] < -500
    assert 20 < region_hu(hu, marks["liver"]) < 160


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"size_dhw": (31, 64, 64)}, "size"),
        ({"size_dhw": (64, 64, 31)}, "size"),
        ({"size_dhw": (64, 64)}, "size"),
        ({"spacing_mm": 0.49}, "spacing"),
        ({"spacing_mm": 5.01}, "spacing"),
        ({"spacing_mm": float("nan")}, "spacing"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_bad_arguments(arguments: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        phantom.body_phantom(**arguments)


def test_volume_is_canonical_and_centred() -> None:
    volume = phantom.phantom_volume(3, size_dhw=(40, 48, 64), spacing_mm=5.0)
    geometry = volume.geometry
    assert geometry.size_dhw == volume.hu.shape == (40, 48, 64)
    assert geometry.spacing_dhw == (5.0, 5.0, 5.0)
    assert geometry.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    far_corner = [o + 5.0 * (n - 1) for o, n in zip(geometry.origin_lps, (64, 48, 40), strict=True)]
    np.testing.assert_allclose(far_corner, [-o for o in geometry.origin_lps])
    assert "3" in volume.name
