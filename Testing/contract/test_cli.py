"""The command line as a contract: usage, bad input, output folders, options of a configuration."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_factory import (
    JSON,
    QUIET,
    assert_refused,
    assert_refused_event,
    maesil,
    no_root,
    reconstruct,
    run_process,
    run_python,
    write_ct,
    write_image,
)
from export_factory import rewritten
from safetensors.torch import save_file
from volume_factory import geometry, trunk

from MAESILLib import __version__, cli
from MAESILLib.runtime.errors import CancelledError

COMMANDS = (
    *("demo", "reconstruct", "prepare", "pretrain"),
    *("evaluate", "compare", "probe", "export", "info"),
)


class TestImports:
    def test_nothing_heavy_is_imported_before_it_is_needed(self) -> None:
        """The Slicer panel reads events in Slicer's own process, where torch is never imported."""
        code = (
            "import sys, MAESILLib.cli, MAESILLib.runtime.events, MAESILLib.runtime.errors, MAESILLib.config\n"
            "try:\n    MAESILLib.cli.main(['reconstruct', '--help'])\n"
            "except SystemExit as end:\n    assert end.code == 0\n"
            "assert MAESILLib.cli.main(['reconstruct', '--progress', 'off']) == 2\n"
            "heavy = {'torch', 'SimpleITK', 'numpy', 'scipy', 'matplotlib', 'safetensors'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        done = run_python(code)
        assert done.returncode == 0, done.stderr

    def test_help_and_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments in (["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
            with pytest.raises(SystemExit) as end:
                cli.main(arguments)
            assert end.value.code == 0
            text = capsys.readouterr().out
            if arguments[-1] == "--help" and len(arguments) == 2:
                for option in ("--device", "--threads", "--seed", "--progress", "--stop-file", "--watch-parent"):
                    assert option in text
            if arguments == ["--version"]:
                assert text == f"maesil {__version__}\n"

    def test_the_module_is_the_command(self) -> None:
        result = run_process("info", "nowhere", *QUIET)
        assert_refused(result, "no such file or folder: nowhere")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), ("required: COMMAND", "see maesil --help")),
            (("reconstrukt",), ("invalid choice: 'reconstrukt'", "reconstruct")),
            (("reconstruct",), ("INPUT, --output", "see maesil reconstruct --help")),
            (("reconstruct", "a", "b", "--output", "o", "--name", "x"), ("--name is for one input, and there are 2",)),
            (("reconstruct", "a", "b", "--output", "o", "--series", "1"), ("--series is for one input",)),
            (("reconstruct", "a", "--output", "o", "--maks", "dual"), ("unrecognized arguments: --maks dual",)),
            (("reconstruct", "a", "--outp", "o"), ("required: --output",)),
            (("reconstruct", "a", "--output", "o", "--seed", "x"), ("--seed", "'x'")),
            (("reconstruct", "a", "--output", "o", "--mask", "dula"), ("--mask", "'dula'", "'dual'")),
            (("reconstruct", "a", "--output", "o", "--coverage", "full"), ("--coverage", "'complete'")),
            (("reconstruct", "a", "--output", "o", "--format", "dcm"), ("--format", "'nrrd'", "'nii.gz'")),
            (("evaluate", "--data", "c", "--output", "o", "--window", "5"), ("--window", "2 arguments")),
            (("pretrain", "--data", "c", "--output", "o", "--preset", "huge"), ("--preset", "'huge'")),
            (("pretrain", "--data", "c", "--output", "o", "--set", "steps"), ("--set steps", "section.key=value")),
            (("pretrain", "--data", "c", "--output", "o", "--set", "train.stebs=1"), ("'train.stebs'", "train.steps")),
            (("pretrain", "--data", "c", "--output", "o", "--set", "tarin.steps=1"), ("unknown key 'tarin'",)),
            (("pretrain", "--data", "c", "--output", "o", "--set", "train.steps=ten"), ("train.steps", "'ten'")),
            (("pretrain", "--data", "c", "--output", "o", "--steps", "0"), ("train.steps",)),
            (("pretrain", "--data", "c", "--output", "o", "--config", "no.toml"), ("cannot read no.toml",)),
            (("pretrain", "--data", "nowhere", "--output", "o"), ("nowhere is not a cache", "maesil prepare")),
            (("evaluate", "--data", "nowhere", "--output", "o"), ("nowhere is not a cache", "maesil prepare")),
            (("prepare", "nowhere", "--output", "o"), ("no such file or folder: nowhere",)),
            (("info",), ("give a FILE, or --system",)),
            (("info", "--system", "x"), ("give a FILE, or --system without one",)),
            (("info", "nowhere"), ("no such file or folder: nowhere",)),
            (("info", "x" * 5000), ("File name too long",)),
        ],
    )
    def test_bad_usage_is_one_line_and_an_event(
        self, arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if arguments:
            error = assert_refused_event(maesil(*arguments, *JSON), "bad_input", 2)
            text = f"{error['message']}. {error['hint']}"
            assert_refused(maesil(*arguments, *QUIET), *words)
        else:
            result = maesil()
            assert (result.status, result.out) == (2, "")
            text = result.err
        for word in words:
            assert word in text
        assert list(tmp_path.iterdir()) == []

    def test_the_last_progress_counts_and_no_abbreviation(self, scan: Path) -> None:
        assert maesil("info", scan / "no", "--progress", "off", "--progress=json").named("error")
        assert maesil("info", scan / "no", *JSON, *QUIET).out == ""
        result = maesil("info", "nowhere", "--prog", "json")
        assert result.status == 2
        assert "--prog" in result.err, "the reporter would not know of it"


class TestReconstructInput:
    """Bad input of the main job: one clear line, status 2, nothing left."""

    def refused(self, tmp_path: Path, scan: Path, checkpoint: Path, words: tuple[str, ...], *more: object) -> None:
        assert_refused(reconstruct(scan, tmp_path / "new" / "out", checkpoint, *more), *words)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (("--plane-ratio", "0.96"), ("plane_ratio is 0.96", "0 to 0.95")),
            (("--axis-ratio", "-0.1"), ("axis_ratio is -0.1",)),
            (("--plane-ratio", "nan"), ("plane_ratio is nan",)),
            (("--overlap", "0.8"), ("overlap is 0.8", "0 to 0.75")),
            (("--overlap", "nan"), ("overlap is nan",)),
            (("--overlap", "-0.25"), ("overlap is -0.25",)),
            (("--mask", "none", "--coverage", "complete"), ("hides nothing", "single")),
            (
                ("--coverage", "complete", "--plane-ratio", "0", "--axis-ratio", "0"),
                ("hides no token", "larger ratios"),
            ),
            (("--threads", "-1"), ("--threads is -1",)),
            (("--device", "gpu"), ("unknown device 'gpu'", "cuda")),
            (("--device", "cuda:99"), ("cuda:99", "not there")),
            (("--series", "1.2.3"), ("not DICOM",)),
            pytest.param(
                *(("--device", "cuda"), ("'cuda' is not there", "choose another device")),
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
            ),
        ],
    )
    def test_options(
        self, tmp_path: Path, scan: Path, checkpoint: Path, more: tuple[str, ...], words: tuple[str, ...]
    ) -> None:
        self.refused(tmp_path, scan, checkpoint, words, *more)

    def test_files_that_are_no_ct(self, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "empty").mkdir()
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(trunk())] * 2), str(tmp_path / "4d.nii.gz"))
        labels = np.digitize(trunk(), [-500, 0, 300]).astype(np.uint8)
        write_image(tmp_path / "organs.nrrd", labels, geometry(labels.shape))
        signal_of_tissue = (trunk().astype(np.int32) + 1024) // 3 + 7
        write_image(tmp_path / "mr.nrrd", signal_of_tissue.astype(np.int16), geometry(signal_of_tissue.shape))
        texts = [f"notes{suffix}" for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".dcm", ".txt")]
        for name in texts:
            (tmp_path / name).write_text("patient was asleep\n" * 100)
        for name, words in (
            ("no.nii.gz", ("no such file", "no.nii.gz")),
            ("x" * 300 + ".nrrd", ("File name too long",)),
            ("empty", ("no DICOM CT series", "empty")),
            ("4d.nii.gz", ("4D", "one 3D volume")),
            ("organs.nrrd", ("label map", "organs.nrrd")),
            ("mr.nrrd", ("mr.nrrd", "Hounsfield")),
            *((name, (name,)) for name in texts),
        ):
            self.refused(tmp_path, tmp_path / name, checkpoint, words)

    def test_checkpoints_that_are_none(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(tmp_path / "sprung"),)

        (tmp_path / "trap.safetensors").write_bytes(pickle.dumps(Trap()))
        good = checkpoint.read_bytes()
        for name in ("nan", "part"):
            shutil.copy(checkpoint, tmp_path / f"{name}.safetensors")
        rewritten(tmp_path / "nan.safetensors", lambda tensors, _: tensors["core.decoder.head.bias"].fill_(torch.nan))
        rewritten(tmp_path / "part.safetensors", lambda tensors, _: tensors.pop("core.encoder.norm.weight"))
        (tmp_path / "short.safetensors").write_bytes(good[: len(good) // 2])
        (tmp_path / "empty.safetensors").write_bytes(b"")
        torch.save({"weights": torch.zeros(3)}, tmp_path / "pickle.safetensors")
        save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
        for name, words in (
            ("missing", ("no such checkpoint",)),
            ("short", ("short.safetensors is not a readable checkpoint",)),
            ("empty", ("empty.safetensors is not a readable checkpoint",)),
            ("pickle", ("pickle.safetensors is not a readable checkpoint",)),
            ("other", ("not a MAESIL checkpoint",)),
            ("trap", ("not a readable checkpoint",)),
            ("part", ("state dict mismatch: 1 tensors", "'core.encoder.norm.weight'")),
            ("nan", ("not finite", "checkpoint")),
        ):
            self.refused(tmp_path, scan, tmp_path / f"{name}.safetensors", words)
        self.refused(tmp_path, scan, tmp_path, ("no such checkpoint",))
        assert not (tmp_path / "sprung").exists(), "a pickle was run"


class TestOutputFolder:
    def test_cannot_be_made(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert_refused(reconstruct(scan, tmp_path / "file", checkpoint), "file is a file", "another output folder")
        assert_refused(reconstruct(scan, tmp_path / "file" / "in", checkpoint), "Not a directory")
        assert (tmp_path / "file").read_text() == "mine"
        assert_refused(reconstruct(scan, tmp_path / ("x" * 300), checkpoint), "File name too long")
        if Path("/proc/self").exists():
            assert_refused(reconstruct(scan, Path("/proc/maesil"), checkpoint), "cannot write /proc/maesil")

    def test_read_only(self, scan: Path, checkpoint: Path) -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            copies = [Path(shutil.copy(path, folder / path.name)) for path in (scan, checkpoint)]
            # once before, so that all is imported: without root's rights, a Python in root's home is out of reach
            reconstruct(*copies[:1], folder / "before", *copies[1:]).checked()
            before = sorted(folder.rglob("*"))
            for path in (folder, folder / "before"):
                path.chmod(0o555)
            with no_root():
                for output in (folder / "before", folder / "after"):
                    assert_refused(reconstruct(copies[0], output, copies[1]), "no permission", "another output folder")
                assert_refused(
                    maesil("prepare", copies[0], "--output", folder / "cache", *QUIET), "no permission to write"
                )
            assert sorted(folder.rglob("*")) == before
        finally:
            folder.chmod(0o755)
            shutil.rmtree(folder)

    @pytest.mark.parametrize("suffix", ["nrrd", "nii.gz"])
    def test_input_is_not_overwritten(self, tmp_path: Path, scan: Path, checkpoint: Path, suffix: str) -> None:
        path = write_ct(tmp_path / "out" / f"composite.{suffix}")
        before = path.read_bytes()
        result = reconstruct(path, tmp_path / "out", checkpoint, "--format", suffix)
        assert_refused(result, "would be overwritten", "another output folder")
        assert path.read_bytes() == before


class TestPretrainOptions:
    """What the command line makes of a configuration; training itself is tested elsewhere."""

    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """The configurations handed to the trainer, which is not run."""
        configurations: list[object] = []

        class Trainer:
            def __init__(self, config: object, *_: object, **__: object) -> None:
                configurations.append(config)
                raise CancelledError("not run here")

        monkeypatch.setattr("MAESILLib.training.trainer.Trainer", Trainer)
        return configurations

    @pytest.mark.parametrize(
        ("more", "seed"),
        [((), 7), (("--seed", "3"), 3), (("--seed", "0"), 0), (("--seed", "3", "--set", "train.seed=4"), 4)],
    )
    def test_seed(self, tmp_path: Path, cache: object, built: list[object], more: tuple[str, ...], seed: int) -> None:
        (tmp_path / "run.toml").write_text("preset = 'tiny'\n[train]\nseed = 7\nsteps = 5\n")
        arguments = ("--data", tmp_path / "cache", "--output", tmp_path / "run", "--config", tmp_path / "run.toml")
        assert maesil("pretrain", *arguments, *more, *QUIET).status == 3
        (config,) = built
        assert (config.train.seed, config.train.steps) == (seed, 5)

    def test_overrides(self, tmp_path: Path, cache: object, built: list[object]) -> None:
        arguments = ("--data", tmp_path / "cache", "--output", tmp_path / "run", "--preset", "tiny", "--steps", "9")
        sets = ("--set", "train.batch_size=3", "--set", "model.block_mix=false", "--set", 'mask.strategies=["tube"]')
        assert maesil("pretrain", *arguments, *sets, *QUIET).status == 3
        (config,) = built
        assert (config.train.steps, config.train.batch_size) == (9, 3)
        assert config.model.block_mix is False
        assert config.mask.strategies == ("tube",)

    def test_another_spacing(self, tmp_path: Path, cache: object) -> None:
        arguments = ("--data", tmp_path / "cache", "--output", tmp_path / "run")
        result = maesil("pretrain", *arguments, "--set", "preprocessing.spacing_mm=2.0", *QUIET)
        assert_refused(result, "1.5 mm", "2.0 mm")
        assert not (tmp_path / "run").exists()
