"""Metrics against scikit-image, MONAI and plain loops; the body mask against known anatomy."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from reconstruct_checks import loop_border_ratio
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from volume_factory import read_chest, unit_of

from MAESILLib.ct.body import body_mask
from MAESILLib.metrics.image import border_index, mae_hu, psnr, score, ssim, ssim_map
from MAESILLib.runtime.errors import InputError

WINDOW = (-1000.0, 1000.0)
PATCH = (8, 8, 8)


@pytest.fixture(scope="module", params=["random", "real"])
def pair(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """A reference and a blurred, noisy prediction of it."""
    rng = np.random.default_rng(0)
    if request.param == "random":
        reference = rng.random((37, 30, 41), np.float32)
    else:
        reference = unit_of(read_chest(request.getfixturevalue("real_ct"))[60:108, 60:110, 100:156])
    prediction = ndimage.gaussian_filter(reference, 1) + rng.normal(0, 0.02, reference.shape)
    return reference, np.clip(prediction, 0, 1).astype(np.float32)


def test_psnr_and_mae(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, prediction = pair
    where = np.random.default_rng(1).random(reference.shape) < 0.3
    assert psnr(reference, prediction) == pytest.approx(
        peak_signal_noise_ratio(reference, prediction, data_range=1), abs=1e-4
    )
    assert psnr(reference, prediction, where) == pytest.approx(
        peak_signal_noise_ratio(reference[where], prediction[where], data_range=1), abs=1e-4
    )
    hu = [-160 + 400 * volume.astype(float) for volume in (reference, prediction)]
    assert mae_hu(reference, prediction, (-160, 240), where) == pytest.approx(np.abs(hu[0] - hu[1])[where].mean())
    assert psnr(reference, reference) == math.inf
    assert math.isnan(psnr(reference, prediction, np.zeros_like(where)))
    assert math.isnan(mae_hu(reference, prediction, WINDOW, np.zeros_like(where)))


def test_psnr_of_a_known_error() -> None:
    reference = np.full((2, 3, 4), 0.25, np.float32)
    assert psnr(reference, reference + np.float32(0.1)) == pytest.approx(20, abs=1e-5)


def test_ssim_map_equals_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    _, expected = structural_similarity(
        pair[0].astype(float), pair[1].astype(float), data_range=1, full=True,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    np.testing.assert_allclose(ssim_map(*pair), expected, atol=1e-5)


def test_ssim_map_equals_monai_in_the_interior(pair: tuple[np.ndarray, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    regression = pytest.importorskip("monai.metrics.regression")
    reference, prediction = (torch.from_numpy(volume)[None, None] for volume in pair)
    expected, _ = regression.compute_ssim_and_cs(
        y_pred=prediction, y=reference, spatial_dims=3, kernel_size=(11,) * 3, kernel_sigma=(1.5,) * 3, data_range=1.0
    )
    interior = ssim_map(*pair)[5:-5, 5:-5, 5:-5]
    assert interior.mean() == pytest.approx(float(expected.double().mean()), abs=1e-4)
    # MONAI subtracts squares in float32, which costs it three digits where the volume is nearly flat
    np.testing.assert_allclose(interior, expected[0, 0].numpy(), atol=3e-3)


@pytest.mark.parametrize("shape", [(3, 30, 20), (16, 12, 12), (17, 5, 9)])
def test_ssim_map_of_thin_volumes(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.random(shape), rng.random(shape)

    def mean(volume: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(volume, 1.5, radius=5)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    np.testing.assert_allclose(ssim_map(x, y), expected, atol=1e-6)


def test_ssim_in_a_region_is_the_mean_of_the_whole_map(pair: tuple[np.ndarray, np.ndarray]) -> None:
    whole = ssim_map(*pair)
    where = np.zeros(whole.shape, bool)
    where[20:25, 0:7, 11:30] = np.random.default_rng(3).random((5, 7, 19)) < 0.5
    assert ssim(*pair, where) == pytest.approx(whole[where].mean(), abs=1e-6)
    assert ssim(pair[0], pair[0], where) == pytest.approx(1)
    assert math.isnan(ssim(*pair, np.zeros_like(where)))


@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 5, 2)])
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_border_index_equals_loops(sizes: tuple[int, int, int], share: float) -> None:
    rng = np.random.default_rng(4)
    reference, prediction = rng.random((2, 11, 13, 9))
    where = rng.random(reference.shape) < share
    expected = [loop_border_ratio(volume, sizes, where) for volume in (prediction, reference)]
    assert border_index(reference, prediction, sizes, where) == pytest.approx(expected[0] / expected[1])


def test_border_index_tells_seams_from_blur() -> None:
    rng = np.random.default_rng(5)
    reference = ndimage.gaussian_filter(rng.random((32, 32, 32)), 1)
    patches = rng.normal(0, 0.05, (4, 4, 4)).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    seam = np.zeros(32, bool)
    seam[7:-1:8] = seam[8::8] = True
    near_border = seam[:, None, None] | seam[:, None] | seam
    smoothed = np.where(near_border, ndimage.gaussian_filter(reference, 2), reference)
    everywhere = np.ones(reference.shape, bool)
    assert border_index(reference, reference, PATCH, everywhere) == 1.0
    assert border_index(reference, reference + patches, PATCH, everywhere) > 1.5
    # a seam of 8-voxel patches is no seam of a grid that it is off
    off = (slice(3, None),) * 3
    assert border_index(reference[off], (reference + patches)[off], PATCH, everywhere[off]) < 1.0
    assert border_index(reference, smoothed, PATCH, everywhere) < 0.9
    assert math.isnan(border_index(reference, reference, (64, 64, 64), everywhere))
    assert math.isnan(border_index(np.zeros_like(reference), reference, PATCH, everywhere))


def test_scores_of_a_masked_reconstruction(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, prediction = pair
    wild = np.where(prediction > 0.7, prediction + 3, prediction)
    hidden = np.zeros(reference.shape, bool)
    hidden[:, 8:24] = True
    body = np.zeros(reference.shape, bool)
    crop = (slice(8, -4),) * 3
    body[crop] = True
    clipped = np.where(prediction > 0.7, 1, prediction)
    composite = reference.copy()
    composite[:, 8:24] = clipped[:, 8:24]
    result = score(reference, wild, hidden, body, WINDOW, PATCH)
    assert result["psnr_masked_db"] == pytest.approx(
        peak_signal_noise_ratio(reference[:, 8:24], composite[:, 8:24], data_range=1), abs=1e-4
    )
    assert result["mae_masked_hu"] == pytest.approx(2000 * np.abs(reference - composite)[hidden].mean(), rel=1e-5)
    assert result["psnr_composite_db"] == pytest.approx(
        peak_signal_noise_ratio(reference, composite, data_range=1), abs=1e-4
    )
    assert result["ssim_composite"] == pytest.approx(ssim_map(reference, composite)[hidden & body].mean(), abs=1e-6)
    alone = border_index(reference[crop], composite[crop], PATCH, body[crop])
    assert result["border_index"] == pytest.approx(alone, rel=1e-5)


def test_scores_with_nothing_hidden_are_none(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, prediction = pair
    nothing, body = np.zeros(reference.shape, bool), np.ones(reference.shape, bool)
    result = score(reference, prediction, nothing, body, WINDOW, PATCH)
    assert list(result.values()) == [None, None, None, None, 1.0]
    outside = score(reference, prediction, body, nothing, WINDOW, PATCH)
    assert outside["ssim_composite"] is None
    assert outside["border_index"] is None
    assert outside["psnr_masked_db"] == outside["psnr_composite_db"] == pytest.approx(psnr(reference, prediction))
    json.dumps(outside, allow_nan=False)


@pytest.mark.parametrize("mode", ["complete", "autoencoding"])
def test_scores_of_a_whole_prediction(pair: tuple[np.ndarray, np.ndarray], mode: str) -> None:
    reference, prediction = pair
    body, hidden = reference > 0.3, np.zeros(reference.shape, bool)
    hidden[5:9] = True
    result = score(reference, prediction - (prediction < 0.1), hidden, body, WINDOW, PATCH, mode)
    clipped = np.where(prediction < 0.1, 0, prediction)
    assert result == {
        f"psnr_{mode}_db": pytest.approx(peak_signal_noise_ratio(reference, clipped, data_range=1), abs=1e-4),
        f"mae_{mode}_hu": pytest.approx(2000 * np.abs(reference - clipped).mean(), rel=1e-5),
        f"ssim_{mode}": pytest.approx(ssim_map(reference, clipped)[body].mean(), abs=1e-6),
        "border_index": pytest.approx(border_index(reference, clipped, PATCH, body)),
    }
    perfect = score(reference, reference, hidden, body, WINDOW, PATCH, mode)
    assert list(perfect.values()) == [None, 0.0, pytest.approx(1), 1.0]


def test_what_does_not_fit_is_refused() -> None:
    volume = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(InputError, match="shapes"):
        psnr(volume, volume[:3])
    with pytest.raises(InputError, match="mask"):
        ssim(volume, volume, np.zeros((4, 5, 6), np.uint8))
    broken = volume.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        score(volume, broken, volume == 0, volume == 0, WINDOW, PATCH)


def ellipse(shape: tuple[int, int, int], centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    _, h, w = np.indices(shape)
    return ((h - centre[0]) / radii[0]) ** 2 + ((w - centre[1]) / radii[1]) ** 2 < 1


def thorax(shape: tuple[int, int, int] = (20, 80, 110)) -> tuple[np.ndarray, np.ndarray]:
    """HU of a trunk with two lungs on a table, and the trunk."""
    trunk = ellipse(shape, (36, 55), (30, 48))
    hu = np.where(trunk, 40, -1000)
    hu[ellipse(shape, (36, 30), (20, 14)) | ellipse(shape, (36, 80), (20, 14))] = -850
    hu[:, 68:70, 5:-5] = 100
    noise = np.random.default_rng(6).normal(0, 20, shape)
    return (hu + noise).astype(np.int16), trunk


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_body_holds_lungs_open_at_both_ends_but_no_table() -> None:
    hu, trunk = thorax()
    body = body_mask(hu)
    assert overlap(body, trunk) > 0.99
    assert not body[:, 68:70, :40].any()
    assert body[0, 36, 30]
    assert body[-1, 36, 80]


def test_body_holds_a_lung_that_a_lateral_border_cuts() -> None:
    hu, trunk = thorax()
    assert overlap(body_mask(hu[:, :, 28:]), trunk[:, :, 28:]) > 0.98


def test_body_holds_two_legs_and_no_line() -> None:
    shape = (20, 60, 100)
    legs = ellipse(shape, (30, 25), (22, 20)) | ellipse(shape, (30, 72), (16, 14))
    hu = np.where(legs, 30, -1000)
    hu[:, 10:14, 48:52] = 200
    body = body_mask(hu)
    assert overlap(body, legs) > 0.99
    assert not body[:, 10:14, 48:52].any()


def test_body_of_air_and_of_tissue_throughout() -> None:
    assert not body_mask(np.full((6, 7, 8), -1000)).any()
    assert body_mask(np.full((6, 7, 8), 20)).all()
    with pytest.raises(InputError, match="three axes"):
        body_mask(np.zeros((5, 5)))


def test_body_of_a_real_chest(real_ct: Path) -> None:
    hu = read_chest(real_ct)[80:110]
    body = body_mask(hu)
    # a slab through both lungs: soft tissue and parenchyma amid the patient are in, corners are out
    middle = (slice(None), slice(80, 150), slice(70, 200))
    assert body[middle].all()
    assert not body[:, :15, :15].any()
    assert not body[:, -8:].any()
    assert 0.4 < body.mean() < 0.6
