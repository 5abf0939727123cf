"""What ``maesil reconstruct`` writes: its geometry, its meaning and its figures."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_factory import assert_refused, maesil, read_array, reconstruct, write_ct, write_image
from reconstruct_checks import (
    FIGURES,
    HIGH,
    KINDS,
    LOW,
    check_meaning,
    check_patches,
    direct_fill,
    loop_border_ratio,
    psnr,
    run,
    run_on,
    volumes,
)
from training_factory import smooth_hu
from volume_factory import geometry, rotation, trunk, write_dicom

from MAESILLib.ct.body import body_mask
from MAESILLib.ct.volume import hu_to_unit
from MAESILLib.mae.superpatch import Blend
from MAESILLib.reconstruct import reconstruction
from MAESILLib.runtime.resources import embedded_checkpoint
from MAESILLib.runtime.stopping import NEVER

GRIDS: dict[str, dict[str, Any]] = {
    "isotropic": {},
    "flipped": {"direction": np.diag([-1.0, -1.0, 1.0])},
    "permuted": {"direction": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])},
    "oblique": {"direction": rotation(12, -20, 31)},
    "oblique left-handed": {"direction": rotation(8, 5, -40) * [1, -1, 1], "spacing_dhw": (2.0, 0.9, 0.9)},
    "thick slices": {"spacing_dhw": (5.0, 0.8, 0.8)},
    "thin slices": {"spacing_dhw": (0.6, 1.9, 2.1)},
}


class TestGrids:
    @pytest.mark.parametrize(
        ("name", "source", "suffix"),
        [
            *((name, *files) for name in GRIDS for files in ((".nii.gz", "nrrd"), (".nrrd", "nii.gz"))),
            ("oblique left-handed", ".mha", "nrrd"),
        ],
    )
    def test_results_lie_on_the_input(
        self, tmp_path: Path, checkpoint: Path, name: str, source: str, suffix: str
    ) -> None:
        path = write_ct(tmp_path / f"scan{source}", (20, 33, 30), **GRIDS[name])
        metrics = run(path, tmp_path / "out", checkpoint, "--format", suffix)
        image = sitk.ReadImage(str(path))
        assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{k}.{suffix}" for k in KINDS} | {"metrics.json"}
        check_geometry(tmp_path / "out", image, suffix, 1e-6 if "nii.gz" in source + suffix else 1e-12)
        arrays = volumes(tmp_path / "out", suffix)
        check_meaning(arrays, sitk.GetArrayFromImage(image))
        assert metrics["input"]["size"] == list(image.GetSize())
        np.testing.assert_allclose(metrics["input"]["spacing_mm"], image.GetSpacing(), rtol=1e-12)
        check_cells(arrays["mask"], image, metrics)

    def test_dicom(self, tmp_path: Path, checkpoint: Path) -> None:
        stored = trunk((16, 40, 36)) + 1024
        paths = write_dicom(tmp_path / "series", stored, spacing_dhw=(2.5, 1.2, 1.1), orientation=(1, 0, 0, 0, -1, 0))
        # the normal points down: slices lie from top to bottom, a volume from bottom to top along its own normal
        image = sitk.ReadImage([str(path) for path in paths])
        for number, source in enumerate((tmp_path / "series", paths[3])):
            metrics = run(source, tmp_path / f"out{number}", checkpoint)
            check_geometry(tmp_path / f"out{number}", image, "nrrd", 1e-8)
            check_meaning(volumes(tmp_path / f"out{number}"), trunk((16, 40, 36)))
            assert metrics["input"]["name"] == "SYNTHETIC_TRUNK"
            assert metrics["input"]["path"] == str(source)

    def test_storage_order_does_not_matter(self, tmp_path: Path, checkpoint: Path) -> None:
        """The same anatomy stored in other axis orders gives the same results in the same places."""
        image = sitk.GetImageFromArray(trunk((24, 40, 33)))
        image.SetSpacing((1.5, 1.5, 1.5))
        expected: dict[str, np.ndarray] = {}
        for number, code in enumerate(("LPS", "RAS", "ILA", "PSR")):
            path = tmp_path / str(number) / "scan.nrrd"
            path.parent.mkdir()
            sitk.WriteImage(sitk.DICOMOrient(image, code), str(path))
            run(path, path.parent / "out", checkpoint)
            for kind in KINDS:
                back = sitk.DICOMOrient(sitk.ReadImage(str(path.parent / "out" / f"{kind}.nrrd")), "LPS")
                array = sitk.GetArrayFromImage(back)
                np.testing.assert_array_equal(array, expected.setdefault(kind, array), err_msg=f"{kind} of {code}")

    def test_real_ct(self, tmp_path: Path, checkpoint: Path, real_ct: Path) -> None:
        image = sitk.ReadImage(str(real_ct / "original" / "tcia__rider_pilot_0117.nii.gz"))
        crop = image[200:300, 180:280, 30:62]
        sitk.WriteImage(crop, str(tmp_path / "crop.nii.gz"))
        metrics = run(tmp_path / "crop.nii.gz", tmp_path / "out", checkpoint)
        written = sitk.ReadImage(str(tmp_path / "crop.nii.gz"))
        check_geometry(tmp_path / "out", written, "nrrd", 1e-12)
        check_meaning(volumes(tmp_path / "out"), sitk.GetArrayFromImage(crop))
        expected = [math.ceil(n * s / 1.5) for n, s in zip(crop.GetSize(), crop.GetSpacing(), strict=True)]
        assert metrics["model_grid"]["size_dhw"] == expected[::-1]
        assert metrics["baseline_harmonic_psnr_masked_db"] > 15


def check_geometry(folder: Path, image: Any, suffix: str, tolerance: float) -> None:
    """NRRD holds decimal numbers of double precision, NIfTI single precision."""
    for kind in KINDS:
        written = sitk.ReadImage(str(folder / f"{kind}.{suffix}"))
        assert written.GetSize() == image.GetSize()
        np.testing.assert_allclose(written.GetSpacing(), image.GetSpacing(), rtol=tolerance)
        np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), rtol=tolerance, atol=tolerance * 500)
        np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=tolerance)


def check_cells(mask: np.ndarray, image: Any, metrics: dict[str, Any]) -> None:
    """Hidden voxels of a resampled volume: those in the 12 mm cells, from its right, anterior and inferior faces."""
    cells, counts = [], []
    for axis, (size, spacing) in enumerate(zip(image.GetSize(), image.GetSpacing(), strict=True)):
        along = np.array(image.GetDirection()).reshape(3, 3)[:, axis]
        from_face = (np.arange(size) + 0.5) * spacing
        if along[np.abs(along).argmax()] < 0:
            from_face = from_face[::-1]
        assert np.abs(from_face / 12 - np.rint(from_face / 12)).min() > 1e-6, "a voxel between two cells"
        cells.append((from_face // 12).astype(int))
        counts.append(cells[-1].max() + 1)
    i, j, k = cells
    cell = (k[:, None, None] * counts[1] + j[:, None]) * counts[0] + i
    voxels, hidden = np.bincount(cell.ravel()), np.bincount(cell.ravel(), mask.ravel())
    assert voxels.all()
    assert ((hidden == 0) | (hidden == voxels)).all()
    assert (hidden > 0).mean() == pytest.approx(metrics["mask"]["mask_ratio"], abs=1e-6)


class TestSizes:
    @pytest.mark.parametrize(
        "size", [(8, 8, 8), (9, 40, 40), (40, 9, 24), (24, 16, 9), (16, 24, 24), (33, 41, 50), (64, 32, 32)]
    )
    @pytest.mark.parametrize("coverage", ["single", "complete"])
    def test_every_size(self, tmp_path: Path, checkpoint: Path, size: tuple[int, int, int], coverage: str) -> None:
        hu = smooth_hu(size, 3) if min(size) > 8 else trunk(size)
        if size == (8, 8, 8) and coverage == "complete":
            write_image(tmp_path / "scan.nrrd", hu, geometry(size))
            result = reconstruct(tmp_path / "scan.nrrd", tmp_path / "out", checkpoint, "--coverage", coverage)
            assert_refused(result, "hides no token")
            return
        metrics, arrays = run_on(hu, tmp_path, checkpoint, "--coverage", coverage)
        assert arrays["mask"].shape == size
        check_meaning(arrays, hu)
        check_patches(arrays["mask"])
        assert (metrics["psnr_masked_db"] is None) == (not arrays["mask"].any())


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """metrics.json, the volumes and the clipped input of one reconstruction."""
    folder = tmp_path_factory.mktemp("figures")
    hu = smooth_hu((24, 40, 33), 5)
    return *run_on(hu, folder, checkpoint, "--device", "cpu", "--threads", "1"), np.clip(hu, LOW, HIGH)


class TestFigures:
    """metrics.json against figures computed from the files alone, where nothing was resampled."""

    def test_keys(self, results: tuple[dict[str, Any], ...], checkpoint: Path) -> None:
        metrics = results[0]
        for key in FIGURES:
            assert isinstance(metrics[key], float), key
            assert math.isfinite(metrics[key]), key
        assert metrics["schema"] == "maesil-reconstruction/2"
        assert set(metrics["input"]) >= {"path", "size", "spacing_mm"}
        stored = checkpoint.read_bytes()
        header = 8 + int.from_bytes(stored[:8], "little")
        assert metrics["checkpoint"] == {
            "name": "tiny.safetensors",
            "sha256": hashlib.sha256(stored).hexdigest(),
            "weights_sha256": hashlib.sha256(stored[header:]).hexdigest(),
        }
        mask = metrics["mask"]
        assert (mask["strategy"], mask["plane_ratio"], mask["axis_ratio"]) == ("dual", 0.5, 0.5)
        assert (mask["seed"], mask["coverage"]) == (0, "single")
        assert metrics["window_hu"] == [-1000, 1000]
        assert metrics["device"].startswith("cpu")
        assert "1 threads" in metrics["device"]
        assert 0 < metrics["seconds"] < 60
        assert metrics["peak_memory_mib"] > 50
        grid = metrics["model_grid"]
        assert (grid["size_dhw"], grid["spacing_mm"]) == ([24, 40, 33], 1.5)
        assert np.linalg.norm(np.array(grid["ijk_to_lps"])[:3, :3], axis=0) == pytest.approx(1.5)

    def test_superpatches_make_up_the_whole(self, results: tuple[dict[str, Any], ...]) -> None:
        """Their figures, weighted by what is hidden in each, are those of the volume."""
        metrics = results[0]
        boxes = metrics["superpatches"]
        size = np.array(metrics["model_grid"]["size_dhw"])
        weights = []
        for box in boxes:
            start = np.array(box["start_dhw"])
            voxels = np.prod(np.minimum(start + box["size_dhw"], size) - start)
            weights.append(voxels * box["mask_ratio"])
        assert sum(weights) == pytest.approx(metrics["mask"]["mask_voxel_ratio"] * size.prod(), rel=1e-3)
        mse = np.average([10 ** (-b["psnr_masked_db"] / 10) for b in boxes], weights=weights)
        assert -10 * math.log10(mse) == pytest.approx(metrics["psnr_masked_db"], abs=1e-3)
        fill = np.average([10 ** (-b["baseline_harmonic_psnr_masked_db"] / 10) for b in boxes], weights=weights)
        assert -10 * math.log10(fill) == pytest.approx(metrics["baseline_harmonic_psnr_masked_db"], abs=1e-3)
        mae = np.average([b["mae_masked_hu"] for b in boxes], weights=weights)
        assert mae == pytest.approx(metrics["mae_masked_hu"], rel=1e-4)

    def test_errors_of_hidden_voxels(self, results: tuple[Any, Any, Any]) -> None:
        metrics, arrays, hu = results
        hidden = arrays["mask"] == 1
        reconstruction = arrays["reconstruction"][hidden]
        assert metrics["psnr_masked_db"] == pytest.approx(psnr(hu[hidden], reconstruction), abs=0.005)
        mae = np.abs(hu[hidden].astype(float) - reconstruction).mean()
        assert metrics["mae_masked_hu"] == pytest.approx(mae, abs=0.05)
        assert metrics["psnr_composite_db"] == pytest.approx(psnr(hu, arrays["composite"]), abs=0.005)

    def test_ssim(self, results: tuple[Any, Any, Any]) -> None:
        skimage = pytest.importorskip("skimage.metrics")
        metrics, arrays, hu = results
        units = [(a.astype(np.float64) - LOW) / (HIGH - LOW) for a in (hu, arrays["composite"])]
        options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, similarity = skimage.structural_similarity(*units, full=True, **options)
        body = body_mask(hu.astype(np.float32))
        expected = similarity[(arrays["mask"] == 1) & body].mean()
        assert metrics["ssim_composite"] == pytest.approx(expected, abs=2e-3)

    def test_border_index(self, results: tuple[Any, Any, Any]) -> None:
        metrics, arrays, hu = results
        body = body_mask(hu.astype(np.float32))
        composite, before = (loop_border_ratio(volume, (8, 8, 8), body) for volume in (arrays["composite"], hu))
        assert metrics["border_index"] == pytest.approx(composite / before, abs=0.003)

    def test_harmonic_baseline(self, results: tuple[Any, Any, Any]) -> None:
        metrics, arrays, hu = results
        hidden = arrays["mask"] == 1
        expected = psnr(hu[hidden], direct_fill(hu, hidden)[hidden])
        assert metrics["baseline_harmonic_psnr_masked_db"] == pytest.approx(expected, abs=2e-4)

    def test_complete_coverage(self, tmp_path: Path, checkpoint: Path) -> None:
        hu = smooth_hu((24, 40, 33), 6)
        metrics, arrays = run_on(hu, tmp_path, checkpoint, "--coverage", "complete")
        clipped = np.clip(hu, LOW, HIGH)
        assert metrics["mask"]["coverage"] == "complete"
        assert metrics["mask"]["passes"] == 2
        expected = psnr(clipped, arrays["reconstruction"])
        assert metrics["psnr_complete_db"] == pytest.approx(expected, abs=0.005)
        mae = np.abs(clipped.astype(float) - arrays["reconstruction"]).mean()
        assert metrics["mae_complete_hu"] == pytest.approx(mae, abs=0.05)
        for key in (*FIGURES, "ssim_complete", "baseline_harmonic_psnr_complete_db"):
            assert math.isfinite(metrics[key])

    def test_auto_encoding(self, tmp_path: Path, checkpoint: Path) -> None:
        hu = smooth_hu((24, 40, 33), 7)
        metrics, arrays = run_on(hu, tmp_path, checkpoint, "--mask", "none")
        clipped = np.clip(hu, LOW, HIGH)
        check_meaning(arrays, hu)
        assert not arrays["mask"].any()
        np.testing.assert_array_equal(arrays["composite"], clipped)
        assert metrics["mask"]["mask_ratio"] == 0
        assert metrics["psnr_autoencoding_db"] == pytest.approx(psnr(clipped, arrays["reconstruction"]), abs=0.005)
        assert math.isfinite(metrics["ssim_autoencoding"])
        # nothing was hidden, so no figure may look like one of hidden patches
        for key in ("psnr_masked_db", "mae_masked_hu", "psnr_composite_db", "baseline_harmonic_psnr_masked_db"):
            assert metrics[key] is None


class TestFigurePicture:
    def test_figure_is_written_unless_refused(self, tmp_path: Path, checkpoint: Path) -> None:
        path = write_ct(tmp_path / "scan.nrrd", (24, 32, 32))
        arguments = ("reconstruct", path, "--output", tmp_path / "out", "--checkpoint", checkpoint)
        result = maesil(*arguments, "--progress", "json").checked()
        figures = [event for event in result.named("artifact") if event["kind"] == "figure"]
        assert [event["path"] for event in figures] == [str(tmp_path / "out" / "figure.png")]
        assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    @pytest.mark.parametrize("overlap", ["0", "0.25"])
    def test_the_title_says_what_the_picture_shows_as_hidden(
        self, tmp_path: Path, checkpoint: Path, overlap: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: dict[str, Any] = {}

        def draw(path: Path, **options: Any) -> None:
            path.touch()
            drawn.update(options)

        monkeypatch.setattr("MAESILLib.reconstruct.figure.reconstruction_figure", draw)
        path = write_ct(tmp_path / "scan.nrrd", (32, 40, 48))
        arguments = ("reconstruct", path, "--output", tmp_path / "out", "--checkpoint", checkpoint)
        result = maesil(*arguments, "--overlap", overlap, "--progress", "off").checked()
        share = drawn["hidden"].mean()
        assert (share > 0.77) == (overlap != "0")
        assert f", {share:.0%} hidden, " in drawn["title"]
        assert f"hides {share:.1%}" in result.out


class TestEmbeddedCheckpoint:
    @pytest.mark.parametrize("command", ["demo", "reconstruct"])
    def test_it_is_the_default(
        self, tmp_path: Path, sample_part: Path, command: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The panel's test takes the whole sample."""
        monkeypatch.setattr("MAESILLib.runtime.resources.sample_ct", lambda: sample_part)
        arguments = (*([sample_part] if command == "reconstruct" else []), "--output", tmp_path / "out", "--no-figure")
        result = maesil(command, *arguments, "--progress", "json", "--threads", "1").checked()
        assert {e["kind"] for e in result.named("artifact")} == {*KINDS, "metrics"}
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["checkpoint"]["name"] == "maesil-small.safetensors"
        assert metrics["psnr_masked_db"] > metrics["baseline_harmonic_psnr_masked_db"] + 1
        check_meaning(volumes(tmp_path / "out"), read_array(sample_part))

    def test_it_can_be_described(self) -> None:
        result = maesil("info", embedded_checkpoint(), "--progress", "json").checked()
        (described,) = (event for event in map(json.loads, result.out.splitlines()) if event["event"] == "info")
        assert described["training"], "the data and licence it was trained on are not stated"


def test_demo_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it reads anything."""
    monkeypatch.setattr("MAESILLib.runtime.resources.CHECKPOINT", "Checkpoints/none.safetensors")
    monkeypatch.setattr("MAESILLib.ct.reading.read_volume", lambda *_, **__: pytest.fail("read in vain"))
    assert_refused(maesil("demo", "--output", tmp_path / "out", "--progress", "off"), "none.safetensors is missing")
    assert not (tmp_path / "out").exists()


def test_slabs_of_a_deep_volume_are_filled_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = hu_to_unit(trunk((168, 24, 24)))
    hidden = np.random.default_rng(0).random((21, 3, 3)).repeat(8, 0).repeat(8, 1).repeat(8, 2) < 0.7

    def fills() -> tuple[np.ndarray, np.ndarray]:
        blend = Blend(unit.shape)
        fill = reconstruction._fill(unit, hidden, True, blend, torch.device("cpu"), NEVER)
        return blend.mean(unit), fill

    whole = fills()
    monkeypatch.setattr(reconstruction, "FILL_PLANES", 60)
    for one, other, error in zip(whole, fills(), (2e-3, 0.05), strict=True):
        assert 0 < np.abs(one - other).max() < error
        np.testing.assert_array_equal(one[~hidden], unit[~hidden])
        errors = [np.square(fill - unit)[hidden].mean() for fill in (one, other)]
        assert errors[0] == pytest.approx(errors[1], rel=0.005)
