"""How a command ends that does not finish: out of memory or disk, or by a bug."""

import resource
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_factory import (
    JSON,
    assert_refused,
    assert_refused_event,
    file_size_limit,
    reconstruct,
    reconstruction,
    run_process,
    run_python,
)


class TestResources:
    """Status 4: memory and disk."""

    @pytest.mark.parametrize("suffix", ["nrrd", "nii.gz"])
    def test_a_write_fails(self, tmp_path: Path, scan: Path, checkpoint: Path, suffix: str) -> None:
        limit = 20_000
        assert sitk.ReadImage(str(scan)).GetNumberOfPixels() * 2 > limit
        result = run_process(
            *reconstruction(scan, tmp_path / "new" / "out", checkpoint, *JSON, "--format", suffix, "--threads", "1"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        error = assert_refused_event(result, "disk_full", 4)
        assert f"{tmp_path / 'new' / 'out'}" in error["message"]
        assert ".partial" not in error["message"]
        assert not result.named("artifact")
        assert not (tmp_path / "new").exists()

    def test_a_write_fails_over_older_results(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        reconstruct(scan, tmp_path, checkpoint).checked()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with file_size_limit(20_000):
            result = reconstruct(scan, tmp_path, checkpoint, "--seed", "1")
        assert_refused(result, status=4)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("library", ["numpy", "torch"])
    def test_memory(
        self, tmp_path: Path, scan: Path, checkpoint: Path, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_large(*_: object, **__: object) -> object:
            return np.empty(1 << 60, np.uint8) if library == "numpy" else torch.empty(1 << 60, dtype=torch.uint8)

        names = ("load_checkpoint", "ModelGrid.to_model", "reconstruct", "measure")
        steps = [f"reconstruct.results.{name}" for name in names]
        steps += ["data.apart.read_volume"] if library == "numpy" else []
        for step in steps:
            with monkeypatch.context() as patch:
                patch.setattr(f"MAESILLib.{step}", too_large)
                assert_refused(reconstruct(scan, tmp_path / "out", checkpoint), "too little memory", status=4)
                result = reconstruct(scan, tmp_path / "out", checkpoint, *JSON)
                assert_refused_event(result, "out_of_memory", 4)
        assert list(tmp_path.iterdir()) == []

    def test_a_bug_keeps_its_traceback(
        self, tmp_path: Path, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr("MAESILLib.reconstruct.results.measure", broken)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            reconstruct(scan, tmp_path / "out", checkpoint)
        assert list(tmp_path.iterdir()) == []

    def test_a_bug_is_status_1(self) -> None:
        code = (
            "import sys, MAESILLib.commands.info as info\nfrom MAESILLib.cli import main\n"
            "def run(*_): raise ZeroDivisionError('a bug')\ninfo.run = run\nsys.exit(main(['info', 'x']))"
        )
        done = run_python(code)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ZeroDivisionError: a bug" in done.stderr
