"""``maesil probe``: what it finds where the answer is known, who trains and who measures, and the files it writes."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import JSON, QUIET, Result, assert_refused, file_size_limit, leftovers, maesil
from probe_factory import BRIGHT, make_labelled

from MAESILLib.data.cache import Cache, read_cache
from MAESILLib.data.records import CacheEntry
from MAESILLib.errors import CancelledError
from MAESILLib.events import Reporter
from MAESILLib.export.encoder import load_encoder
from MAESILLib.probe.cases import split_patients
from MAESILLib.probe.features import intensities_of, positions_of, tokens_of, with_random_weights
from MAESILLib.probe.figures import auroc, average_precision, by_patient
from MAESILLib.probe.fitting import STRENGTHS, Examples, best_strength, cross_validate, fit
from MAESILLib.probe.probe import Settings, probe
from MAESILLib.probe.training import draws_of
from MAESILLib.stopping import NEVER, StopRequest

pytest.importorskip("sklearn")
FEATURES = ("maesil", "random", "raw", "pca", "position")
FILES = {"probe.json", "probe.csv", "probe.md", "curve.png"}
FAST = ("--cases", 1, "--draws", 1, "--random-seeds", 1, "--patches", 40, "--components", 8)
SMALL = ("--cases", 1, 2, "--draws", 2, "--random-seeds", 2, "--patches", 40, "--block", 2)


def run_probe(cache: Path, output: Path, checkpoint: Path, *more: object) -> Result:
    return maesil("probe", "--data", cache, "--output", output, "--checkpoint", checkpoint, *SMALL, *more)


def read(folder: Path) -> dict[str, Any]:
    text = (folder / "probe.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in probe.json"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("probe") / "true")


@pytest.fixture(scope="module")
def output(data: Path, lively: Path) -> Path:
    result = run_probe(data, data.parent / "out", lively, *QUIET)
    assert result.status == 0, result.err
    return data.parent / "out"


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    return read(output)


def mean_auroc(result: dict[str, Any], name: str, feature: str) -> float:
    (line,) = [line for line in result["summary"] if (line["class"], line["feature"]) == (name, feature)]
    return float(line["auroc"])


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


class TestKnownAnswers:
    def test_intensities_find_what_intensity_defines(self, result: dict[str, Any]) -> None:
        for name in ("label 1", "label 2"):
            assert mean_auroc(result, name, "raw") > 0.98
            assert mean_auroc(result, name, "pca") > 0.98

    def test_the_opposite_label_is_found_below_chance(
        self, tmp_path: Path, lively: Path, result: dict[str, Any]
    ) -> None:
        def opposite(split: str, number: int, labels: np.ndarray) -> np.ndarray:
            if split == "val":
                for d, h, w in np.ndindex(4, 6, 6):
                    patch = labels[8 * d : 8 * d + 8, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
                    patch[...] = (patch == BRIGHT).mean() < 0.5
            return labels

        cache = make_labelled(tmp_path / "flipped", opposite)
        done = run_probe(cache, tmp_path / "out", lively, "--classes", "label 1", *QUIET)
        assert done.status == 0, done.err
        flipped = read(tmp_path / "out")
        assert mean_auroc(flipped, "label 1", "raw") < 0.05
        # nothing that is chosen looks at held-out patients
        for key in ("strengths", "aurocs"):
            chosen, expected = (
                # the principal components are those of the patches of all classes
                {(c["name"], c["seed"]): c[key]["label 1"] for c in one["choices"] if c["name"] != "pca"}
                for one in (flipped, result)
            )
            assert chosen == expected

    def test_labels_of_elsewhere_are_near_chance(self, tmp_path: Path, lively: Path) -> None:
        def shuffled(split: str, number: int, labels: np.ndarray) -> np.ndarray:
            rng = np.random.default_rng(number)
            return (
                rng.integers(0, 2, [-(-n // 8) for n in labels.shape])
                .repeat(8, 0)
                .repeat(8, 1)
                .repeat(8, 2)[: labels.shape[0], : labels.shape[1], : labels.shape[2]]
                .astype(np.int16)
            )

        cache = make_labelled(tmp_path / "shuffled", shuffled, held_out=4)
        done = run_probe(cache, tmp_path / "out", lively, *FAST, *QUIET)
        assert done.status == 0, done.err
        found = read(tmp_path / "out")
        for feature in FEATURES:
            assert mean_auroc(found, "label 1", feature) == pytest.approx(0.5, abs=0.12)


class TestResult:
    def test_rows(self, result: dict[str, Any]) -> None:
        assert result["schema"] == "maesil-probe/1"
        assert result["data"]["training_volumes"] == ["c0", "c1", "c2", "c3"]
        assert result["data"]["volumes"] == ["c4", "c5"]
        variants = [("maesil", None), ("random", 0), ("random", 1), ("raw", None), ("pca", None), ("position", None)]
        draws = [(4, True, 0), *((count, False, draw) for count in (1, 2) for draw in (0, 1))]
        expected = {
            (name, volume, *variant, *draw)
            for name in ("label 1", "label 2")
            for volume in ("c4", "c5")
            for variant in variants
            for draw in draws
        }
        keys = ("class", "volume", "feature", "weights_seed", "cases", "all_cases", "draw")
        rows = [tuple(row[key] for key in keys) for row in result["rows"]]
        assert len(rows) == len(set(rows))
        assert set(rows) == expected
        for row in result["rows"]:
            assert row["positive_share"] == pytest.approx(
                row["positives"] / (row["positives"] + row["negatives"]), abs=1e-5
            )
            assert row["block"] == (2 if row["feature"] in ("maesil", "random") else None)
            assert row["patient"] not in ("p4", "p5")

    def test_summaries_are_those_of_the_rows(self, result: dict[str, Any]) -> None:
        full = [r for r in result["rows"] if r["all_cases"] and r["class"] == "label 2"]
        (line,) = [s for s in result["summary"] if (s["class"], s["feature"]) == ("label 2", "random")]
        means = [
            np.mean([r["auroc"] for r in full if r["feature"] == "random" and r["volume"] == v]) for v in ("c4", "c5")
        ]
        assert line["auroc"] == pytest.approx(np.mean(means), abs=1e-4)
        assert line["auroc_sd"] == pytest.approx(np.std(means, ddof=1), abs=1e-4)
        assert line["patients"] == 2
        (difference,) = [
            d for d in result["differences"] if (d["class"], d["minus"], d["figure"]) == ("label 2", "random", "auroc")
        ]
        own = [
            np.mean([r["auroc"] for r in full if r["feature"] == "maesil" and r["volume"] == v]) for v in ("c4", "c5")
        ]
        assert difference["mean"] == pytest.approx(np.mean(own) - np.mean(means), abs=1e-4)
        both = [s["auroc"] for s in result["summary"] if s["feature"] == "raw" and s["class"] != "mean over classes"]
        (over,) = [s for s in result["summary"] if (s["class"], s["feature"]) == ("mean over classes", "raw")]
        assert over["auroc"] == pytest.approx(np.mean(both), abs=1e-4)

    def test_the_curve_is_over_draws(self, result: dict[str, Any]) -> None:
        (line,) = [c for c in result["curve"] if (c["class"], c["feature"], c["cases"]) == ("label 1", "raw", 2)]
        rows = [r for r in result["rows"] if (r["class"], r["feature"], r["cases"]) == ("label 1", "raw", 2)]
        means = [np.mean([r["average_precision"] for r in rows if r["draw"] == d]) for d in (0, 1)]
        assert (line["draws"], line["all_cases"]) == (2, False)
        assert line["average_precision"] == pytest.approx(np.mean(means), abs=1e-4)
        assert line["average_precision_sd"] == pytest.approx(np.std(means, ddof=1), abs=1e-4)

    def test_the_files(self, output: Path, result: dict[str, Any]) -> None:
        from matplotlib.image import imread

        assert {path.name for path in output.iterdir()} == FILES
        with open(output / "probe.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["auroc"] for row in rows] == [str(row["auroc"]) for row in result["rows"]]
        text = (output / "probe.md").read_text(encoding="utf-8")
        for words in (
            "| label 1 | maesil |",
            "maesil - random",
            "4 (all)",
            "| random, seed 1 | 2 |",
            "padding aside",
            "64 principal",
        ):
            assert words in text
        picture = imread(output / "curve.png")
        assert picture.shape[1] > 1000
        assert picture[..., :3].std() > 0.05

    def test_the_same_seed_gives_the_same_result(self, data: Path, tmp_path: Path, lively: Path) -> None:
        for name in ("once", "again"):
            done = run_probe(data, tmp_path / name, lively, *FAST, "--classes", "label 1", *JSON)
            assert done.status == 0, done.err
        for name in ("probe.json", "probe.csv", "probe.md"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
        assert [event["kind"] for event in done.named("artifact")] == ["json", "csv", "md", "curve"]
        assert {"labels", "features", "fit", "measure"} <= {e["stage"] for e in done.named("progress")}

    def test_notes(self, tmp_path: Path, lively: Path) -> None:
        def change(split: str, number: int, labels: np.ndarray) -> np.ndarray:
            # number 4 is held out, and lacks what its manifest names
            return np.where(labels == BRIGHT, 0, labels) if number == 4 else labels

        cache = make_labelled(tmp_path / "d", change, named="1=bright; 2=dark; 7=absent")
        (tmp_path / "d" / "c3_seg.nii.gz").unlink()
        done = run_probe(cache, tmp_path / "out", lively, *FAST, "--cases", 1, 9, *QUIET)
        assert done.status == 0, done.err
        found = read(tmp_path / "out")
        assert list(found["classes"]) == ["bright", "dark"]
        (left_out,) = found["data"]["left_out"]
        assert left_out["volume"] == "c3"
        notes = " / ".join(found["notes"])
        assert "c4 has no positive patch of bright" in notes
        assert "absent is left out: no training and no held-out volume has patches of it" in notes
        assert "bright: 3 training cases show it, so there is no figure for 9" in notes
        assert {row["volume"] for row in found["rows"] if row["class"] == "bright"} == {"c5"}
        assert "c3" in (tmp_path / "out" / "probe.md").read_text(encoding="utf-8")


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--cases", 0), ("--cases is 0",)),
            (("--draws", 0), ("--draws is 0",)),
            (("--block", 9), ("--block is 9", "5 blocks")),
            (("--classes", "liver"), ("'liver'", "label 1, label 2")),
            (("--seed", -1), ("--seed is -1",)),
        ],
    )
    def test_arguments(
        self, data: Path, tmp_path: Path, lively: Path, arguments: tuple[object, ...], words: tuple[str, ...]
    ) -> None:
        assert_refused(run_probe(data, tmp_path / "out", lively, *arguments, *QUIET), *words)
        assert not (tmp_path / "out").exists()

    def test_without_scikit_learn(
        self, data: Path, tmp_path: Path, lively: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "sklearn", None)
        assert_refused(run_probe(data, tmp_path / "out", lively, *QUIET), "scikit-learn", "pip install 'maesil[probe]'")

    def test_labels_that_are_gone(self, tmp_path: Path, lively: Path) -> None:
        cache = make_labelled(tmp_path / "d")
        for number in (4, 5):
            (tmp_path / "d" / f"c{number}_seg.nii.gz").unlink()
        done = run_probe(cache, tmp_path / "out", lively, *QUIET)
        assert_refused(done, "no held-out volume", "has a label map that is there")

    def test_a_cache_without_labels(self, cache: Cache, tmp_path: Path, checkpoint: Path) -> None:
        assert_refused(run_probe(cache.folder, tmp_path / "out", checkpoint, *QUIET), "no training volume", "labels")

    def test_another_spacing(self, data: Path, tmp_path: Path, lively: Path) -> None:
        shutil.copytree(data, tmp_path / "cache")
        index = tmp_path / "cache" / "index.json"
        index.write_text(index.read_text().replace('"spacing_mm": 1.5', '"spacing_mm": 2.0'))
        done = run_probe(tmp_path / "cache", tmp_path / "out", lively, *QUIET)
        assert_refused(done, "needs 1.5 mm voxels", "2.0 mm")

    def test_a_full_disk_leaves_nothing(self, data: Path, tmp_path: Path, lively: Path) -> None:
        with file_size_limit(3000):
            done = run_probe(data, tmp_path / "out", lively, "--classes", "label 1", *FAST, *QUIET)
        assert_refused(done, "larger than the system allows", status=4)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["labels", "features", "fit", "measure"])
def test_a_stop_between_volumes_and_fits(data: Path, lively: Path, stage: str) -> None:
    stop = StopRequest()

    class Asking(Reporter):
        def progress(self, stage_now: str, fraction: float, note: str = "") -> None:
            if stage_now == stage and fraction < 1:
                stop.ask("enough")

    settings = Settings((1,), 1, 2, 20, 1, 8, ("label 1",))
    with pytest.raises(CancelledError, match="enough"):
        probe(lively, read_cache(data), settings, reporter=Asking(), stop=stop)


def test_nothing_is_written_when_stopped(data: Path, tmp_path: Path, lively: Path) -> None:
    (tmp_path / "stop").touch()
    done = run_probe(data, tmp_path / "out", lively, "--stop-file", tmp_path / "stop", *QUIET)
    assert_refused(done, "stop file", status=3)
    assert leftovers(tmp_path) == []


def test_blocks_are_chosen_on_training_cases(data: Path, lively: Path) -> None:
    settings = Settings((1,), 1, 0, 20, 1, 8, ("label 1",))
    found = probe(lively, read_cache(data), settings)
    choices = {choice["name"]: choice for choice in found["choices"]}
    assert set(choices["maesil"]["by_block"]) == {1, 3, 5}
    assert choices["maesil"]["block"] == max(
        choices["maesil"]["by_block"], key=lambda b: (choices["maesil"]["by_block"][b], b)
    )
    assert choices["raw"]["block"] == 0
    assert "chosen" in found["protocol"]["block"]


def test_real_tumours(real_ct: Path, tmp_path: Path, lively: Path) -> None:
    """Two patients with a tumour's contour, end to end."""
    rows = [("file", "patient", "split", "dataset", "labels")]
    for split, number in (("train", "019"), ("val", "029")):
        path = real_ct / split / f"sts__sts_{number}.nii.gz"
        rows.append((str(path), f"sts_{number}", split, "sts", "1=tumour"))
    with open(tmp_path / "m.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    assert maesil("prepare", tmp_path / "m.csv", "--output", tmp_path / "cache", *QUIET).status == 0
    done = run_probe(tmp_path / "cache", tmp_path / "out", lively, *FAST, *QUIET)
    assert done.status == 0, done.err
    found = read(tmp_path / "out")
    assert list(found["classes"]) == ["tumour"]
    assert {row["volume"] for row in found["rows"]} == {"sts__sts_029"}
    assert found["classes"]["tumour"]["training_cases"] == 1
