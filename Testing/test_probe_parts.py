"""What a probe is made of: figures, features of patches, the fit, and who trains."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from MAESILLib.data.cache import Cache
from MAESILLib.data.records import CacheEntry
from MAESILLib.export.encoder import load_encoder
from MAESILLib.probe.cases import split_patients
from MAESILLib.probe.features import intensities_of, positions_of, tokens_of, with_random_weights
from MAESILLib.probe.figures import auroc, average_precision, by_patient
from MAESILLib.probe.fitting import STRENGTHS, Examples, best_strength, cross_validate, fit
from MAESILLib.probe.training import draws_of
from MAESILLib.stopping import NEVER

pytest.importorskip("sklearn")


class TestFigures:
    def test_auroc_is_the_share_of_pairs_in_order(self) -> None:
        rng = np.random.default_rng(0)
        positive, scores = rng.random(80) < 0.3, rng.integers(0, 9, 80).astype(float)
        pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
        assert auroc(positive, scores) == pytest.approx(np.mean(pairs))

    def test_average_precision_is_the_mean_precision_at_positives(self) -> None:
        rng = np.random.default_rng(1)
        positive, scores = rng.random(80) < 0.3, rng.permutation(80).astype(float)
        hits = positive[np.argsort(-scores)]
        precision = [hits[: n + 1].mean() for n in range(80) if hits[n]]
        assert average_precision(positive, scores) == pytest.approx(np.mean(precision))

    def test_a_patient_counts_once(self) -> None:
        patients = {"a1": "a", "a2": "a", "b": "b"}
        assert by_patient({"a1": 1.0, "a2": 0.0, "b": 0.25}, patients) == {"a": 0.5, "b": 0.25}


class TestFeatures:
    SHAPE = (41, 56, 101)

    def test_tokens_lie_where_their_patches_do(self, lively: Path) -> None:
        encoder = load_encoder(lively)
        unit = np.random.default_rng(0).random(self.SHAPE, np.float32)
        patches = np.random.default_rng(1).permutation(6 * 7 * 13)[:90]
        found = tokens_of(encoder, unit, patches, (2, 5))
        # superpatches of at most 48: 56 is 3 + 4 patches (by rounding half to even), 101 is 4 + 5 + 4
        padded = np.pad(unit, ((0, 7), (0, 0), (0, 3)), mode="edge")
        whole = {block: np.zeros((6, 7, 13, 48), np.float32) for block in (2, 5)}
        for h0, h1 in ((0, 4), (4, 7)):
            for w0, w1 in ((0, 4), (4, 9), (9, 13)):
                image = torch.from_numpy(padded[:, 8 * h0 : 8 * h1, 8 * w0 : 8 * w1].copy())[None, None]
                with torch.no_grad():
                    maps = encoder.feature_maps(image)
                for block in (2, 5):
                    whole[block][:, h0:h1, w0:w1] = maps[block - 1][0].permute(1, 2, 3, 0).numpy()
        for block in (2, 5):
            expected = whole[block].reshape(-1, 48)[patches]
            np.testing.assert_allclose(found[block], expected, atol=1e-5)

    def test_intensities_are_those_of_the_patches(self) -> None:
        unit = np.random.default_rng(0).random((17, 16, 24), np.float32)
        found = intensities_of(unit, np.array([5, 17]), (8, 8, 8))
        assert (found[0] == unit[:8, 8:16, 16:].ravel()).all()
        # the last patch has one plane of the volume, seven times repeated
        assert (found[1] == np.repeat(unit[16:, 8:16, 16:], 8, 0).ravel()).all()

    def test_positions_say_nothing_of_the_image(self, lively: Path) -> None:
        found = positions_of(load_encoder(lively), self.SHAPE, np.arange(6 * 7 * 13)).reshape(6, 7, 13, -1)
        assert (found[:, :3, :4] == found[:, 4:, 9:]).all()
        assert (found[0, 0, 0] != found[1, 0, 0]).any()

    def test_random_weights_are_drawn_anew(self, checkpoint: Path) -> None:
        encoder = load_encoder(checkpoint)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        first, again, other = (with_random_weights(encoder, seed).state_dict() for seed in (0, 0, 1))
        for name, value in before.items():
            assert (encoder.state_dict()[name] == value).all()
            assert (first[name] == again[name]).all()
            if value.ndim == 2:
                limit = math.sqrt(6 / sum(value.shape))
                assert first[name].abs().max() <= limit
                assert first[name].std() == pytest.approx(limit / 3**0.5, rel=0.1)
                assert (first[name] != value).any()
                assert (first[name] != other[name]).any()
            else:
                assert (first[name] == (1 if name.endswith("weight") else 0)).all()


class TestFitting:
    @staticmethod
    def examples(shift: float, count: int = 4, seed: int = 0) -> Examples:
        rng = np.random.default_rng(seed)
        positive = rng.random(count * 50) < 0.4
        features = rng.normal(3, 2, (count * 50, 6)) * [1, 10, 100, 1, 1, 1]
        features[:, 1] += 20 * shift * positive
        return Examples(features, positive, np.repeat([f"p{n}" for n in range(count)], 50))

    def test_is_scikit_learns_pipeline(self) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        data = self.examples(2)
        regression = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-9, max_iter=5000)
        pipeline = make_pipeline(StandardScaler(), regression).fit(data.features, data.is_positive)
        found = fit(data, 0.1)
        assert found.has_converged
        np.testing.assert_allclose(found.score(data.features), pipeline.decision_function(data.features), atol=1e-3)

    def test_flipped_labels_turn_the_figure_round(self) -> None:
        data, new = self.examples(2), self.examples(2, seed=1)
        flipped = Examples(data.features, ~data.is_positive, data.patients)
        right, wrong = (auroc(new.is_positive, fit(one, 0.01).score(new.features)) for one in (data, flipped))
        assert right > 0.85
        assert wrong == pytest.approx(1 - right)

    def test_cross_validation_holds_patients_out(self) -> None:
        # labels follow a feature within each patient, the other way round in every other one
        data = self.examples(0)
        sign = np.where(np.isin(data.patients, ["p0", "p2"]), 1, -1)
        data.features[:, 0] = sign * (data.is_positive - 0.5) * 9
        assert max(cross_validate(data.of(["p0", "p1"]), NEVER).values()) < 0.1
        figures = cross_validate(data.of(["p0", "p2"]), NEVER)
        assert set(figures) == set(STRENGTHS)
        assert min(figures.values()) > 0.9
        assert cross_validate(data.of(["p0"]), NEVER) == {}

    def test_the_strongest_penalty_of_equal_ones(self) -> None:
        assert best_strength({1e-4: 0.7, 1e-2: 0.8, 1.0: 0.8}) == 1e-2
        assert best_strength({}) == 1e-2


class TestDraws:
    def test_nested_and_from_the_seed(self) -> None:
        patients = [f"p{n}" for n in range(12)]
        every, *few = draws_of("liver", patients, (1, 5, 10, 12, 40), 3, 0)
        assert every.is_all
        assert every.patients == tuple(patients)
        assert [(d.number, len(d.patients)) for d in few] == [(n, c) for n in range(3) for c in (1, 5, 10)]
        for number in range(3):
            one, five, ten = (set(d.patients) for d in few if d.number == number)
            assert one < five < ten
        assert len({d.patients for d in few if len(d.patients) == 5}) > 1
        assert list(draws_of("liver", patients, (5,), 3, 0))[1:] == [d for d in few if len(d.patients) == 5]
        assert list(draws_of("liver", patients, (5,), 3, 1)) != list(draws_of("liver", patients, (5,), 3, 0))

    def test_a_patient_who_measures_never_trains(self) -> None:
        entries = [
            CacheEntry(f"v{n}", (16, 16, 16), patient, split, "s", str(n), 0.5)
            for n, (patient, split) in enumerate([("a", "train"), ("b", "val"), ("b", "train"), ("b", ""), ("c", "")])
        ]
        for cache in (Cache(Path("c"), 1.5, tuple(entries)), Cache(Path("c"), 1.5, tuple(entries[3:]))):
            train, held_out = split_patients(cache, 0.1)
            assert held_out
            assert train
            assert not {e.patient for e in train} & {e.patient for e in held_out}
