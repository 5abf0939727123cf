"""Tokens hidden by a label map: exactly those that hold a painted voxel, on any grid, and nothing of them leaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import assert_refused, reconstruct, write_image
from reconstruct_checks import check_meaning, check_patches, run, volumes
from volume_factory import geometry, image_of, rotation, trunk

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.volume import CTVolume, model_grid
from MAESILLib.mae.checkpoint import read_info
from MAESILLib.mae.masking import MaskSpec, hidden_tokens
from MAESILLib.mae.superpatch import partition, token_grid
from MAESILLib.reconstruct.painted import hide_painted
from MAESILLib.reconstruct.plan import Plan, superpatch_masks

SHAPE = (8, 33, 18)
TURNED = rotation(12, -17, 30)
GRIDS: dict[str, dict[str, Any]] = {
    "of the model": {},
    "anisotropic": {"spacing_dhw": (2.5, 0.8, 0.7)},
    "oblique": {"direction": TURNED},
    "oblique and anisotropic": {"spacing_dhw": (3.0, 1.1, 0.8), "direction": TURNED @ np.diag([-1.0, 1.0, -1.0])},
}


def blobs(shape: tuple[int, int, int]) -> np.ndarray:
    """A label map of a box, a thin line and single voxels."""
    labels = np.zeros(shape, np.uint8)
    d, h, w = shape
    labels[d // 3 : d // 2, h // 3 : h // 2, w // 3 : w // 2] = 3
    labels[d // 2, h // 2, ::2] = 1
    labels[0, 0, 0] = labels[-1, -1, -1] = labels[-1, 0, w // 4] = 2
    return labels


def by_points(labels: Any, grid: Geometry) -> np.ndarray:
    """Painted voxels of a grid, point by point through SimpleITK: centres of either kind in voxels of the other."""
    target = image_of(np.zeros(grid.size_dhw, np.uint8), grid)
    for here, there in ((labels, target), (target, labels)):
        for index in np.ndindex(here.GetSize()):
            place = there.TransformPhysicalPointToContinuousIndex(here.TransformIndexToPhysicalPoint(index))
            # on a border between two voxels, the further one; not to be left to rounding
            other = [int(np.floor(round(x, 6) + 0.5)) for x in place]
            if all(0 <= n < size for n, size in zip(other, there.GetSize(), strict=True)):
                source, at = (index, other) if here is labels else (other, index)
                if labels[[int(n) for n in source]]:
                    target[[int(n) for n in at]] = 1
    return sitk.GetArrayFromImage(target) > 0


@pytest.mark.parametrize("painted_on", ["the input", "a finer grid", "a coarser, turned grid"])
@pytest.mark.parametrize("name", GRIDS)
def test_exactly_the_tokens_that_hold_a_painted_voxel(name: str, painted_on: str, checkpoint: Path) -> None:
    own = geometry(SHAPE, **GRIDS[name])
    middle = tuple(own.physical_point([n / 4 for n in SHAPE]))
    where = {
        "the input": own,
        "a finer grid": Geometry((20, 21, 22), (0.6, 0.7, 0.5), middle, own.direction),
        "a coarser, turned grid": Geometry((6, 7, 8), (9.0, 4.0, 6.0), middle, tuple(rotation(40, 10, -20).ravel())),
    }[painted_on]
    labels, info = blobs(where.size_dhw), read_info(checkpoint)
    plan = Plan(MaskSpec("uniform", 0.2, 0.1))
    given = hide_painted(plan, CTVolume(labels, where, "seg", (), "seg.nrrd"), CTVolume(labels, own, "ct"), info)
    grid = model_grid(own).geometry
    expected = by_points(image_of(labels, where), grid)
    assert 0 < expected.mean() < 0.5
    for box in partition(grid.size_dhw, info.model.superpatch_size, info.model.patch_size):
        tokens = token_grid(box.size, info.model.patch_size)
        padded = np.zeros(box.size, bool)
        padded[box.in_box(grid.size_dhw)] = expected[box.in_volume(grid.size_dhw)]
        d, h, w = tokens
        holds = padded.reshape(d, 8, h, 8, w, 8).any((1, 3, 5))
        drawn = hidden_tokens(superpatch_masks(tokens, plan, "ct", box.index), tokens)[0].numpy()
        np.testing.assert_array_equal(hidden_tokens(given.masks["ct"][box.index], tokens)[0].numpy(), drawn | holds)


@pytest.mark.parametrize("options", [("--mask", "none"), ("--overlap", "0.25")])
def test_what_is_painted_is_hidden_and_does_not_leak(
    tmp_path: Path, checkpoint: Path, options: tuple[str, ...]
) -> None:
    """Also a superpatch that is painted over whole; without a mask of its own, patches without paint are visible."""
    hu, labels = trunk((16, 24, 44), 1), np.zeros((16, 24, 44), np.uint8)
    labels[..., :24] = labels[3, 20, 5:40] = 1
    path, seg = tmp_path / "scan.nrrd", tmp_path / "seg.nrrd"
    write_image(path, hu, geometry(hu.shape))
    write_image(seg, labels, geometry(hu.shape), packed=True)
    metrics = run(path, tmp_path / "first", checkpoint, "--mask-file", seg, *options)
    first = volumes(tmp_path / "first")
    check_meaning(first, hu)
    assert metrics["mask"]["painted"] == "seg.nrrd"
    assert metrics["mask"]["mask_voxel_ratio"] == pytest.approx(first["mask"].mean(), abs=1e-6)
    assert metrics["psnr_masked_db"] > 0
    assert (first["mask"][labels > 0] == 1).all()
    if "none" in options:
        check_patches(first["mask"])
        holds = np.pad(labels, ((0, 0), (0, 0), (0, 4))).reshape(2, 8, 3, 8, 6, 8).any((1, 3, 5))
        np.testing.assert_array_equal(first["mask"][::8, ::8, ::8], holds)
        assert metrics["baseline_harmonic_psnr_masked_db"] > 0
    # where superpatches overlap, a voxel without paint may be visible in one of them
    hidden = labels > 0 if "--overlap" in options else first["mask"] == 1
    hu[hidden] = np.random.default_rng(0).permutation(hu[hidden]) // 2 + 200
    write_image(path, hu, geometry(hu.shape))
    run(path, tmp_path / "second", checkpoint, "--mask-file", seg, *options)
    np.testing.assert_array_equal(volumes(tmp_path / "second")["reconstruction"], first["reconstruction"])


def test_what_cannot_be_hidden_is_one_line(tmp_path: Path, checkpoint: Path) -> None:
    hu = trunk((16, 24, 24))
    path, seg = tmp_path / "scan.nrrd", tmp_path / "seg.nrrd"
    write_image(path, hu, geometry(hu.shape))
    empty, whole = np.zeros(hu.shape, np.uint8), np.ones(hu.shape, np.uint8)
    for labels, origin, options, words in (
        (empty, None, (), ("seg.nrrd hides nothing", "every voxel is 0")),
        (whole, (500.0, 0.0, 0.0), (), ("seg.nrrd hides nothing", "in the volume")),
        (whole, None, (), ("hide all of", "lower the ratios")),
        (whole, None, ("--coverage", "complete"), ("complete coverage", "single")),
        (hu + 0.5, None, (), ("not whole numbers", "label map")),
    ):
        write_image(seg, labels, geometry(hu.shape, **({} if origin is None else {"origin_lps": origin})))
        assert_refused(reconstruct(path, tmp_path / "out", checkpoint, "--mask-file", seg, *options), *words)
    assert_refused(reconstruct(tmp_path, tmp_path / "out", checkpoint, "--mask-file", seg), "--mask-file", "one input")
    assert_refused(reconstruct(path, tmp_path / "out", checkpoint, "--mask-file", tmp_path / "no.nrrd"), "no such file")
    assert not (tmp_path / "out").exists()
