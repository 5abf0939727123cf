"""The parts of a probe: windows, features, ridge and AUROC, choices across patients, the bootstrap, thresholds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe_factory import write_encoder, write_points
from scipy import fft, ndimage

from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.probe import fit
from MAESILLib.probe.encoders import load_frozen, with_random_weights
from MAESILLib.probe.features import BANDS_HU, encoder_blocks, hand_made, position, raw_patch, tokens_of
from MAESILLib.probe.few_labels import best_threshold
from MAESILLib.probe.fit import (
    Labels,
    across_patients,
    auroc,
    aurocs,
    choose,
    interval,
    labels_of,
    macro,
    recalls,
    ridge,
)
from MAESILLib.probe.points import read_points, stratified
from MAESILLib.probe.reduced import reduce_points, reduced_probe
from MAESILLib.probe.windows import cut, tiles, token_shares, window_of_point

SHAPE = (21, 40, 33)


class TestWindows:
    @pytest.mark.parametrize("size", [16, 64])
    @pytest.mark.parametrize("kji", [(0, 0, 0), (20, 39, 32), (10, 3, 31), (4, 20, 12)])
    def test_a_point_is_the_centre_of_its_token(self, kji: tuple[int, int, int], size: int) -> None:
        volume = np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16)
        for number, draw in itertools.product(range(5), range(3)):
            start, place = window_of_point(np.array(kji), number, draw, size)
            window = cut(volume, start, size)
            assert window.shape == (size,) * 3
            assert window[tuple(8 * place + 4)] == volume[kji]
            # voxels beyond the volume repeat its edge
            index = (np.clip(np.arange(first, first + size), 0, n - 1) for first, n in zip(start, SHAPE, strict=True))
            assert (window == volume[np.ix_(*index)]).all()

    def test_places_are_drawn_from_number_and_draw(self) -> None:
        for number, draw in ((0, 0), (7, 2), (1816, 1)):
            _, place = window_of_point(np.array([9, 9, 9]), number, draw, 64)
            assert (place == np.random.default_rng([number, draw]).integers(0, 8, 3)).all()

    def test_tiles_cover_every_voxel_once(self) -> None:
        starts = tiles(SHAPE, 16, [0, 3])
        assert (starts > -16).all()
        covered = np.zeros(SHAPE, int)
        for start in starts:
            d, h, w = (slice(max(0, a), a + 16) for a in start)
            covered[d, h, w] += 1
        assert (covered == 1).all()
        assert (tiles(SHAPE, 16, [0, 3]) == starts).all()
        assert len({tuple(tiles(SHAPE, 16, [0, draw])[0]) for draw in range(4)}) > 1

    def test_shares_are_those_of_tokens(self) -> None:
        mask = np.random.default_rng(0).random((16, 8, 24)) < 0.4
        expected = [mask[d : d + 8, :, w : w + 8].mean() for d in (0, 8) for w in (0, 8, 16)]
        np.testing.assert_allclose(token_shares(mask), expected)


class TestFeatures:
    HU = np.random.default_rng(0).integers(-1200, 3100, (2, 16, 32, 24)).astype(np.int16)

    def cubes(self) -> np.ndarray:
        x = self.HU.reshape(2, 2, 8, 4, 8, 3, 8).transpose(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(2, 24, 8, 8, 8).astype(float)

    def test_raw_patch(self) -> None:
        (found,) = raw_patch(torch.from_numpy(self.HU).float())
        expected = np.clip((self.cubes() + 1000) / 2000, 0, 1).reshape(2, 24, 512)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_hand_made_is_scipys(self) -> None:
        (found,) = hand_made(torch.from_numpy(self.HU).float())
        cubes = self.cubes()
        low = fft.dctn(np.clip((cubes + 1000) / 2000, 0, 1), axes=(2, 3, 4), norm="ortho")[:, :, :4, :4, :4]
        bands = [((cubes >= a) & (cubes < b)).mean((2, 3, 4)) for a, b in itertools.pairwise(BANDS_HU)]
        shares = np.stack(bands, 2).reshape(2, 2, 4, 3, 13)
        around = [ndimage.uniform_filter(shares, (1, n, n, n, 1), mode="nearest") for n in (3, 7, 17)]
        expected = [low.reshape(2, 24, 64), *(x.reshape(2, 24, 13) for x in (shares, *around))]
        np.testing.assert_allclose(found, np.concatenate(expected, 2), atol=1e-4)

    def test_position_is_of_the_place_alone(self) -> None:
        start, place = np.array([[-8, 0, 8], [0, 8, 16]]), np.array([[1, 1, 0], [0, 0, 1]])
        found = position(start, place, (16, 32, 64), 16)
        assert found.shape == (2, 128)
        # centres at (4, 12, 12) and (4, 12, 28)
        volume, window = found[:, :64].reshape(2, 4, 4, 4), found[:, 64:].reshape(2, 4, 4, 4)
        np.testing.assert_allclose(volume[:, 1, 0, 0], np.cos(np.pi * np.array([4, 4]) / 16), atol=1e-6)
        np.testing.assert_allclose(volume[:, 0, 2, 0], np.cos(2 * np.pi * np.array([12, 12]) / 32), atol=1e-6)
        np.testing.assert_allclose(volume[:, 0, 0, 1], np.cos(np.pi * np.array([12, 28]) / 64), atol=1e-6)
        np.testing.assert_allclose(window[:, 0, 0, 1], np.cos(np.pi * np.array([0.25, 0.75])), atol=1e-6)

    def test_tokens_are_taken_from_their_windows(self) -> None:
        window, place = np.array([1, 0, 1]), np.array([[0, 0, 0], [1, 2, 1], [1, 3, 2]])
        (found,) = tokens_of(raw_patch, (1,), self.HU, window, place, "cpu")
        every = raw_patch(torch.from_numpy(self.HU).float())[0].numpy()
        for row, (n, (d, h, w)) in enumerate(zip(window, place, strict=True)):
            assert (found[row] == every[n, (d * 4 + h) * 3 + w]).all()

    def test_blocks(self) -> None:
        assert encoder_blocks(7) == (3, 5, 7)
        assert encoder_blocks(8) == (4, 6, 8)
        assert encoder_blocks(1) == (1,)


class TestEncoders:
    HU = torch.from_numpy(np.random.default_rng(0).integers(-1000, 1000, (2, 16, 24, 32))).float()

    def test_the_networks_own_tokens(self, tmp_path: Path) -> None:
        path = write_encoder(tmp_path / "c.safetensors")
        network, info = load_checkpoint(path)
        windows = [((self.HU - low) / (high - low)).clamp(0, 1) for low, high in info.preprocessing.windows_hu]
        with torch.inference_mode():
            expected = network.core.encoder(torch.stack(windows, 1), torch.arange(24).expand(2, -1))
            found = load_frozen(path).encode(self.HU)
        assert len(found) == 3
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

    def test_random_weights_are_drawn_anew(self, tmp_path: Path) -> None:
        encoder = load_frozen(write_encoder(tmp_path / "c.safetensors")).encode
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        first, again, other = (with_random_weights(encoder, seed).state_dict() for seed in (0, 0, 1))
        for name, value in before.items():
            assert torch.equal(encoder.state_dict()[name], value)
            assert torch.equal(first[name], again[name])
            if value.ndim == 2:
                assert first[name].abs().max() <= (6 / sum(value.shape)) ** 0.5
                assert not torch.equal(first[name], value)
                assert not torch.equal(first[name], other[name])
            else:
                assert (first[name] == (1 if name.endswith("weight") else 0)).all()


def made(patients: int = 7, each: int = 12, seed: int = 0, signal: float = 1.5) -> tuple[dict[int, Any], Labels]:
    """Features of two blocks (3, N, 5), the second informative, and labels of three structures."""
    rng = np.random.default_rng(seed)
    structure = np.tile(np.repeat(["a", "b", "c"], each // 3), patients)
    patient = np.repeat([f"p{n}" for n in range(patients)], each)
    blocks = {1: rng.normal(size=(3, len(structure), 5)), 2: rng.normal(size=(3, len(structure), 5))}
    blocks[2][..., 0] += signal * (structure == "a")
    blocks[2][..., 1] += signal * (structure == "b")
    return {key: x.astype(np.float32) for key, x in blocks.items()}, labels_of(structure, patient)


class TestFit:
    @pytest.mark.parametrize("count", [90, 5])
    def test_ridge_is_scikit_learns(self, count: int) -> None:
        linear_model = pytest.importorskip("sklearn.linear_model")
        preprocessing = pytest.importorskip("sklearn.preprocessing")
        rng = np.random.default_rng(0)
        x = (rng.normal(3, 2, (count, 6)) * [1, 10, 100, 1, 1, 0]).astype(np.float32)
        y, w = rng.normal(size=(count, 4)), rng.random(count) + 0.1
        new = rng.normal(3, 2, (20, 6)) * [1, 10, 100, 1, 1, 0]
        scaler = preprocessing.StandardScaler().fit(x.astype(float))
        for alpha, (coefficients, intercept) in zip((1, 100), ridge(x, y, w, (1, 100)), strict=True):
            model = linear_model.Ridge(alpha=alpha).fit(scaler.transform(x.astype(float)), y, w / w.mean())
            expected = model.predict(scaler.transform(new))
            np.testing.assert_allclose(new @ coefficients + intercept, expected, atol=1e-6)

    def test_auroc_is_scikit_learns(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(0)
        for _ in range(20):
            positive, scores = rng.random(40) < 0.3, rng.integers(0, 9, 40).astype(float)
            assert auroc(positive, scores) == pytest.approx(metrics.roc_auc_score(positive, scores))

    def test_metrics_are_within_patients_then_over_patients_then_over_structures(self) -> None:
        structure = np.array(["a", "a", "b", "a", "b", "b", "a", "b"])
        labels = labels_of(structure, np.array(["p", "p", "p", "q", "q", "r", "s", "s"]))
        scores = np.array([[3, 0], [1, 0], [2, 1], [0, 1], [1, 0], [0, 5], [9, 0], [2, 3]], float)
        found = aurocs(scores, labels, np.ones(8, bool))
        # r shows b alone
        np.testing.assert_array_equal(found, [[0.5, 1], [0, 0], [np.nan, np.nan], [1, 1]])
        assert macro(found) == pytest.approx((0.5 + 2 / 3) / 2)
        np.testing.assert_array_equal(recalls(scores, labels), [[1, 0], [0, 0], [np.nan, 1], [1, 1]])

    def test_a_structure_of_two_patients_is_left_out_but_counts_as_other_tissue(self) -> None:
        structure = np.array(["a", "b", "x"] * 3)
        structure[-1] = "b"
        labels = labels_of(structure, np.repeat(["p", "q", "r"], 3))
        assert labels.structures == ("a", "b")
        assert labels.structure.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 1]
        assert fit.balanced(labels.structure, 2) == pytest.approx([1 / 3, 1 / 4, 2 / 7] * 2 + [1 / 3, 1 / 4, 1 / 4])

    def test_folds_are_the_pilots(self) -> None:
        patients = sorted(f"p{n}" for n in range(16))
        labels = labels_of(np.array(["a"] * 16), np.array(patients))
        order = np.random.default_rng(0).permutation(patients)
        assert {p: int(f) for p, f in zip(patients, labels.fold, strict=True)} == {
            p: i % 5 for i, p in enumerate(order)
        }

    def test_no_patient_is_fitted_on_and_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        blocks, labels = made()
        seen = []

        def watched(draws: Any, given: Labels, train: Any, test: Any, alphas: Any) -> Any:
            seen.append((set(given.patient[train]), set(given.patient[test])))
            return fit_scores(draws, given, train, test, alphas)

        fit_scores = fit.held_out_scores
        monkeypatch.setattr(fit, "held_out_scores", watched)
        scores, _ = across_patients(blocks, labels)
        assert len(seen) == 5 * (2 * 4 + 1)
        assert all(train and test and not train & test for train, test in seen)
        assert macro(aurocs(scores, labels, np.ones(len(scores), bool))) > 0.65

    def test_labels_across_patients_do_not_leak(self) -> None:
        # a feature that is the label within each patient, with a sign of the patient's own
        blocks, labels = made(patients=8, signal=0)
        sign = np.where(labels.patient % 2, 1, -1)
        blocks[2][..., 2] = 9 * sign * (labels.structure == 0)
        scores, _ = across_patients(blocks, labels)
        assert np.nanmean(aurocs(scores, labels, np.ones(len(scores), bool))[:, 0]) < 0.75

    def test_choices_never_read_the_held_out_fold(self) -> None:
        blocks, labels = made()
        rng = np.random.default_rng(5)
        for fold in range(5):
            held_out = labels.fold == fold
            structure = labels.structure.copy()
            structure[held_out] = rng.permutation(structure[held_out])
            other = Labels(labels.structures, labels.patients, structure, labels.patient, labels.fold)
            changed = {key: np.where(held_out[:, None], 1e3 * rng.normal(size=x.shape), x) for key, x in blocks.items()}
            chosen = choose(blocks, labels, fold)
            assert chosen[0] == 2
            assert choose({key: x.astype(np.float32) for key, x in changed.items()}, other, fold) == chosen

    def test_a_single_draw_is_fitted_and_measured(self) -> None:
        blocks, labels = made()
        train = labels.fold != 0
        (found,) = fit.held_out_scores(blocks[2][:1], labels, train, ~train, [10.0])
        (same,) = fit.held_out_scores(blocks[2][[0, 0]], labels, train, ~train, [10.0])
        np.testing.assert_allclose(found, same)
        assert found.shape == ((~train).sum(), 3)


class TestInterval:
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        first = rng.random((6, 4))
        first[[0, 1, 2, 5], [0, 1, 2, 3]] = np.nan
        return first, first - rng.normal(0.1, 0.05, first.shape)

    def test_it_resamples_patients_in_pairs(self) -> None:
        first, second = self.tables()
        assert interval([first, first]) == {"low": 0, "high": 0}
        shifted = interval([first, first - 0.25])
        assert shifted["low"] == pytest.approx(0.25)
        assert shifted["high"] == pytest.approx(0.25)
        paired, single = interval([first, second]), interval([first])
        assert 0 < paired["low"] < macro(first) - macro(second) < paired["high"]
        assert paired["high"] - paired["low"] < single["high"] - single["low"]
        assert interval([first, second], seed=0) == paired

    def test_it_is_the_percentile_bootstraps(self) -> None:
        first, second = self.tables()
        drawn = np.random.default_rng(0).integers(0, 6, (fit.RESAMPLES, 6))
        values = [macro(first[rows]) - macro(second[rows]) for rows in drawn[:400]]
        low, high = np.quantile(values, [0.025, 0.975])
        found = interval([first, second])
        assert found["low"] == pytest.approx(low, abs=0.01)
        assert found["high"] == pytest.approx(high, abs=0.01)

    def test_a_single_patient_has_none(self) -> None:
        assert interval([np.array([[0.5, 0.7], [np.nan, np.nan]])]) == {"low": None, "high": None}


def test_the_threshold_with_the_highest_dice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, truth, weight = rng.integers(0, 6, 15).astype(float), rng.random(15) < 0.4, rng.random(15) + 0.2
        truth[0] = True
        dice, threshold = best_threshold(scores, truth, weight)
        brute = {
            t: 2 * (weight * truth * (scores > t)).sum() / ((weight * (scores > t)).sum() + (weight * truth).sum())
            for t in np.arange(-0.5, 6)
        }
        assert dice == pytest.approx(max(brute.values()))
        predicted = scores > threshold
        assert 2 * (weight * truth * predicted).sum() / ((weight * predicted).sum() + (weight * truth).sum()) == (
            pytest.approx(dice)
        )


class TestReduced:
    def test_points_are_spread_over_structures_and_patients(self, tmp_path: Path) -> None:
        points = read_points(write_points(tmp_path))
        chosen = stratified(points, 40)
        counts = {
            (s, p): int(((chosen.structure == s) & (chosen.patient == p)).sum())
            for s, p in set(zip(points.structure, points.patient, strict=True))
        }
        assert sum(counts.values()) == 40
        assert set(counts.values()) == {2, 3}
        assert len(stratified(points, 10_000).number) == len(points.number)
        assert (stratified(points, 40).number == chosen.number).all()
        assert (stratified(points, 40, seed=1).number != chosen.number).any()

    def test_it_measures_what_an_encoder_knows(self, tmp_path: Path) -> None:
        points = reduce_points(read_points(write_points(tmp_path)), 16, most=60)
        assert points.hu.shape == (60, 16, 16, 16)
        assert points.hu.dtype == np.int16
        found = reduced_probe(raw_patch, points)
        assert set(found) == {"auroc", "balanced_accuracy", "auroc_block_1"}
        assert found["auroc"] > 0.75
        blind = reduced_probe(lambda hu: [torch.zeros(len(hu), 8, 4)] * 4, points)
        assert blind["auroc_block_2"] == blind["auroc_block_4"] == 0.5

    def test_it_changes_nothing_of_a_model_in_training(self, tmp_path: Path) -> None:
        points = reduce_points(read_points(write_points(tmp_path)), 16, most=30)
        encoder = load_frozen(write_encoder(tmp_path / "c.safetensors")).encode.train()
        found = reduced_probe(encoder, points)
        assert found == reduced_probe(encoder, points)
        assert {"auroc_block_1", "auroc_block_3"} < set(found)
        assert encoder.training
        encoder(torch.zeros(1, 16, 16, 16))[-1].sum().backward()
