"""The parts of a probe: windows, features, ridge and AUROC, choices across patients, the bootstrap, thresholds."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe_factory import write_phantoms
from scipy import fft, ndimage

from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.probe import fit, table
from MAESILLib.probe.features import (
    BANDS_HU,
    ENCODER,
    RAW,
    Tools,
    blocks_of,
    hand_made,
    load_frozen,
    position,
    raw_patch,
    tokens_of,
    with_random_weights,
)
from MAESILLib.probe.few_labels import best_threshold
from MAESILLib.probe.fit import (
    SOFT_TISSUE,
    Labels,
    across_patients,
    auroc,
    choose,
    interval,
    labels_of,
    macro,
    ridge,
    within_patients,
)
from MAESILLib.probe.points import Point, read_hu, read_points, stratified, without_side
from MAESILLib.probe.probe import describe_points
from MAESILLib.probe.reduced import reduce_points, reduced_probe
from MAESILLib.probe.windows import cut, tiles, token_shares, window_of_point
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

SHAPE = (21, 40, 33)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    return read_points(write_phantoms(tmp_path_factory.mktemp("phantoms")) / "points.csv")


class TestWindows:
    @pytest.mark.parametrize("size", [16, 64])
    @pytest.mark.parametrize("kji", [(0, 0, 0), (20, 39, 32), (10, 3, 31), (4, 20, 12)])
    def test_a_point_is_the_centre_of_its_token_at_a_random_place(self, kji: tuple[int, int, int], size: int) -> None:
        volume = np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16)
        for number, draw in itertools.product((0, 7, 1816), range(3)):
            start, place = window_of_point(np.array(kji), number, draw, size)
            assert (place == np.random.default_rng([number, draw]).integers(0, size // 8, 3)).all()
            window = cut(volume, start, size)
            assert window.shape == (size,) * 3
            assert window[tuple(8 * place + 4)] == volume[kji]
            # voxels beyond the volume repeat its edge
            index = (np.clip(np.arange(first, first + size), 0, n - 1) for first, n in zip(start, SHAPE, strict=True))
            assert (window == volume[np.ix_(*index)]).all()

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

    def test_image_features_are_scipys(self) -> None:
        cubes = (
            self.HU.reshape(2, 2, 8, 4, 8, 3, 8).transpose(0, 1, 3, 5, 2, 4, 6).reshape(2, 24, 8, 8, 8).astype(float)
        )
        intensities = np.clip((cubes + 1000.0) / 2000, 0, 1)
        (found,) = raw_patch(torch.from_numpy(self.HU).float())
        np.testing.assert_allclose(found, intensities.reshape(2, 24, 512), atol=1e-6)

        (found,) = hand_made(torch.from_numpy(self.HU).float())
        low = fft.dctn(intensities, axes=(2, 3, 4), norm="ortho")[:, :, :4, :4, :4]
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
        for cosines, angle in (
            (volume[:, 1, 0, 0], np.array([4, 4]) / 16),
            (volume[:, 0, 2, 0], 2 * np.array([12, 12]) / 32),
            (volume[:, 0, 0, 1], np.array([12, 28]) / 64),
            (window[:, 0, 0, 1], np.array([0.25, 0.75])),
        ):
            np.testing.assert_allclose(cosines, np.cos(np.pi * angle), atol=1e-6)

    def test_tokens_are_taken_from_their_windows(self) -> None:
        window, place = np.array([1, 0, 1]), np.array([[0, 0, 0], [1, 2, 1], [1, 3, 2]])
        found = tokens_of(raw_patch, self.HU, window, place, "cpu")
        assert list(found) == [1]
        every = raw_patch(torch.from_numpy(self.HU).float())[0].numpy()
        for row, (n, (d, h, w)) in enumerate(zip(window, place, strict=True)):
            assert (found[1][row] == every[n, (d * 4 + h) * 3 + w]).all()
        assert [blocks_of(depth) for depth in (7, 8, 1)] == [[3, 5, 7], [4, 6, 8], [1]]


class TestEncoders:
    def test_the_networks_own_tokens(self, checkpoint: Path) -> None:
        hu = torch.from_numpy(np.random.default_rng(0).integers(-1000, 1000, (2, 16, 24, 32))).float()
        network, info = load_checkpoint(checkpoint)
        windows = [((hu - low) / (high - low)).clamp(0, 1) for low, high in info.preprocessing.windows_hu]
        with torch.inference_mode():
            expected = network.core.encoder(torch.stack(windows, 1), torch.arange(24).expand(2, -1))
            found = load_frozen(checkpoint)[0](hu)
        assert len(found) == 3
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

    def test_random_weights_are_drawn_anew(self, checkpoint: Path) -> None:
        encode, _ = load_frozen(checkpoint)
        before = {name: value.clone() for name, value in encode.state_dict().items()}
        first, again, other = (with_random_weights(encode, seed).state_dict() for seed in (0, 0, 1))
        for name, value in before.items():
            assert torch.equal(encode.state_dict()[name], value)
            assert torch.equal(first[name], again[name])
            if value.ndim == 2:
                assert first[name].abs().max() <= (6 / sum(value.shape)) ** 0.5
                assert not torch.equal(first[name], value)
                assert not torch.equal(first[name], other[name])
            else:
                assert (first[name] == (1 if name.endswith("weight") else 0)).all()


def made(patients: int = 7, signal: float = 1.5) -> tuple[dict[int, Any], Labels]:
    """Features of two blocks (3, N, 5), the second informative, and labels of three structures."""
    rng = np.random.default_rng(0)
    structure = np.tile(np.repeat(["a", "b", "c"], 4), patients)
    blocks = {block: rng.normal(size=(3, len(structure), 5)).astype(np.float32) for block in (1, 2)}
    blocks[2][..., 0] += signal * (structure == "a")
    blocks[2][..., 1] += signal * (structure == "b")
    return blocks, labels_of(structure, np.repeat([f"p{n}" for n in range(patients)], 12))


class TestFit:
    @pytest.mark.parametrize("count", [90, 5])
    def test_ridge_is_scikit_learns(self, count: int) -> None:
        linear_model = pytest.importorskip("sklearn.linear_model")
        preprocessing = pytest.importorskip("sklearn.preprocessing")
        rng = np.random.default_rng(0)
        x, new = ((rng.normal(3, 2, (n, 6)) * [1, 10, 100, 1, 1, 0]).astype(np.float32) for n in (count, 20))
        y, w = rng.normal(size=(count, 4)), rng.random(count) + 0.1
        scaler = preprocessing.StandardScaler().fit(x.astype(float))
        for alpha, (coefficients, intercept) in zip((1, 100), ridge(x, y, w, (1, 100)), strict=True):
            model = linear_model.Ridge(alpha=alpha).fit(scaler.transform(x.astype(float)), y, w / w.mean())
            expected = model.predict(scaler.transform(new.astype(float)))
            np.testing.assert_allclose(new @ coefficients + intercept, expected, atol=1e-6)

    def test_auroc_is_scikit_learns(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(0)
        for _ in range(20):
            positive, scores = rng.random(40) < 0.3, rng.integers(0, 9, 40).astype(float)
            assert auroc(positive, scores) == pytest.approx(metrics.roc_auc_score(positive, scores))

    def test_metrics_are_within_patients_then_over_patients_then_over_structures(self) -> None:
        labels = labels_of(list("aababbab"), list("pppqqrss"))
        scores = np.array([[3, 0], [1, 0], [2, 1], [0, 1], [1, 0], [0, 5], [9, 0], [2, 3]], float)
        areas, recalls = within_patients(scores, labels)
        # r shows b alone
        np.testing.assert_array_equal(areas, [[0.5, 1], [0, 0], [np.nan, np.nan], [1, 1]])
        assert macro(areas) == pytest.approx((0.5 + 2 / 3) / 2)
        np.testing.assert_array_equal(recalls, [[1, 0], [0, 0], [np.nan, 1], [1, 1]])

    def test_a_structure_of_two_patients_is_left_out_but_counts_as_other_tissue(self) -> None:
        labels = labels_of(list("abxabxabb"), list("pppqqqrrr"))
        assert labels.structures == ("a", "b")
        assert labels.structure.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 1]
        assert fit.balanced(labels.structure, 2) == pytest.approx([1 / 3, 1 / 4, 2 / 7] * 2 + [1 / 3, 1 / 4, 1 / 4])

    def test_folds_are_the_pilots(self) -> None:
        patients = sorted(f"p{n}" for n in range(16))
        fold = labels_of(["a"] * 16, patients).fold
        order = np.random.default_rng(0).permutation(patients)
        assert dict(zip(patients, fold, strict=True)) == {patient: n % 5 for n, patient in enumerate(order)}

    def test_no_patient_is_fitted_on_and_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        blocks, labels = made()
        seen = []

        def watched(draws: Any, given: Labels, train: Any, test: Any, alphas: Any) -> Any:
            seen.append((set(given.patient[train]), set(given.patient[test])))
            return fit_scores(draws, given, train, test, alphas)

        fit_scores = fit.held_out_scores
        monkeypatch.setattr(fit, "held_out_scores", watched)
        scores = across_patients(blocks, labels)
        assert len(seen) == 5 * (2 * 4 + 1)
        assert all(train and test and not train & test for train, test in seen)
        assert macro(within_patients(scores, labels)[0]) > 0.65

    def test_labels_across_patients_do_not_leak(self) -> None:
        # a feature that is the label within each patient, with a sign of the patient's own
        blocks, labels = made(patients=8, signal=0)
        sign = np.where(labels.patient % 2, 1, -1)
        blocks[2][..., 2] = 9 * sign * (labels.structure == 0)
        scores = across_patients(blocks, labels)
        assert np.nanmean(within_patients(scores, labels)[0][:, 0]) < 0.75

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
        assert interval([first, first - 0.25]) == pytest.approx({"low": 0.25, "high": 0.25})
        paired, single = interval([first, second]), interval([first])
        assert 0 < paired["low"] < macro(first) - macro(second) < paired["high"]
        assert paired["high"] - paired["low"] < single["high"] - single["low"]
        assert interval([first, second], seed=0) == paired
        # a single patient has none
        assert interval([np.array([[0.5, 0.7], [np.nan, np.nan]])]) == {"low": None, "high": None}

    def test_it_is_the_percentile_bootstraps(self) -> None:
        first, second = self.tables()
        drawn = np.random.default_rng(0).integers(0, 6, (400, 6))
        low, high = np.quantile([macro(first[rows]) - macro(second[rows]) for rows in drawn], [0.025, 0.975])
        assert interval([first, second]) == pytest.approx({"low": low, "high": high}, abs=0.01)


def test_a_bar_in_a_name_is_escaped_once() -> None:
    rows = [table.Row(table.POINTS, 64, table.AUROC, ENCODER, f"p{n}", "bone|marrow", 0.5) for n in range(3)]
    result = {
        "metrics": table.summarise(rows, (), 0),
        "rows": rows,
        "checkpoint": {"name": "c.safetensors", "sha256": "0" * 64, "pretrained_on": None},
        "data": {"patients": [], "apart": [], "tokens": {table.POINTS: 3}, "volumes": {table.POINTS: 3}},
        "settings": {"random": 1, "seed": 0},
        "library_version": "0",
        "commit": None,
        "notes": [],
    }
    assert "| bone\\|marrow | 3 | 0.500 |" in table.page(result)


def test_the_threshold_with_the_highest_dice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, truth, weight = rng.integers(0, 6, 15).astype(float), rng.random(15) < 0.4, rng.random(15) + 0.2
        truth[0] = True

        def dice_of(threshold: float, scores: Any = scores, truth: Any = truth, weight: Any = weight) -> float:
            predicted = weight * (scores > threshold)
            return 2 * (truth * predicted).sum() / (predicted.sum() + (weight * truth).sum())

        dice, threshold = best_threshold(scores, truth, weight)
        assert dice == pytest.approx(max(dice_of(t) for t in np.arange(-0.5, 6)))
        assert dice == pytest.approx(dice_of(threshold))


class TestReduced:
    def test_points_are_spread_over_structures_and_patients(self, points: list[Point]) -> None:
        chosen = stratified(points, 40)
        counts = Counter((point.structure, point.patient) for point in chosen)
        assert len(counts) == 18
        assert len(chosen) == 40
        assert set(counts.values()) == {2, 3}
        assert len(stratified(points, 10_000)) == len(points)
        numbers = [[point.number for point in stratified(points, 40, seed)] for seed in (0, 1)]
        assert numbers[0] == [point.number for point in chosen] != numbers[1]

    def test_it_measures_what_an_encoder_knows(self, points: list[Point]) -> None:
        reduced = reduce_points(points, 16, most=60)
        assert reduced.hu.shape == (60, 16, 16, 16)
        assert reduced.hu.dtype == np.int16
        found = reduced_probe(raw_patch, reduced)
        assert set(found) == {"auroc"}
        assert found["auroc"] > 0.75
        # the mean of two blocks of which neither knows anything
        assert reduced_probe(lambda hu: [torch.zeros(len(hu), 8, 4)] * 4, reduced) == {"auroc": 0.5}

    def test_it_changes_nothing_of_a_model_in_training(self, points: list[Point], checkpoint: Path) -> None:
        reduced = reduce_points(points, 16, most=30)
        encode = load_frozen(checkpoint)[0].train()
        assert reduced_probe(encode, reduced) == reduced_probe(encode, reduced)
        assert encode.training
        encode(torch.zeros(1, 16, 16, 16))[-1].sum().backward()


@pytest.fixture(scope="module")
def real_points(real_ct: Path) -> Iterator[list[Point]]:
    if not (real_ct / "points.csv").is_file():
        pytest.skip("no labelled points beside the checkout")
    with pytest.MonkeyPatch.context() as patch:
        read_once = functools.cache(read_hu)
        for module in ("probe", "reduced"):
            patch.setattr(f"MAESILLib.probe.{module}.read_hu", read_once)
        yield read_points(real_ct / "points.csv")


class TestRealPoints:
    def test_the_raw_patch_is_the_pilots(self, real_points: list[Point]) -> None:
        assert len(real_points) == 1817
        assert len({point.patient for point in real_points if point.split == "val"}) == 4
        # the patch of a point is the same in every window, so the smallest will do
        found = describe_points(real_points, 8, Tools({RAW: raw_patch}, torch.device("cpu"), Reporter(), StopRequest()))
        structures = [without_side(point.structure) for point in real_points]
        labels = labels_of(structures, [point.patient for point in real_points])
        assert len(labels.structures) == 24
        table, _ = within_patients(across_patients({1: found[RAW, 1]}, labels), labels)
        assert macro(table) == pytest.approx(0.723, abs=0.005)
        assert macro(table[:, np.isin(labels.structures, SOFT_TISSUE)]) == pytest.approx(0.638, abs=0.005)

    def test_hand_made_features_in_the_reduced_probe(self, real_points: list[Point]) -> None:
        points = reduce_points(real_points, 64, most=200)
        assert len(points.labels.patients) == 16
        assert len(points.labels.structures) == 24
        found = reduced_probe(hand_made, points)
        assert found["auroc"] == pytest.approx(0.887, abs=0.01)
        assert found["auroc"] > reduced_probe(raw_patch, points)["auroc"] + 0.15
