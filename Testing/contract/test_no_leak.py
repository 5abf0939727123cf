"""Masks of a reconstruction as seen in its files, and that nothing hidden gets through."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_factory import write_checkpoint, write_ct
from reconstruct_checks import HIGH, KINDS, LOW, check_meaning, check_patches, psnr, run, run_on, volumes
from volume_factory import trunk, unit_of

from MAESILLib.config import HIDING_NAMES
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.mae.harmonic import biharmonic_fill, harmonic_fill
from MAESILLib.mae.masking import MaskSpec, hidden_tokens
from MAESILLib.mae.model import spread, windowed
from MAESILLib.mae.network import Network, Reconstructed
from MAESILLib.mae.superpatch import extract, partition, token_grid
from MAESILLib.reconstruct import reconstruction
from MAESILLib.reconstruct.plan import Plan, masks_of_volume, superpatch_masks


class TestMasks:
    @pytest.mark.parametrize("strategy", HIDING_NAMES)
    @pytest.mark.parametrize("coverage", ["single", "complete"])
    @pytest.mark.parametrize("overlap", ["0", "0.25"])
    def test_every_mask(self, tmp_path: Path, checkpoint: Path, strategy: str, coverage: str, overlap: str) -> None:
        hu = trunk((16, 40, 44))
        options = ("--mask", strategy, "--coverage", coverage, "--overlap", overlap)
        metrics, arrays = run_on(hu, tmp_path, checkpoint, *options)
        check_meaning(arrays, hu)
        assert metrics["mask"]["strategy"] == strategy
        assert metrics["mask"]["overlap"] == float(overlap)
        hidden = arrays["mask"] == 1
        assert metrics["mask"]["mask_voxel_ratio"] == pytest.approx(hidden.mean(), abs=1e-6)
        assert metrics["psnr_masked_db"] == pytest.approx(
            psnr(np.clip(hu, LOW, HIGH)[hidden], arrays["reconstruction"][hidden]), abs=0.005
        )
        if overlap == "0":
            check_patches(arrays["mask"])
        else:
            # no one fill compares with a mask that differs where superpatches overlap
            assert metrics["baseline_harmonic_psnr_masked_db"] is None
            assert len(metrics["superpatches"]) > 1
            assert metrics["mask"]["mask_voxel_ratio"] > metrics["mask"]["mask_ratio"] + 0.02

    def test_the_dual_mask(self, tmp_path: Path, checkpoint: Path) -> None:
        """One superpatch of 4x4x4 tokens: 8 positions kept in plane, the same at every depth, 4 of them at each."""
        metrics, arrays = run_on(trunk((32, 32, 32)), tmp_path, checkpoint)
        visible = arrays["mask"][::8, ::8, ::8] == 0
        assert (visible.sum((1, 2)) == 4).all()
        assert visible.any(0).sum() <= 8
        assert metrics["mask"]["mask_ratio"] == 0.75

    @pytest.mark.parametrize(("plane", "axis", "share"), [("0", "0", 0), ("0.75", "0", 0.75), ("0.9", "0.9", 15 / 16)])
    def test_ratios(self, tmp_path: Path, checkpoint: Path, plane: str, axis: str, share: float) -> None:
        options = ("--plane-ratio", plane, "--axis-ratio", axis)
        metrics, arrays = run_on(trunk((32, 32, 32)), tmp_path, checkpoint, *options)
        assert metrics["mask"]["mask_ratio"] == share
        assert arrays["mask"].mean() == share
        assert (metrics["psnr_masked_db"] is None) == (share == 0)

    def test_same_seed_same_bytes(self, tmp_path: Path, checkpoint: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            write_ct(folder / "scan.nrrd", (16, 32, 40))
        for suffix in ("nrrd", "nii.gz"):
            for folder in (first, second):
                run(folder / "scan.nrrd", folder, checkpoint, "--seed", "5", "--format", suffix)
            for kind in KINDS:
                name = f"{kind}.{suffix}"
                assert (first / name).read_bytes() == (second / name).read_bytes(), kind

    def test_seed_and_name_decide_the_mask(self, tmp_path: Path, checkpoint: Path) -> None:
        """Two scans of a data set do not share their masks: the volume's name is part of the seed."""
        path = write_ct(tmp_path / "scan.nrrd", (16, 32, 40))
        renamed = shutil.copy(path, tmp_path / "other.nrrd")
        masks = []
        for source, seed in ((path, 0), (path, 1), (renamed, 0), (path, -1), (path, 2**63), (path, 10**30)):
            metrics = run(Path(source), tmp_path / "out", checkpoint, "--seed", seed)
            assert metrics["mask"]["seed"] == seed
            masks.append(volumes(tmp_path / "out")["mask"])
        assert (masks[0] != masks[1]).any()
        assert (masks[0] != masks[2]).any()


class TestNoLeak:
    """What was hidden must not influence what is predicted there."""

    @pytest.mark.parametrize("strategy", HIDING_NAMES)
    def test_hidden_voxels_through_files(self, tmp_path: Path, checkpoint: Path, strategy: str) -> None:
        hu = trunk((16, 25, 41), 1)
        _, first = run_on(hu, tmp_path, checkpoint, "--mask", strategy)
        hidden = first["mask"] == 1
        changed = hu.copy()
        changed[hidden] = np.random.default_rng(0).permutation(hu[hidden]) // 2 + 200
        _, second = run_on(changed, tmp_path, checkpoint, "--mask", strategy)
        for kind in ("mask", "masked", "reconstruction", "composite"):
            np.testing.assert_array_equal(second[kind], first[kind], err_msg=kind)
        # the test can fail: what is visible does matter
        changed[~hidden] += 50
        _, third = run_on(changed, tmp_path, checkpoint, "--mask", strategy)
        assert (third["reconstruction"][hidden] != first["reconstruction"][hidden]).mean() > 0.5

    @pytest.mark.parametrize("coverage", ["single", "complete"])
    @pytest.mark.parametrize("overlap", [0.0, 0.25])
    def test_a_voxel_does_not_know_itself(self, checkpoint: Path, coverage: str, overlap: float) -> None:
        """Whatever the coverage, no voxel's own value reaches its own prediction, unless it is auto-encoded."""
        model, _ = load_checkpoint(checkpoint)
        unit = unit_of(trunk((16, 40, 41)))
        plan = Plan(MaskSpec("dual"), coverage, overlap)
        before = reconstruction.reconstruct(model, unit, plan, name="scan")
        hidden = np.ones(unit.shape, bool) if coverage == "complete" else before.hidden
        rng = np.random.default_rng(1)
        for _ in range(4):
            place = tuple(rng.choice(np.argwhere(hidden)))
            changed = unit.copy()
            changed[place] = 1 - changed[place]
            after = reconstruction.reconstruct(model, changed, plan, name="scan")
            assert after.prediction[place] == before.prediction[place]

    def test_a_patch_of_a_complete_cover(self, checkpoint: Path) -> None:
        model, _ = load_checkpoint(checkpoint)
        unit = unit_of(trunk((32, 40, 41)))
        plan = Plan(MaskSpec("uniform", 0.3, 0.2), "complete")
        before = reconstruction.reconstruct(model, unit, plan, name="scan").prediction
        for corner in ((0, 0, 0), (8, 16, 24), (24, 32, 40)):
            patch = tuple(slice(c, c + 8) for c in corner)
            changed = unit.copy()
            changed[patch] = np.random.default_rng(0).random(changed[patch].shape)
            after = reconstruction.reconstruct(model, changed, plan, name="scan").prediction
            np.testing.assert_array_equal(after[patch], before[patch])
            assert (after != before).any(), "visible elsewhere, it should matter there"

    def test_a_complete_cover_covers(self) -> None:
        for strategy in HIDING_NAMES:
            plan = Plan(MaskSpec(strategy, 0.4, 0.4), "complete", seed=3)
            boxes = partition((40, 33, 50), (32, 32, 32), (8, 8, 8))
            drawn = [superpatch_masks(token_grid(box.size, (8, 8, 8)), plan, "scan", box.index) for box in boxes]
            masks = list(masks_of_volume((40, 33, 50), boxes, drawn, (8, 8, 8)))
            assert np.logical_or.reduce(masks).all()


class TestPasses:
    """A superpatch's prediction against the network asked directly, without the completion, which needs a fill."""

    SIZE = (32, 32, 32)
    GRID = (4, 4, 4)

    @pytest.fixture
    def model(self, tmp_path: Path) -> Network:
        return load_checkpoint(write_checkpoint(tmp_path / "plain.safetensors", parts=("readout",)))[0]

    @pytest.fixture
    def unit(self) -> np.ndarray:
        return unit_of(trunk(self.SIZE))

    def ask(self, model: Network, unit: np.ndarray, visible: torch.Tensor) -> Reconstructed:
        image = windowed(torch.from_numpy(unit)[None, None] * (HIGH - LOW) + LOW, model.windows_hu)
        with torch.inference_mode():
            return model.reconstruct(image, visible[None], None)

    def place(self, volume: np.ndarray, tokens: torch.Tensor, patches: torch.Tensor) -> None:
        for token, patch in zip(tokens.tolist(), patches.clamp(0, 1).numpy(), strict=True):
            d, h, w = (8 * n for n in np.unravel_index(token, self.GRID))
            volume[d : d + 8, h : h + 8, w : w + 8] += patch.reshape(8, 8, 8)

    def test_single(self, model: Network, unit: np.ndarray) -> None:
        plan = Plan(MaskSpec("uniform"))
        (visible,) = superpatch_masks(self.GRID, plan, "scan", 0)
        out = self.ask(model, unit, visible)
        expected = np.zeros(self.SIZE)
        self.place(expected, out.hidden[0], out.hidden_patches[0])
        self.place(expected, visible, out.visible_patches[0])
        made = reconstruction.reconstruct(model, unit, plan, name="scan")
        np.testing.assert_allclose(made.prediction, expected, atol=1e-6)
        assert made.hidden.sum() == 512 * len(out.hidden[0])
        assert made.mask_ratio == len(out.hidden[0]) / 64

    def test_complete(self, model: Network, unit: np.ndarray) -> None:
        """Three masks or more: a patch hidden in several is the mean of those passes."""
        plan = Plan(MaskSpec("uniform", 0.3, 0.2), "complete")
        masks = superpatch_masks(self.GRID, plan, "scan", 0)
        assert len(masks) >= 3
        total, count = np.zeros(self.SIZE), np.zeros(self.SIZE)
        for visible in masks:
            out = self.ask(model, unit, visible)
            self.place(total, out.hidden[0], out.hidden_patches[0])
            self.place(count, out.hidden[0], torch.ones_like(out.hidden_patches[0]))
        assert count.min() >= 1
        made = reconstruction.reconstruct(model, unit, plan, name="scan")
        np.testing.assert_allclose(made.prediction, total / count, atol=1e-6)


class TestFill:
    """The biharmonic fill that the network is given, and the harmonic one that stands next to it."""

    SHAPE = (40, 32, 61)

    @pytest.fixture
    def given(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Network, list[torch.Tensor | None]]:
        model, given = load_checkpoint(checkpoint)[0], []
        reconstruct = Network.reconstruct

        def recorded(self: Network, image: torch.Tensor, visible: torch.Tensor, filled: torch.Tensor | None, **k: bool):
            given.append(filled)
            return reconstruct(self, image, visible, filled, **k)

        monkeypatch.setattr(Network, "reconstruct", recorded)
        return model, given

    def masks(self, model: Network, plan: Plan) -> list[torch.Tensor]:
        size, patch = model.config.superpatch_size, model.config.patch_size
        boxes = partition(self.SHAPE, size, patch, plan.overlap)
        return [superpatch_masks(token_grid(box.size, patch), plan, "scan", box.index) for box in boxes]

    def fill(self, unit: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        image, known = torch.from_numpy(unit), torch.from_numpy(~hidden)
        return harmonic_fill(image[None, None], known[None, None])[0, 0].numpy()

    def plate(self, unit: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        harmonic, known = torch.from_numpy(self.fill(unit, hidden)), torch.from_numpy(~hidden)
        return biharmonic_fill(harmonic[None, None], known[None, None])[0, 0].numpy()

    @pytest.mark.parametrize("coverage", ["single", "complete"])
    def test_it_is_that_of_the_whole_volume_and_solved_once_a_pass(
        self, given: tuple[Network, list[torch.Tensor]], coverage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, seen = given
        solved = []

        def counted(*args: object, **options: object) -> torch.Tensor:
            solved.append(1)
            return harmonic_fill(*args, **options)

        monkeypatch.setattr(reconstruction, "harmonic_fill", counted)
        unit = np.random.default_rng(0).random(self.SHAPE, np.float32)
        plan = Plan(MaskSpec("uniform", 0.3, 0.2), coverage)
        made = reconstruction.reconstruct(model, unit, plan, name="scan")
        size, patch = model.config.superpatch_size, model.config.patch_size
        boxes = partition(self.SHAPE, size, patch)
        masks = list(masks_of_volume(self.SHAPE, boxes, self.masks(model, plan), patch))
        assert len(boxes) > 1
        assert len(solved) == len(masks) == made.passes == (1 if coverage == "single" else len(masks))
        total, count, fills = np.zeros(self.SHAPE), np.zeros(self.SHAPE), []
        for mask in masks:
            fills.append(self.fill(unit, mask))
            total += fills[-1] * mask
            count += mask
        expected = np.where(count > 0, total / np.maximum(count, 1), unit)
        np.testing.assert_allclose(made.filled, expected, atol=1e-6)
        # the boxes of the first pass come first, those of one size together
        first = [filled[0, 0].numpy() for filled in seen[: len(boxes)]]
        for box in sorted(boxes, key=lambda box: box.size != boxes[0].size):
            np.testing.assert_allclose(first.pop(0), extract(made.biharmonic, box), atol=1e-6)
        np.testing.assert_allclose(made.biharmonic, self.plate(unit, masks[0]), atol=1e-6)

    def test_where_superpatches_overlap_each_has_its_own(self, given: tuple[Network, list[torch.Tensor]]) -> None:
        model, seen = given
        unit = np.random.default_rng(0).random(self.SHAPE, np.float32)
        plan = Plan(MaskSpec("dual"), overlap=0.25)
        made = reconstruction.reconstruct(model, unit, plan, name="scan")
        assert made.filled is None
        boxes = partition(self.SHAPE, model.config.superpatch_size, model.config.patch_size, plan.overlap)
        for box, (visible,), filled in zip(boxes, self.masks(model, plan), seen, strict=True):
            known = ~spread(hidden_tokens(visible[None], token_grid(box.size, (8, 8, 8))), (8, 8, 8))[0, 0].numpy()
            is_valid = np.zeros(box.size, bool)
            is_valid[box.in_box(self.SHAPE)] = True
            expected = self.plate(extract(unit, box), ~(known & is_valid))
            np.testing.assert_allclose(filled[0, 0].numpy(), expected, atol=1e-6)

    def test_nothing_hidden_needs_none(self, given: tuple[Network, list[torch.Tensor]]) -> None:
        model, seen = given
        made = reconstruction.reconstruct(model, np.zeros(self.SHAPE, np.float32), Plan(MaskSpec("none")), name="scan")
        assert made.filled is None
        assert set(seen) == {None}
