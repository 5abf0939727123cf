"""The model's grid and the way there and back, judged by SimpleITK's physical points and by analytic values."""

import numpy as np
import pytest
import SimpleITK as sitk
from volume_factory import SHARED_CT, geometry, image_of, needs_real_ct, rotation, signed_permutations

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.resampling import gaussian_matrix, smoothing_sigma_mm
from MAESILLib.ct.volume import hu_to_unit, model_grid, unit_to_hu

OBLIQUE = rotation(12, -20, 31)
STEEP = rotation(44, 5, 40)
OUTSIDE = -99999.0


def lps_of(image: sitk.Image, dhw: tuple[int, ...]) -> np.ndarray:
    return np.array(image.TransformIndexToPhysicalPoint([int(n) for n in dhw[::-1]]))


def brightest(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in np.unravel_index(int(np.argmax(array)), array.shape))


def test_points_are_those_of_simpleitk_one_by_one_and_many_at_once() -> None:
    grid = geometry((5, 6, 7), (2.0, 0.7, 0.9), OBLIQUE)
    image = image_of(np.zeros(grid.size_dhw, np.int16), grid)
    points = ((0, 0, 0), (4, 5, 6), (1, 3, 2))
    for dhw, among in zip(points, grid.physical_point(np.array(points)), strict=True):
        for found in (grid.physical_point(dhw), among, (grid.ijk_to_lps() @ [*dhw[::-1], 1])[:3]):
            np.testing.assert_allclose(found, lps_of(image, dhw), atol=1e-9)


class TestExactGrid:
    """Equal spacing: flips and a permutation only."""

    @pytest.mark.parametrize("matrix", list(signed_permutations()), ids=lambda m: "".join(str(int(v)) for v in m.flat))
    def test_every_axis_parallel_orientation(self, matrix: np.ndarray) -> None:
        source = geometry((6, 7, 9), direction=matrix)
        grid = model_grid(source)
        hu = np.arange(6 * 7 * 9, dtype=np.int16).reshape(6, 7, 9)
        model = grid.to_model(hu)
        assert not grid.is_resampled
        assert model.shape == grid.geometry.size_dhw
        assert model.dtype == np.float32
        np.testing.assert_array_equal(np.reshape(grid.geometry.direction, (3, 3)), np.eye(3))
        source_image, model_image = image_of(hu, source), image_of(model, grid.geometry)
        for dhw in ((0, 0, 0), (5, 6, 8), (2, 0, 7)):
            found = brightest(model == hu[dhw])
            np.testing.assert_allclose(lps_of(source_image, dhw), lps_of(model_image, found), atol=1e-6)
        np.testing.assert_array_equal(grid.to_source(model), hu)
        np.testing.assert_array_equal(grid.to_source(model.astype(np.uint16), nearest=True), hu)

    @pytest.mark.parametrize("matrix", [OBLIQUE, OBLIQUE[:, [2, 0, 1]] * [1, -1, 1], STEEP * [-1, 1, 1]])
    def test_oblique_stays_oblique(self, matrix: np.ndarray) -> None:
        source = geometry((6, 7, 9), direction=matrix)
        grid = model_grid(source)
        hu = np.random.default_rng(1).permutation(6 * 7 * 9).astype(np.int16).reshape(6, 7, 9)
        model = grid.to_model(hu)
        source_image, model_image = image_of(hu, source), image_of(model, grid.geometry)
        for value in (0, 17, 377):
            np.testing.assert_allclose(
                lps_of(source_image, brightest(hu == value)), lps_of(model_image, brightest(model == value)), atol=1e-6
            )
        np.testing.assert_array_equal(grid.to_source(model), hu)
        cosines = np.reshape(grid.geometry.direction, (3, 3))
        assert np.all(np.diag(cosines) > 0.5)

    def test_closest_axes_are_a_permutation_when_greedy_choice_fails(self) -> None:
        # Row by row, the first and third row would both choose the first column.
        matrix = np.array([[0.8, -0.6, 0.0], [0.0, 0.0, -1.0], [0.6, 0.8, 0.0]])
        grid = model_grid(geometry((4, 5, 6), direction=matrix))
        assert sorted(grid.axes) == [0, 1, 2]
        assert np.all(np.diag(np.reshape(grid.geometry.direction, (3, 3))) >= 0.6)

    def test_result_does_not_share_memory(self) -> None:
        grid = model_grid(geometry((6, 7, 9)))
        hu = np.zeros((6, 7, 9), np.float32)
        assert not np.shares_memory(grid.to_model(hu), hu)
        assert not np.shares_memory(grid.to_source(hu), hu)

    def test_tolerance(self) -> None:
        assert not model_grid(geometry((4, 4, 4), (1.5, 1.51, 1.49))).is_resampled
        assert model_grid(geometry((4, 4, 4), (1.5, 1.52, 1.5))).is_resampled
        assert not model_grid(geometry((4, 4, 4), (2.0, 2.0, 2.0)), spacing_mm=2.0).is_resampled


class TestResampledGrid:
    SOURCES = (
        geometry((40, 61, 50), (2.5, 0.9, 0.8)),
        geometry((40, 61, 50), (2.5, 0.9, 0.8), OBLIQUE[:, [1, 2, 0]] * [-1, 1, 1]),
        geometry((60, 40, 70), (0.7, 3.0, 1.1), np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]])),
    )

    @pytest.mark.parametrize("source", SOURCES)
    def test_covers_the_volume_from_its_lower_faces(self, source: Geometry) -> None:
        grid = model_grid(source)
        matrix = np.reshape(grid.geometry.direction, (3, 3))
        corners = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in source.size_dhw), indexing="ij")).reshape(3, -1).T
        # Faces of the volume in the model's own axes, in mm from the model's lower face.
        along = (source.physical_point(corners) - grid.geometry.physical_point([-0.5] * 3)) @ matrix
        np.testing.assert_allclose(along.min(axis=0), 0, atol=1e-6)
        covered = np.array(grid.geometry.size_dhw[::-1]) * 1.5
        assert np.all(along.max(axis=0) <= covered + 0.01)
        assert np.all(along.max(axis=0) > covered - 1.5)

    @pytest.mark.parametrize("source", SOURCES)
    def test_smooth_function_on_both_grids(self, source: Geometry) -> None:
        grid = model_grid(source)
        model = grid.to_model(wave(source))
        inner = (slice(3, -3),) * 3
        # What smoothing and interpolation of a 45 mm wave may cost: (pi step / wave length)^2 / 2 an axis, of 400 HU.
        assert np.abs(model - wave(grid.geometry))[inner].max() < 14
        assert np.abs(grid.to_source(wave(grid.geometry)) - wave(source))[inner].max() < 6
        assert np.abs(wave(grid.geometry)).max() > 350

    @pytest.mark.parametrize("source", SOURCES)
    def test_agrees_with_filter_and_resample_of_other_libraries(self, source: Geometry) -> None:
        hu = np.random.default_rng(2).normal(0, 200, source.size_dhw).astype(np.float32)
        grid = model_grid(source)
        variance_mm2 = [max(1.5**2 - s**2, 0) / (8 * np.log(2)) for s in source.spacing_dhw]
        filter_ = sitk.DiscreteGaussianImageFilter()
        filter_.SetVariance([max(v, 1e-9) for v in variance_mm2[::-1]])
        filter_.SetMaximumError(1e-5)
        filter_.SetMaximumKernelWidth(64)
        expected = sitk_resample(filter_.Execute(image_of(hu, source)), grid.geometry)
        model = grid.to_model(hu)
        inside = expected > OUTSIDE
        assert inside.mean() > 0.95
        np.testing.assert_allclose(model[inside], expected[inside], atol=0.3)
        back = grid.to_source(model)
        expected = sitk_resample(image_of(model, grid.geometry), source)
        assert (expected > OUTSIDE).all()
        np.testing.assert_allclose(back, expected, atol=2e-3)

    @pytest.mark.parametrize("source", SOURCES)
    def test_constant_stays_constant_to_the_border(self, source: Geometry) -> None:
        grid = model_grid(source)
        hu = np.full(source.size_dhw, -777, np.int16)
        np.testing.assert_allclose(grid.to_model(hu), -777, atol=1e-3)
        np.testing.assert_array_equal(grid.to_source(np.full(grid.geometry.size_dhw, -777, np.int16)), hu)

    def test_marker_keeps_its_place(self) -> None:
        source = self.SOURCES[1]
        grid = model_grid(source)
        for dhw in ((20, 30, 25), (3, 55, 7)):
            hu = np.zeros(source.size_dhw, np.int16)
            hu[dhw] = 30000
            model = grid.to_model(hu)
            weights = model / model.sum()
            centre = [float((weights * index).sum()) for index in np.indices(model.shape)]
            there = image_of(model, grid.geometry).TransformContinuousIndexToPhysicalPoint(centre[::-1])
            np.testing.assert_allclose(there, lps_of(image_of(hu, source), dhw), atol=0.8)

    def test_fine_checkerboard_is_removed_not_aliased(self) -> None:
        source = geometry((8, 64, 64), (1.5, 0.5, 0.5))
        board = (np.indices(source.size_dhw)[1:].sum(axis=0) % 2 * 2000 - 1000).astype(np.int16)
        inner = model_grid(source).to_model(board)[:, 2:-2, 2:-2]
        assert np.abs(inner).max() < 5

    def test_nearest_keeps_labels_and_dtype(self) -> None:
        source = self.SOURCES[1]
        grid = model_grid(source)
        labels = (np.indices(grid.geometry.size_dhw).sum(axis=0) // 9 % 4 * 50).astype(np.uint8)
        back = grid.to_source(labels, nearest=True)
        assert back.dtype == np.uint8
        assert set(np.unique(back)) <= {0, 50, 100, 150}
        reference = sitk_resample(image_of(labels, grid.geometry), source, sitk.sitkNearestNeighbor)
        assert np.mean(back == reference) > 0.995  # ties may fall to either side
        mask = labels > 75
        assert grid.to_source(mask, nearest=True).dtype == np.bool_

    def test_integers_are_rounded(self) -> None:
        grid = model_grid(geometry((6, 6, 10), (1.5, 1.5, 0.5)))
        ramp = np.zeros(grid.geometry.size_dhw, np.int16)
        ramp[..., 1] = 2
        back = grid.to_source(ramp)
        assert back.dtype == np.int16
        # Centres at 0.25, 0.75, 1.25 mm and so on between 0.75 mm (0) and 2.25 mm (2): 1.25 mm is 0.67.
        np.testing.assert_array_equal(back[0, 0, :6], [0, 0, 1, 1, 2, 1])

    def test_one_voxel_thin(self) -> None:
        grid = model_grid(geometry((1, 9, 1), (0.6, 0.6, 0.6)))
        assert grid.geometry.size_dhw == (1, 4, 1)
        np.testing.assert_allclose(grid.to_model(np.full((1, 9, 1), 40, np.int16)), 40, atol=1e-4)
        assert grid.to_source(np.zeros((1, 4, 1), np.float32)).shape == (1, 9, 1)
        # no sliver at the end
        assert model_grid(geometry((20, 30, 30), (1.5, 0.1, 0.1))).geometry.size_dhw == (20, 2, 2)
        assert model_grid(geometry((20, 31, 16), (1.5, 0.1, 0.1))).geometry.size_dhw == (20, 3, 2)


def test_wrong_use() -> None:
    grid = model_grid(geometry((6, 7, 9), (3.0, 1.5, 1.5)))
    with pytest.raises(ValueError, match=r"shape \(7, 6, 9\), the source grid \(6, 7, 9\)"):
        grid.to_model(np.zeros((7, 6, 9), np.int16))
    with pytest.raises(ValueError, match=r"the model grid \(12, 7, 9\)"):
        grid.to_source(np.zeros((6, 7, 9), np.int16))
    with pytest.raises(ValueError, match="nearest=True"):
        grid.to_source(np.zeros((12, 7, 9), bool))
    for spacing in (0.0, -1.5, float("nan")):
        with pytest.raises(ValueError, match="spacing_mm"):
            model_grid(geometry((6, 7, 9)), spacing)
    with pytest.raises(ValueError, match="low < high"):
        hu_to_unit(np.zeros(3), (100, 100))


class TestSmoothing:
    def test_sigma_of_cardoso(self) -> None:
        # Full widths at half maximum add in squares: 3 mm and 4 mm make 5 mm; 2.3548 sigma is the width.
        assert smoothing_sigma_mm(3.0, 5.0) == pytest.approx(4.0 / 2.354820045)
        assert smoothing_sigma_mm(5.0, 1.5) == 0

    @pytest.mark.parametrize("sigma", [0.03, 0.4, 0.9, 3.0])
    def test_kernel_has_the_variance_asked_for(self, sigma: float) -> None:
        kernel = gaussian_matrix(sigma, 61).toarray()[30]
        offsets = np.arange(61) - 30
        assert kernel.sum() == pytest.approx(1)
        assert (kernel * offsets**2).sum() == pytest.approx(sigma**2, rel=0.01)


class TestWindow:
    def test_values(self) -> None:
        hu = np.array([-3000, -1000, 0, 500, 1000, 3071], np.int16)
        unit = hu_to_unit(hu)
        assert unit.dtype == np.float32
        np.testing.assert_allclose(unit, [0, 0, 0.5, 0.75, 1, 1], atol=1e-7)
        np.testing.assert_allclose(hu_to_unit(hu, (-160, 240)), [0, 0, 0.4, 1, 1, 1], atol=1e-7)
        assert hu[0] == -3000

    def test_back(self) -> None:
        hu = np.arange(-160, 241, dtype=np.int16)
        np.testing.assert_allclose(unit_to_hu(hu_to_unit(hu, (-160, 240)), (-160, 240)), hu, atol=1e-3)
        assert unit_to_hu(np.array([0.5], np.float64)).dtype == np.float32


@needs_real_ct
class TestRealCT:
    """Each source was brought to 1.5 mm by other software; with a shift of 0.5 mm they differ by 12 HU or more."""

    def test_dicom_against_its_resampled_version(self) -> None:
        self.compare("dicom", "train/tcia__crlm_1004.nii.gz", 6)

    def test_original_against_its_cropped_resampled_version(self) -> None:
        self.compare("original/tcia__rider_pilot_0117.nii.gz", "train/tcia__rider_pilot_0117.nii.gz", 9)

    @staticmethod
    def compare(source: str, reference: str, limit_hu: float) -> None:
        volume = read_volume(SHARED_CT / source)
        grid = model_grid(volume.geometry)
        model = image_of(grid.to_model(volume.hu), grid.geometry)
        expected = sitk.ReadImage(str(SHARED_CT / reference))
        found = sitk.GetArrayFromImage(sitk.Resample(model, expected, sitk.Transform(), sitk.sitkLinear, OUTSIDE))
        assert (found > OUTSIDE).all()
        difference = np.abs(found - sitk.GetArrayViewFromImage(expected))
        assert difference.mean() < limit_hu


def wave(grid: Geometry) -> np.ndarray:
    """Return a wave of 45 mm and 400 HU at the grid's physical points."""
    x, y, z = np.moveaxis(grid.physical_point(np.moveaxis(np.indices(grid.size_dhw), 0, -1)), -1, 0)
    along = (x + y + z) / np.sqrt(3)
    return (400 * np.sin(2 * np.pi * along / 45)).astype(np.float32)


def sitk_resample(image: sitk.Image, target: Geometry, interpolator: int = sitk.sitkLinear) -> np.ndarray:
    """Resample with SimpleITK; OUTSIDE (or 0 for labels) beyond the image."""
    reference = image_of(np.zeros(target.size_dhw, np.uint8), target)
    outside = OUTSIDE if interpolator == sitk.sitkLinear else 0
    return sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), interpolator, outside))
