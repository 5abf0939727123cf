"""``maesil evaluate``: what it measures, that it repeats to the bit, and the three files it writes."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from cli_factory import (
    Result,
    assert_refused,
    assert_refused_event,
    file_size_limit,
    leftovers,
    maesil,
    read_rows,
    read_strict_json,
    write_checkpoint,
    write_ct,
)
from scipy.spatial import cKDTree
from torchvision_cpu import write_lpips_weights
from training_factory import awakened, make_cache, smooth_hu
from volume_factory import unit_of

from MAESILLib.config import Preprocessing, load
from MAESILLib.data.cache import read_cache
from MAESILLib.evaluation.evaluate import label_checkpoints, protocol
from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.evaluation.masks import with_masks
from MAESILLib.mae.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from MAESILLib.mae.masking import MaskSpec
from MAESILLib.mae.superpatch import partition, token_grid
from MAESILLib.reconstruct.plan import Plan, superpatch_masks
from MAESILLib.reconstruct.reconstruction import reconstruct
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.training.task import MASKED_AUTOENCODING, Pretraining

LOW, HIGH = -1000, 1000
SHAPES = [(24, 32, 40), (40, 33, 28), (16, 40, 40)]
SETTINGS = [
    *("dual 0.5", "dual 0.75", "dual 0.9", "uniform 0.5", "uniform 0.75", "uniform 0.9"),
    *("complete dual 0.75", "auto-encoding"),
]
MASKED = SETTINGS[:6]
EACH_MODE = ("dual 0.75", "complete dual 0.75", "auto-encoding")
FILES = ("evaluation.json", "evaluation.csv", "evaluation.md")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of two volumes for validation and one for training, and a checkpoint."""
    folder = tmp_path_factory.mktemp("data")
    make_cache(folder / "cache", SHAPES, ["val", "val", "train"])
    write_checkpoint(folder / "tiny.safetensors")
    return folder


def evaluate(data: Path, output: Path, *more: object) -> Result:
    arguments = ["evaluate", "--data", data / "cache", "--output", output, "--progress", "off", *more]
    if "--checkpoint" not in more:
        arguments += ["--checkpoint", data / "tiny.safetensors"]
    return maesil(*arguments)


def read(folder: Path) -> dict[str, Any]:
    return read_strict_json(folder / "evaluation.json")


def evaluated(data: Path, output: Path, *more: object) -> dict[str, Any]:
    """Evaluate without figures and return evaluation.json."""
    evaluate(data, output, "--no-figures", *more).checked()
    return read(output)


@pytest.fixture(scope="module")
def output(data: Path) -> Path:
    evaluate(data, data / "out").checked()
    return data / "out"


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    return read(output)


def row_of(result: dict[str, Any], volume: str, setting: str) -> dict[str, Any]:
    (row,) = [r for r in result["rows"] if (r["volume"], r["setting"]) == (volume, setting)]
    return row


def unit(number: int) -> np.ndarray:
    """Intensities of a volume of the cache."""
    return unit_of(smooth_hu(SHAPES[number], number))


def write_preset(path: Path, preset: str) -> Path:
    """Write a checkpoint with a preset's structure and parts, small and with random weights."""
    model = {"superpatch_size": (32, 32, 32), "encoder_width": 48, "encoder_depth": 2, "head_width": 12}
    model |= {"decoder_width": 24, "completion_channels": (8, 16)}
    train = {"crop_size": (32, 32, 32), "cooldown_crop_size": (32, 32, 32)}
    config = load(None, preset, {"model": model, "train": train})
    network = awakened(Pretraining(config), 0.02)
    MASKED_AUTOENCODING.save(path, network.state_dict(), CheckpointInfo(config.model, config.preprocessing))
    return path


def psnr(error: np.ndarray) -> float:
    return -10 * math.log10(np.square(error, dtype=np.float64).mean())


class TestResult:
    def test_every_volume_and_setting(self, result: dict[str, Any]) -> None:
        assert result["schema"] == "maesil-evaluation/2"
        assert [s["name"] for s in result["settings"]] == SETTINGS
        places = [(row["volume"], row["setting"]) for row in result["rows"]]
        assert places == [(volume, setting) for volume in ("v0", "v1") for setting in SETTINGS]
        assert result["data"]["volumes"] == ["v0", "v1"]
        assert [(line["setting"], line["volumes"]) for line in result["summary"]] == [(name, 2) for name in SETTINGS]

    def test_every_metric_is_there(self, result: dict[str, Any]) -> None:
        of_masked = ("psnr_masked_db", "mae_masked_hu", "psnr_composite_db", "ssim_composite", "border_index")
        fills = [f"baseline_{fill}_psnr_masked_db" for fill in ("harmonic", "nearest", "mean")]
        whole = ("psnr_complete_db", "mae_complete_hu", "ssim_complete", "baseline_harmonic_psnr_complete_db")
        for row in result["rows"]:
            keys = {"complete dual 0.75": whole, "auto-encoding": ("psnr_autoencoding_db",)}
            for key in keys.get(row["setting"], (*of_masked, *fills)):
                assert math.isfinite(row[key]), (row["setting"], key)
            if row["setting"] == "auto-encoding":
                assert row["psnr_masked_db"] is None
                assert row["mask_ratio"] == 0

    @pytest.mark.parametrize("setting", ["dual 0.75", "uniform 0.9", "complete dual 0.75", "auto-encoding"])
    def test_metrics_are_those_of_the_reconstruction(self, data: Path, result: dict[str, Any], setting: str) -> None:
        model, _ = load_checkpoint(data / "tiny.safetensors")
        image = unit(1)
        made = reconstruct(model, image, protocol(0)[setting], name="v1")
        error = made.prediction.clip(0, 1) - image
        row = row_of(result, "v1", setting)
        assert row["mask_ratio"] == pytest.approx(made.mask_ratio, abs=1e-5)
        if setting == "auto-encoding":
            assert row["psnr_autoencoding_db"] == pytest.approx(psnr(error), abs=1e-4)
            return
        assert row["psnr_masked_db"] == pytest.approx(psnr(error[made.hidden]), abs=1e-4)
        assert row["mae_masked_hu"] == pytest.approx(np.abs(error[made.hidden]).mean() * (HIGH - LOW), abs=1e-2)
        if setting == "complete dual 0.75":
            assert row["psnr_complete_db"] == pytest.approx(psnr(error), abs=1e-4)
            return
        mean = image[~made.hidden].mean()
        assert row["baseline_mean_psnr_masked_db"] == pytest.approx(psnr(image[made.hidden] - mean), abs=1e-3)
        visible = np.argwhere(~made.hidden)
        _, nearest = cKDTree(visible).query(np.argwhere(made.hidden))
        guess = image[tuple(visible[nearest].T)]
        # which of several equally near voxels is taken is arbitrary
        assert row["baseline_nearest_psnr_masked_db"] == pytest.approx(psnr(image[made.hidden] - guess), abs=0.3)

    def test_mask_ratios(self, result: dict[str, Any]) -> None:
        """Token counts of v0, 24x32x40 voxels: 3x4x5 tokens in two superpatches of 3x4x2 and 3x4x3."""
        for setting, share in (("dual 0.5", 0.5), ("dual 0.75", 0.75), ("dual 0.9", 0.9)):
            ratio = 1 - math.sqrt(1 - share)
            visible = 0
            for plane in (8, 12):
                kept = max(1, math.floor(plane * (1 - ratio) + 0.5))
                visible += 3 * max(1, math.floor(kept * (1 - ratio) + 0.5))
            assert row_of(result, "v0", setting)["mask_ratio"] == pytest.approx(1 - visible / 60, abs=1e-5)

    def test_summary(self, result: dict[str, Any]) -> None:
        for line in result["summary"]:
            rows = [row for row in result["rows"] if row["setting"] == line["setting"]]
            for key in ("psnr_masked_db", "ssim_composite", "border_index", "psnr_complete_db"):
                values = [row.get(key) for row in rows]
                if None in values:
                    assert key not in line
                    continue
                assert line[key] == pytest.approx(np.mean(values), abs=1e-4)
                assert line[f"{key}_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
            if line["setting"] in MASKED:
                margins = [r["psnr_masked_db"] - r["baseline_harmonic_psnr_masked_db"] for r in rows]
                assert line["over_harmonic_db"] == pytest.approx(np.mean(margins), abs=1e-4)
                assert line["least_over_harmonic_db"] == pytest.approx(min(margins), abs=1e-4)


class TestFiles:
    def test_they_are_the_same_to_the_bit(self, data: Path, tmp_path: Path) -> None:
        """And are told by events, or the table is printed."""
        first, second = tmp_path / "first", tmp_path / "second"
        options = ("--split", "train", "--settings", *EACH_MODE)
        told = evaluate(data, first, *options, "--progress", "json")
        printed = evaluate(data, second, *options)
        assert told.status == printed.status == 0
        assert printed.out == (second / "evaluation.md").read_text(encoding="utf-8")
        assert (told.events[0]["event"], told.events[-1]["event"]) == ("started", "done")
        files = [("figure", "figures/tiny/v2.png"), *((name.split(".")[1], name) for name in FILES)]
        assert files == [(e["kind"], Path(e["path"]).relative_to(first).as_posix()) for e in told.named("artifact")]
        assert {p for p in first.rglob("*") if p.is_file()} == {first / name for _, name in files}
        for _, name in files:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name

    def test_csv(self, output: Path, result: dict[str, Any]) -> None:
        rows = read_rows(output / "evaluation.csv")
        for row, expected in zip(rows, result["rows"], strict=True):
            assert None not in row
            for key, value in expected.items():
                assert row[key] == ("" if value is None else str(value))

    def test_markdown(self, output: Path, result: dict[str, Any]) -> None:
        text = (output / "evaluation.md").read_text(encoding="utf-8")
        assert "LPIPS is left out" in text
        table = [line for line in text.splitlines() if line.startswith("|")]
        header, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        assert set("".join(rule)) == {"-"}
        assert [row[1] for row in rows] == SETTINGS
        for row, line in zip(rows, result["summary"], strict=True):
            found = dict(zip(header, row, strict=True))
            mode = {"complete dual 0.75": "complete", "auto-encoding": "autoencoding"}.get(line["setting"], "masked")
            expected = {"checkpoint": "tiny.safetensors"}
            if mode == "masked":
                fills = {"harmonic fill (dB)": "harmonic", "nearest (dB)": "nearest", "mean (dB)": "mean"}
                expected |= {t: f"{line[f'baseline_{fill}_psnr_masked_db']:.2f}" for t, fill in fills.items()}
                expected |= {"MAE (HU)": f"{line['mae_masked_hu']:.1f}", "SSIM": f"{line['ssim_composite']:.4f}"}
                expected |= {"PSNR hidden (dB)": f"{line['psnr_masked_db']:.2f}", "PSNR whole (dB)": ""}
            else:
                # an ensemble of passes is no single pass
                expected |= {"PSNR hidden (dB)": "", "PSNR whole (dB)": f"{line[f'psnr_{mode}_db']:.2f}"}
                expected["SSIM"] = f"{line[f'ssim_{mode}']:.4f}"
            assert found | expected == found
        for words in ("split val", "2 volumes", "1.5 mm"):
            assert words in text.splitlines()[0]


class TestOptions:
    def test_window(self, data: Path, tmp_path: Path, result: dict[str, Any]) -> None:
        """Predicted in the checkpoint's window, compared in another."""
        narrow = evaluated(data, tmp_path / "out", "--window", "-160", "240", "--settings", "dual 0.75")
        assert narrow["window_hu"] == [-160, 240]
        model, _ = load_checkpoint(data / "tiny.safetensors")
        made = reconstruct(model, unit(0), protocol(0)["dual 0.75"], name="v0")
        predicted = made.prediction.clip(0, 1) * (HIGH - LOW) + LOW
        error = (np.clip(predicted, -160, 240) - np.clip(smooth_hu(SHAPES[0], 0), -160.0, 240.0))[made.hidden]
        row = row_of(narrow, "v0", "dual 0.75")
        assert row["psnr_masked_db"] == pytest.approx(psnr(error / 400), abs=1e-3)
        assert row["mae_masked_hu"] == pytest.approx(np.abs(error).mean(), abs=1e-2)
        assert row["psnr_masked_db"] < row_of(result, "v0", "dual 0.75")["psnr_masked_db"]

    def test_the_whole_window_and_further_volumes_change_nothing(
        self, data: Path, tmp_path: Path, result: dict[str, Any]
    ) -> None:
        options = ("--window", "-1000", "1000", "--split", "all", "--settings", "uniform 0.5", "dual 0.9")
        rows = evaluated(data, tmp_path / "out", *options)["rows"]
        assert [row["volume"] for row in rows[::2]] == ["v0", "v1", "v2"]
        for row in rows[:4]:
            assert row == row_of(result, row["volume"], row["setting"])
        assert {p.name for p in (tmp_path / "out").iterdir()} == set(FILES)

    def test_seed(self, data: Path, tmp_path: Path, result: dict[str, Any]) -> None:
        other = evaluated(data, tmp_path / "out", "--seed", "1", "--settings", "dual 0.75")
        assert other["settings"][0]["seed"] == 1
        assert row_of(other, "v0", "dual 0.75")["psnr_masked_db"] != row_of(result, "v0", "dual 0.75")["psnr_masked_db"]

    def test_batches_change_nothing_but_rounding(self, tmp_path: Path) -> None:
        # three superpatches of each of two sizes, and four of four sizes; complete coverage has several passes of each
        make_cache(tmp_path / "cache", [(16, 72, 40), (40, 33, 28)], ["val", "val"])
        write_checkpoint(tmp_path / "tiny.safetensors")
        found = []
        for size in (1, 2, 64):
            found.append(evaluated(tmp_path, tmp_path / "out", "--batch-size", size, "--settings", *EACH_MODE))
            assert found[-1]["batch_size"] == size
        for one, *others in zip(*(result["rows"] for result in found), strict=True):
            for other in others:
                assert one.keys() == other.keys()
                for key, value in one.items():
                    assert other[key] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value), key

    def test_lpips_where_its_weights_are(self, data: Path, tmp_path: Path) -> None:
        write_lpips_weights(tmp_path)
        settings = ("--settings", "dual 0.75", "auto-encoding")
        found = evaluated(data, tmp_path / "out", "--lpips", tmp_path, *settings, "--html", "--window", -160, 240)
        model, _ = load_checkpoint(data / "tiny.safetensors")
        distance, image = PerceptualDistance(tmp_path), unit(1)
        for setting in settings[1:]:
            made = reconstruct(model, image, protocol(0)[setting], name="v1")
            # the composite, where something is hidden
            shown = np.where(made.hidden, made.prediction, image) if setting == "dual 0.75" else made.prediction
            first, second = (((x * (HIGH - LOW) + LOW + 160) / 400).clip(0, 1) for x in (image, shown))
            expected = distance.of_slices(first, second)
            assert row_of(found, "v1", setting)["lpips"] == pytest.approx(expected, rel=1e-3)
        for name, words in (("evaluation.md", "| LPIPS |"), ("report.html", "LPIPS")):
            text = (tmp_path / "out" / name).read_text()
            assert words in text
            assert "LPIPS is left out" not in text

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            *(
                (("--window", *window), ("--window", "lower value first"))
                for window in (("240", "-160"), ("5", "5"), ("nan", "nan"), ("0", "inf"))
            ),
            (("--settings", "dual 0.8"), ("unknown setting 'dual 0.8'", "'dual 0.75'")),
            (("--batch-size", 0), ("--batch-size is 0", "1 or more")),
            (("--lpips", "."), ("no LPIPS weights", "leave out --lpips")),
            (("--checkpoint", "none.safetensors"), ("no such checkpoint",)),
            (("--data", "of training alone"), ("no volume of that split", "--split")),
        ],
    )
    def test_refused(
        self, data: Path, tmp_path: Path, options: Any, words: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        make_cache(Path("of training alone"), [(16, 16, 16)], ["train"])
        assert_refused(evaluate(data, tmp_path / "out", *options), *words)
        assert not (tmp_path / "out").exists()

    def test_what_an_earlier_evaluation_drew_goes_with_its_tables(self, data: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        options = ("--split", "train", "--settings")
        evaluate(data, output, *options, "auto-encoding", "--html").checked()
        assert "data:image/jpeg" in (output / "report.html").read_text()
        (output / "figures" / "mine.png").write_bytes(b"a picture of the user's")
        shutil.copy(data / "tiny.safetensors", tmp_path / "other.safetensors")
        evaluate(data, output, *options, "dual 0.5", "--checkpoint", tmp_path / "other.safetensors").checked()
        pictures = sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png"))
        assert pictures == ["figures/mine.png", "figures/other/v2.png"]
        assert not (output / "report.html").exists()


class TestCheckpoints:
    def test_runs_whose_checkpoints_have_one_name(self, data: Path, tmp_path: Path) -> None:
        """Every run's checkpoint is called model.safetensors."""
        paths = []
        for seed in (1, 2):
            (tmp_path / f"run{seed}").mkdir()
            paths.append(write_checkpoint(tmp_path / f"run{seed}" / "model.safetensors", seed))
        names = ["run1/model.safetensors", "run2/model.safetensors"]
        both = evaluated(data, tmp_path / "both", "--settings", "dual 0.75", "--checkpoint", *paths)
        assert [c["name"] for c in both["checkpoints"]] == names
        assert len({c["sha256"] for c in both["checkpoints"]}) == 2
        assert [(line["checkpoint"], line["volumes"]) for line in both["summary"]] == [(name, 2) for name in names]
        for path, line in zip(paths, both["summary"], strict=True):
            (alone,) = evaluated(data, tmp_path / "one", "--settings", "dual 0.75", "--checkpoint", path)["summary"]
            assert {**alone, "checkpoint": ""} == {**line, "checkpoint": ""}

    def test_other_windows_are_not_subtracted(self, data: Path, tmp_path: Path) -> None:
        soft_tissue = Preprocessing(windows_hu=((-160.0, 240.0),))
        narrow = write_checkpoint(tmp_path / "narrow.safetensors", preprocessing=soft_tissue)
        both = ("--settings", "dual 0.75", "--no-figures", "--checkpoint", data / "tiny.safetensors", narrow)
        done = evaluate(data, tmp_path / "out", *both, "--progress", "json").checked()
        assert "no differences" in done.named("warning")[-1]["message"]
        assert read(tmp_path / "out")["differences"] == []
        assert len(evaluated(data, tmp_path / "out", *both, "--window", "-160", "240")["differences"]) == 2

    @pytest.mark.parametrize("preset", ["paper", "small"])
    def test_every_preset(self, data: Path, tmp_path: Path, preset: str) -> None:
        """One window or two, with completion or without; on the training volume. The others differ in size alone."""
        checkpoint = write_preset(tmp_path / "preset.safetensors", preset)
        options = ("--split", "train", "--checkpoint", checkpoint, "--settings", *EACH_MODE)
        found = evaluated(data, tmp_path / "out", *options)
        assert found["data"]["volumes"] == ["v2"]
        for setting, key in zip(EACH_MODE, ("psnr_masked_db", "psnr_complete_db", "psnr_autoencoding_db"), strict=True):
            assert math.isfinite(row_of(found, "v2", setting)[key])

    def test_the_completion_can_be_left_out(self, data: Path, tmp_path: Path, result: dict[str, Any]) -> None:
        """Then the metrics are those of the same weights without a completion."""
        without = tmp_path / "core.safetensors"
        model, info = load_checkpoint(data / "tiny.safetensors")
        kept = {name: w for name, w in model.state_dict().items() if not name.startswith("completion.")}
        save_checkpoint(without, kept, replace(info, parts=("readout",)))
        expected = evaluated(data, tmp_path / "core", "--settings", "dual 0.75", "--checkpoint", without)
        found = evaluated(data, tmp_path / "out", "--settings", "dual 0.75", "--no-completion", "--html")
        assert (found["completion"], expected["completion"]) == (False, True)
        own, core = ({**r, "checkpoint": ""} for r in (found["rows"][0], expected["rows"][0]))
        assert own == core
        assert own["psnr_masked_db"] != row_of(result, "v0", "dual 0.75")["psnr_masked_db"]
        for name in ("evaluation.md", "report.html"):
            assert "--no-completion" in (tmp_path / "out" / name).read_text()

    def test_without_a_read_out_there_is_no_auto_encoding(self, data: Path, tmp_path: Path) -> None:
        without = write_checkpoint(tmp_path / "blind.safetensors", parts=("completion",))
        both = ("--settings", "dual 0.5", "auto-encoding", "--checkpoint", without, data / "tiny.safetensors")
        done = evaluate(data, tmp_path / "out", "--no-figures", "--progress", "json", "--html", *both).checked()
        assert "blind.safetensors has no read-out" in done.named("warning")[0]["message"]
        assert list(dict.fromkeys((row["checkpoint"], row["setting"]) for row in read(tmp_path / "out")["rows"])) == [
            ("blind.safetensors", "dual 0.5"),
            ("tiny.safetensors", "dual 0.5"),
            ("tiny.safetensors", "auto-encoding"),
        ]
        alone = evaluate(data, tmp_path / "none", "--settings", "auto-encoding", "--checkpoint", without)
        assert alone.status == 2
        assert "nothing is left to measure" in alone.err

    def test_training_volumes_are_named(self, data: Path, tmp_path: Path) -> None:
        model, info = load_checkpoint(data / "tiny.safetensors")
        entry = read_cache(data / "cache").select("val")[0]
        stage = {"training": {"data": {"sources_sha256": [entry.source_sha256]}}}
        seen = replace(info, training={"data": {}, "initialised_from": stage})
        save_checkpoint(tmp_path / "seen.safetensors", model.state_dict(), seen)
        options = ("--settings", "dual 0.5", "--checkpoint", tmp_path / "seen.safetensors", "--progress", "bar")
        result = evaluate(data, tmp_path / "out", "--no-figures", *options).checked()
        assert "was trained on 1 of these volumes" in result.err
        assert read(tmp_path / "out")["checkpoints"][0]["trained_on"] == [entry.name]
        assert "TRAINED on 1" in (tmp_path / "out" / "evaluation.md").read_text()

    def test_labels(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        a, b, c = Path("x/a.safetensors"), Path("y/a.safetensors"), Path("b.safetensors")
        assert label_checkpoints([a, c]) == {a: "a.safetensors", c: "b.safetensors"}
        assert label_checkpoints([a, b, c]) == {a: "x/a.safetensors", b: "y/a.safetensors", c: "b.safetensors"}
        assert label_checkpoints([c, tmp_path / "b.safetensors"]) == {c: "b.safetensors"}
        deep, flat = Path("a.safetensors"), Path("z/a.safetensors")
        assert len(set(label_checkpoints([deep, flat]).values())) == 2

    def test_another_spacing(self, data: Path, tmp_path: Path) -> None:
        shutil.copytree(data / "cache", tmp_path / "cache")
        index = (tmp_path / "cache" / "index.jsonl").read_text()
        (tmp_path / "cache" / "index.jsonl").write_text(index.replace('"spacing_mm": 1.5', '"spacing_mm": 2.0'))
        shutil.copy(data / "tiny.safetensors", tmp_path)
        assert_refused(evaluate(tmp_path, tmp_path / "out"), "1.5 mm", "2.0 mm", "tiny.safetensors")


class TestMasks:
    """Masks in a file."""

    SHAPES: ClassVar = {"v0": (24, 32, 40), "v1": (40, 33, 28)}
    PLANS: ClassVar = {
        "dual": Plan(MaskSpec("dual")),
        "complete": Plan(MaskSpec("uniform", 0.2, 0.2), "complete"),
        "none": Plan(MaskSpec("none")),
    }
    SIZES = ((32, 32, 32), (8, 8, 8))

    def masks(self, path: Path) -> dict[str, Plan]:
        return with_masks(path, self.PLANS, self.SHAPES, *self.SIZES)

    def test_they_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        made = self.masks(tmp_path / "masks")
        assert made["none"] is self.PLANS["none"]
        other = {name: replace(plan, seed=1) for name, plan in self.PLANS.items()}
        again = with_masks(tmp_path / "masks", other, self.SHAPES, *self.SIZES)
        for name in ("dual", "complete"):
            for volume, shape in self.SHAPES.items():
                boxes = partition(shape, *self.SIZES)
                assert len(boxes) > 1
                for box in boxes:
                    arguments = (token_grid(box.size, (8, 8, 8)), volume, box.index)
                    drawn, kept, read = (
                        superpatch_masks(arguments[0], plan, *arguments[1:])
                        for plan in (self.PLANS[name], made[name], again[name])
                    )
                    assert torch.equal(drawn, kept)
                    assert torch.equal(drawn, read)
        assert [path.name for path in tmp_path.iterdir()] == ["masks"]

    def test_a_part_of_what_a_file_holds_will_do(self, tmp_path: Path) -> None:
        self.masks(tmp_path / "masks")
        part = with_masks(tmp_path / "masks", {"dual": self.PLANS["dual"]}, {"v1": self.SHAPES["v1"]}, *self.SIZES)
        assert list(part["dual"].masks) == ["v1"]

    @pytest.mark.parametrize(
        ("plans", "shapes", "sizes", "message"),
        [
            ({}, {}, ((64, 32, 32), (8, 8, 8)), "a superpatch_size of 32x32x32, not 64x32x32 voxels"),
            ({}, {}, ((32, 32, 32), (8, 8, 4)), "a patch_size of 8x8x8, not 8x8x4 voxels"),
            ({}, {"v0": (24, 32, 48)}, SIZES, "'dual' of v0 of 24x32x40, not 24x32x48 voxels"),
            ({}, {"v2": (24, 32, 40)}, SIZES, "no masks for 'dual' of v2 of 24x32x40 voxels"),
            ({"tube": Plan(MaskSpec("tube"))}, {}, SIZES, "no masks for 'tube' of v0"),
            # one pass is no complete cover, several are no single mask
            ({"dual": Plan(MaskSpec("dual"), "complete")}, {}, SIZES, "'dual' do not fit the superpatches of v0"),
            ({"complete": Plan(MaskSpec("uniform"))}, {}, SIZES, "'complete' do not fit the superpatches of v0"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, tmp_path: Path, plans: dict[str, Plan], shapes: dict[str, Any], sizes: Any, message: str
    ) -> None:
        path = tmp_path / "masks.npz"
        self.masks(path)
        with pytest.raises(InputError, match=message):
            with_masks(path, self.PLANS | plans, self.SHAPES | shapes, *sizes)

    @pytest.mark.parametrize("wrong", [[[0, 2, 2]], [[2, 0]], [[0, 48]], [[-1, 3]], [[0.5]], [0, 1], [[]]])
    def test_damaged_masks_are_refused(self, tmp_path: Path, wrong: list[Any]) -> None:
        path = tmp_path / "masks.npz"
        self.masks(path)
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"dual/v1/1": np.array(wrong)})
        with pytest.raises(InputError, match="'dual' do not fit the superpatches of v1"):
            self.masks(path)

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04cut short"])
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "masks").write_bytes(content)
        with pytest.raises(InputError, match="not a file of masks"):
            self.masks(tmp_path / "masks")
        assert (tmp_path / "masks").read_bytes() == content

    def test_evaluate_measures_on_them(self, data: Path, tmp_path: Path, result: dict[str, Any]) -> None:
        """Another seed changes nothing, and what was written is what the seed draws."""
        masks = ("--masks", tmp_path / "masks.npz", "--settings", "dual 0.75", "auto-encoding", "--html")
        for name, seed in (("first", 0), ("second", 7)):
            found = evaluated(data, tmp_path / name, *masks, "--seed", seed)
            assert found["rows"] == [row_of(result, r["volume"], r["setting"]) for r in found["rows"]]
            assert found["masks"]["name"] == "masks.npz"
            assert found["settings"][0]["seed"] is None
            for page in ("evaluation.md", "report.html"):
                text = (tmp_path / name / page).read_text()
                assert f"masks of masks.npz ({found['masks']['sha256'][:12]})" in text
                assert "seed" not in text.split("</p>")[0]
        assert_refused(evaluate(data, tmp_path / "out", *masks, "--split", "train"), "no masks for 'dual 0.75' of v2")
        assert not (tmp_path / "out").exists()


class TestEnds:
    def test_output_is_checked_before_the_work(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("MAESILLib.evaluation.evaluate.reconstruct", lambda *_, **__: pytest.fail("worked in vain"))
        (tmp_path / "file").write_text("mine")
        assert_refused(evaluate(data, tmp_path / "file"), "file is a file")
        assert_refused(evaluate(data, tmp_path / "file" / "in"), "Not a directory")
        assert_refused(evaluate(data, tmp_path / ("x" * 300)), "File name too long")
        assert (tmp_path / "file").read_text() == "mine"
        (tmp_path / "figures").touch()
        assert_refused(evaluate(data, tmp_path), "figures is a file", "another output folder")

    def test_stopped(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Reporter, "progress", lambda *_: (tmp_path / "stop").touch())
        assert_refused(evaluate(data, tmp_path / "out", "--stop-file", tmp_path / "stop"), "stop file", status=3)
        assert not (tmp_path / "out").exists()

    def test_a_full_disk(self, data: Path, tmp_path: Path) -> None:
        with file_size_limit(500):
            options = ("--settings", "dual 0.5", "--progress", "json")
            result = evaluate(data, tmp_path / "out", *options)
        assert_refused_event(result, "disk_full", 4)
        assert leftovers(tmp_path) == []
        assert not list(tmp_path.rglob("evaluation.*"))

    @pytest.mark.parametrize("name", ["load_checkpoint", "reconstruct"])
    def test_memory(self, data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def too_large(*_: object, **__: object) -> None:
            torch.empty(1 << 60, dtype=torch.uint8)

        monkeypatch.setattr(f"MAESILLib.evaluation.evaluate.{name}", too_large)
        assert_refused(evaluate(data, tmp_path / "out"), "too little memory", "--device cpu", status=4)

    def test_a_volume_too_small_to_hide_anything(self, data: Path, tmp_path: Path) -> None:
        """One column of patches: the dual mask keeps one of one position. No figure, and no NaN in the files."""
        make_cache(tmp_path / "cache", [(24, 8, 8), (24, 24, 24)], ["val", "val"])
        shutil.copy(data / "tiny.safetensors", tmp_path)
        evaluate(tmp_path, tmp_path / "out", "--settings", "dual 0.5").checked()
        found = read(tmp_path / "out")
        assert row_of(found, "v0", "dual 0.5")["psnr_masked_db"] is None
        assert row_of(found, "v0", "dual 0.5")["baseline_mean_psnr_masked_db"] is None
        assert math.isfinite(row_of(found, "v1", "dual 0.5")["psnr_masked_db"])


def test_what_prepare_makes_can_be_evaluated(tmp_path: Path, data: Path) -> None:
    for number in range(2):
        write_ct(tmp_path / "in" / f"p{number}.nrrd", (16, 24, 32), number)
    maesil("prepare", tmp_path / "in", "--output", tmp_path / "cache", "--progress", "off").checked()
    shutil.copy(data / "tiny.safetensors", tmp_path)
    found = evaluated(tmp_path, tmp_path / "out", "--settings", "dual 0.5")
    (held_out,) = read_cache(tmp_path / "cache").select("val")
    assert found["data"]["volumes"] == [held_out.name]
