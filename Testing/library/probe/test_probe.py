"""``maesil probe``: what it finds where the answer is known, what it refuses, and the files it writes."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import (
    JSON,
    QUIET,
    Result,
    assert_refused,
    file_size_limit,
    leftovers,
    maesil,
    read_rows,
    read_strict_json,
    write_checkpoint,
)
from probe_factory import write_phantoms, write_rows

from MAESILLib.config import Preprocessing
from MAESILLib.data.records import hash_of_patient
from MAESILLib.probe import few_labels, fit
from MAESILLib.probe.labels import find_labelled
from MAESILLib.probe.probe import Settings, probe
from MAESILLib.runtime.errors import CancelledError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

FILES = {"probe.json", "probe.csv", "probe.md"}
FEATURES = ["encoder", "random weights", "hand-made", "raw patch", "position"]
FAST = ("--window", 16, "--random", 1, "--threads", 1)


def run_probe(output: Path, checkpoint: Path, *more: object) -> Result:
    return maesil("probe", "--output", output, "--checkpoint", checkpoint, *FAST, *more)


def read(folder: Path) -> dict[str, Any]:
    return read_strict_json(folder / "probe.json")


def the_line(result: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    (line,) = [one for one in result["metrics"] if wanted.items() <= one.items()]
    return line


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six patients; probes of them are fitted on fewer tokens, folds and penalties, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (fit, few_labels):
            patch.setattr(module, "ALPHAS", (1e2, 1e4))
            patch.setattr(module, "FOLDS", 3)
        patch.setattr(few_labels, "TOKENS_EACH", 50)
        yield write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = {"data": {"patients_sha256": [hash_of_patient(name) for name in ("p0", "p1")]}}
    return write_checkpoint(tmp_path_factory.mktemp("encoder") / "small.safetensors", training=training)


@pytest.fixture(scope="module")
def output(phantoms: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    given = ("--points", phantoms / "points.csv", "--labels", phantoms / "cache")
    given += ("--random", 2, "--window", 24, "--cases", 1, 2, 9, "--draws", 2, *QUIET)
    run_probe(folder, encoder, *given).checked()
    return folder


class TestResult:
    def test_intensities_find_what_intensity_defines(self, output: Path) -> None:
        points = {"source": "points", "window": 16, "metric": "AUROC", "group": "all"}
        found = {name: the_line(read(output), **points, feature=name)["value"] for name in FEATURES}
        assert found["raw patch"] > 0.85
        assert found["hand-made"] > 0.9
        assert found["position"] < 0.8
        for cases, least in ((1, 0.5), (2, 0.8)):
            metric = f"Dice, {cases} labelled"
            assert the_line(read(output), window=24, metric=metric, group="all", feature="hand-made")["value"] > least

    def test_metrics_are_those_of_the_rows(self, output: Path) -> None:
        result = read(output)
        rows = read_rows(output / "probe.csv")
        for line in result["metrics"]:
            key = {name: str(line[name]) for name in ("source", "window", "metric", "feature")}
            values: dict[str, list[float]] = {}
            for row in rows:
                if key.items() <= row.items() and (line["group"] != "apart" or row["patient"] in ("p3", "p5")):
                    values.setdefault(row["structure"], []).append(float(row["value"]))
            assert line["value"] == pytest.approx(np.mean([np.mean(one) for one in values.values()]))
            assert line["structures"] == len(values)
            if line["feature"] != "encoder":
                same = {name: line[name] for name in ("source", "window", "metric", "group")}
                own = the_line(result, **same, feature="encoder")
                assert line["difference"] == pytest.approx(own["value"] - line["value"])
                assert line["difference_low"] is None or line["difference_low"] <= line["difference"] + 1e-9

    def test_what_is_stated(self, output: Path) -> None:
        result = read(output)
        assert result["schema"] == "maesil-probe/2"
        assert result["checkpoint"]["pretrained_on"] == ["p0", "p1"]
        assert result["data"]["patients"] == [f"p{n}" for n in range(6)]
        assert result["data"]["apart"] == ["p3", "p5"]
        assert result["data"]["tokens"] == {"points": 72, "label maps": 120}
        keys = {(one["source"], one["window"], one["metric"]) for one in result["metrics"]}
        of_points = itertools.product(["points"], (16, 24), ["AUROC", "balanced accuracy", "AUROC, sides kept"])
        of_maps = ["AUROC", "balanced accuracy", "Dice, 1 labelled", "Dice, 2 labelled"]
        assert keys == {*of_points, *itertools.product(["label maps"], (16, 24), of_maps)}
        assert list(dict.fromkeys(one["feature"] for one in result["metrics"])) == FEATURES
        assert "bright: 4 patients show it, so there is no Dice after 9 cases" in result["notes"]

    def test_the_page_begins_with_the_comparison(self, output: Path) -> None:
        assert {path.name for path in output.iterdir()} == FILES
        text = (output / "probe.md").read_text(encoding="utf-8")
        first = text.splitlines()[0]
        own = r"At a window of 16 voxels \(points, 3 structures, 6 patients\) the encoder's AUROC is 0\.\d{3}; it "
        assert re.match(own, first)
        number = r"[+-]\d\.\d{3}"
        for name in FEATURES[1:]:
            assert re.search(rf"(beats|is below|is level with) {name}: {number} \({number} to {number}\)", first)
        for words in (
            "Pretraining used images, without labels, of 2 of the 6 patients (p0, p1).",
            "## Label maps, window of 24 voxels",
            "| AUROC of | patients | encoder |",
            "| Dice, 2 labelled | apart |",
        ):
            assert words in text

    def test_the_same_seed_gives_the_same_result(self, phantoms: Path, encoder: Path, tmp_path: Path) -> None:
        given = ("--points", phantoms / "points.csv", "--patients-apart", "p0", *JSON)
        for name in ("once", "again"):
            done = run_probe(tmp_path / name, encoder, *given).checked()
        for name in FILES:
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
        assert [event["kind"] for event in done.named("artifact")] == ["json", "csv", "md"]
        assert {e["stage"] for e in done.named("progress")} == {"tokens, window 16", "fit, window 16"}
        assert read(tmp_path / "once")["data"]["apart"] == ["p0", "p5"]

    def test_a_structure_of_few_patients_is_noted(self, phantoms: Path, encoder: Path, tmp_path: Path) -> None:
        rows = read_rows(phantoms / "points.csv")
        kept = [row for row in rows if row["structure"] != "dark" or row["patient"] in ("p0", "p1")]
        few = write_rows(tmp_path / "few.csv", list(kept[0]), [list(row.values()) for row in kept])
        run_probe(tmp_path / "out", encoder, "--points", few, "--root", phantoms, *QUIET).checked()
        (note,) = read(tmp_path / "out")["notes"]
        assert note.startswith("dark is left out (points): fewer than 3 patients")
        assert f"Notes:\n\n- {note}" in (tmp_path / "out" / "probe.md").read_text(encoding="utf-8")


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), ("--points", "--labels")),
            (("--window", 20), ("--window is 20", "multiple of 8")),
            (("--cases", 0), ("--cases is 0",)),
            (("--draws", 0), ("--draws is 0",)),
            (("--random", 0), ("--random is 0",)),
            (("--most", 0), ("--most is 0",)),
            (("--seed", -1), ("--seed is -1",)),
            (("--patients-apart", "nobody"), ("'nobody'", "p0, p1")),
            (("--points", "no.csv"), ("no such file",)),
            (("--points", "binary.csv"), ("not a CSV file",)),
            (("--labels", "nowhere"), ("nowhere is not a cache",)),
            (("--checkpoint", "coarse.safetensors"), ("2 mm", "1.5 mm")),
        ],
    )
    def test_arguments(
        self, phantoms: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, words: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("binary.csv").write_bytes(b"\xff\xfe\x00file")
        if "--checkpoint" in arguments:
            write_checkpoint(Path("coarse.safetensors"), preprocessing=Preprocessing(spacing_mm=2.0))
        given = ("--points", phantoms / "points.csv") if arguments else ()
        assert_refused(run_probe(tmp_path / "out", encoder, *given, *arguments, *QUIET), *words)
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"column": "patient"}, ("no column 'patient'",)),
            ({"file": "gone.nii.gz"}, ("no such file", "gone.nii.gz", "--root")),
            ({"k": 32}, ("line 2", "(32, ", "outside the volume of (32, 44, 48)")),
            ({"i": -1}, ("line 2", "outside the volume")),
            ({"j": "x"}, ("line 2", "not numbers")),
            ({"j": "nan"}, ("line 2", "not numbers")),
            ({"structure": ""}, ("line 2", "'structure' is empty")),
            ({"rows": 0}, ("has no points",)),
            ({"rows": 12}, ("no structure of the points is shown by 3 patients",)),
        ],
    )
    def test_lists_of_points(
        self, phantoms: Path, encoder: Path, tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]
    ) -> None:
        rows = read_rows(phantoms / "points.csv")
        header = [name for name in rows[0] if name != change.get("column")]
        rows[0] |= {key: str(value) for key, value in change.items()}
        cells = [[row[name] for name in header] for row in rows[: change.get("rows")]]
        bad = write_rows(tmp_path / "bad.csv", header, cells)
        assert_refused(run_probe(tmp_path / "out", encoder, "--points", bad, "--root", phantoms, *QUIET), *words)

    def test_a_full_disk_and_a_stop_leave_nothing(self, phantoms: Path, encoder: Path, tmp_path: Path) -> None:
        given = ("--points", phantoms / "points.csv", *QUIET)
        with file_size_limit(3000):
            done = run_probe(tmp_path / "out", encoder, *given)
        assert_refused(done, "larger than the system allows", status=4)
        (tmp_path / "stop").touch()
        done = run_probe(tmp_path / "out", encoder, *given, "--stop-file", tmp_path / "stop")
        assert_refused(done, "stop file", status=3)
        assert not (tmp_path / "out").exists()
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "stage", ["tokens, window 16", "fit, window 16", "label maps, window 16", "few labels, bright"]
)
def test_a_stop_between_batches_and_fits(phantoms: Path, encoder: Path, stage: str) -> None:
    stop = StopRequest()

    class Asking(Reporter):
        def progress(self, stage_now: str, fraction: float, note: str = "") -> None:
            if stage_now == stage and fraction < 1:
                stop.ask("enough")

    volumes = find_labelled(phantoms / "cache")
    cpu = torch.device("cpu")
    with pytest.raises(CancelledError, match="enough"):
        probe(encoder, [], volumes, Settings((16,), 1, (1,), 2), device=cpu, reporter=Asking(), stop=stop)
