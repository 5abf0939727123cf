"""``maesil probe``: what it finds where the answer is known, who trains and who measures, and the files it writes."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_factory import JSON, QUIET, Result, assert_refused, file_size_limit, leftovers, maesil
from probe_factory import BRIGHT, make_labelled

from MAESILLib.data.cache import Cache, read_cache
from MAESILLib.errors import CancelledError
from MAESILLib.events import Reporter
from MAESILLib.probe.probe import Settings, probe
from MAESILLib.stopping import StopRequest

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
