"""``maesil export`` end to end, its files, and the page about them."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_factory import JSON, QUIET, REPOSITORY, assert_refused, file_size_limit, leftovers, maesil
from export_factory import SIZE, TRAINING, raw_hu, rewritten
from safetensors.torch import save_file
from training_factory import write_of_first_release

from MAESILLib.export.encoder import load_encoder
from MAESILLib.export.nnunet import TRAINER, WEIGHTS
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import sha256_of


def export(checkpoint: Path, output: Path, kind: str = "torch") -> Path:
    maesil("export", checkpoint, "--format", kind, "--output", output, *QUIET).checked()
    return output


class TestCommand:
    def test_torch(self, lively: Path, tmp_path: Path) -> None:
        output = tmp_path / "new" / "encoder.safetensors"
        result = maesil("export", lively, "--format", "torch", "--output", output).checked()
        assert "1.5 mm, HU [-900, 700], [-160, 240] mapped to [0, 1], LPS" in result.out
        names: dict[str, Any] = {}
        exec(result.out.splitlines()[-1], names)
        image = names["encoder"].intensities(raw_hu(SIZE))
        with torch.no_grad():
            assert torch.equal(names["encoder"](image), load_encoder(lively)(image))
        assert leftovers(tmp_path) == []

    def test_nnunet(self, lively: Path, tmp_path: Path) -> None:
        result = maesil("export", lively, "--format", "nnunet", "--output", tmp_path / "new").checked()
        assert f"nnUNet_extTrainer='{tmp_path / 'new'}' nnUNetv2_train" in result.out
        assert {path.name for path in (tmp_path / "new").iterdir()} == {WEIGHTS, TRAINER}
        assert leftovers(tmp_path) == []

    def test_existing_files_are_overwritten(self, lively: Path, tmp_path: Path) -> None:
        for path, kind in ((tmp_path / "encoder.safetensors", "torch"), (tmp_path, "nnunet")):
            for name in ("encoder.safetensors", WEIGHTS, TRAINER):
                (tmp_path / name).write_text("x")
            result = maesil("export", lively, "--format", kind, "--output", path, *JSON).checked()
            assert result.named("artifact")[0]["path"] == str(path)
        assert all((tmp_path / name).stat().st_size > 1000 for name in (WEIGHTS, TRAINER))

    @pytest.mark.parametrize("kind", ["torch", "nnunet"])
    def test_info_describes_it(self, lively: Path, tmp_path: Path, kind: str) -> None:
        output = export(lively, tmp_path / "encoder.safetensors" if kind == "torch" else tmp_path / "new", kind)
        path = output if kind == "torch" else output / WEIGHTS
        said = json.loads(maesil("info", path, *QUIET).out)
        assert (said["format"], said["kind"]) == ("maesil-export/2", kind)
        assert said["source"] == {"name": "lively.safetensors", "sha256": sha256_of(lively)}
        assert (said["licence"], said["training"]) == ("weights: Apache-2.0", TRAINING)
        assert said["preprocessing"]["windows_hu"] == [[-900.0, 700.0], [-160.0, 240.0]]
        assert maesil("info", path, *JSON).named("info")[0]["what"] == "export"

    def test_an_export_is_no_checkpoint(self, lively: Path, scan: Path, tmp_path: Path) -> None:
        output = export(lively, tmp_path / "encoder.safetensors")
        result = maesil("reconstruct", scan, "--checkpoint", output, "--output", tmp_path / "result", *QUIET)
        assert_refused(result, "maesil-export/2")
        again = maesil("export", output, "--format", "nnunet", "--output", tmp_path / "new", *QUIET)
        assert_refused(again, "is an export already", "lively.safetensors")
        with pytest.raises(InputError, match="is an export for nnunet"):
            load_encoder(export(lively, tmp_path / "new", "nnunet") / WEIGHTS)


class TestRefused:
    """One clear line, and nothing is written."""

    def test_formats(self, lively: Path, tmp_path: Path) -> None:
        for arguments, word in ((("--format", "unetr"), "unetr"), ((), "--format")):
            assert_refused(maesil("export", lively, "--output", tmp_path / "e.safetensors", *arguments), word)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("kind", ["torch", "nnunet"])
    def test_a_checkpoint_of_the_first_release(self, tmp_path: Path, kind: str) -> None:
        output = tmp_path / "e.safetensors"
        first = write_of_first_release(tmp_path / "first.safetensors")
        result = maesil("export", first, "--format", kind, "--output", output, *QUIET)
        assert_refused(result, "maesil-checkpoint/1")
        assert list(tmp_path.iterdir()) == [first]

    def test_outputs(self, lively: Path, tmp_path: Path) -> None:
        (tmp_path / "folder.safetensors").mkdir()
        (tmp_path / "file").touch()
        shutil.copy(lively, tmp_path / WEIGHTS)
        before = lively.read_bytes()
        for checkpoint, kind, output, words in (
            (lively, "torch", tmp_path / "encoder.pt", ("encoder.safetensors",)),
            (lively, "torch", tmp_path / "folder.safetensors", ("is a folder",)),
            (lively, "torch", tmp_path / "file" / "e.safetensors", ("is a file",)),
            (lively, "nnunet", tmp_path / "file", ("is a file",)),
            (tmp_path / WEIGHTS, "torch", tmp_path / WEIGHTS, ("the checkpoint itself",)),
            (tmp_path / WEIGHTS, "nnunet", tmp_path, ("the checkpoint itself",)),
        ):
            assert_refused(maesil("export", checkpoint, "--format", kind, "--output", output, *QUIET), *words)
        assert (tmp_path / WEIGHTS).read_bytes() == before

    def test_other_files(self, tmp_path: Path) -> None:
        path, output = tmp_path / "other.safetensors", tmp_path / "out" / "e.safetensors"
        for words in ("no such checkpoint", "not a MAESIL checkpoint"):
            result = maesil("export", path, "--format", "torch", "--output", output, *QUIET)
            assert_refused(result, "other.safetensors", words)
            assert not output.exists()
            save_file({"a": torch.zeros(2)}, path, {"maesil": "[]"})

    @pytest.mark.parametrize(
        "others", [{}, {"encoder.norm.weight": torch.zeros(5)}], ids=["missing", "of another shape"]
    )
    def test_tensors_that_do_not_fit(self, lively: Path, tmp_path: Path, others: dict[str, torch.Tensor]) -> None:
        path = export(lively, tmp_path / "part.safetensors")
        rewritten(path, lambda tensors, _: [tensors.pop("encoder.norm.weight"), tensors.update(others)])
        with pytest.raises(InputError, match="1 tensors are missing, unexpected or of another shape"):
            load_encoder(path)

    @pytest.mark.parametrize(("key", "value"), [("kind", "onnx"), ("source", None), ("model", {})])
    def test_invalid_metadata(self, lively: Path, tmp_path: Path, key: str, value: object) -> None:
        path = export(lively, tmp_path / "part.safetensors")
        rewritten(path, lambda _, metadata: metadata.update({key: value}))
        with pytest.raises(InputError, match=r"part\.safetensors"):
            load_encoder(path)

    def test_a_full_disk(self, lively: Path, tmp_path: Path) -> None:
        with file_size_limit(10_000):
            result = maesil("export", lively, "--format", "torch", "--output", tmp_path / "e.safetensors", *QUIET)
        assert_refused(result, "e.safetensors", status=4)
        assert list(tmp_path.iterdir()) == []


def test_the_page_on_downstream_work(lively: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and its Python, in its order."""
    text = (REPOSITORY / "docs" / "Downstream.md").read_text(encoding="utf-8")
    shutil.copy(scan, tmp_path / "ct.nii.gz")
    shutil.copy(lively, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^ {4}maesil (.+)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert maesil(*shlex.split(command), *QUIET).status == 0, command
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block, names)
    assert names["tokens"].shape == (1, 5 * 6 * 6, 48)
    assert [tuple(m.shape) for m in names["maps"]] == 5 * [(1, 48, 5, 6, 6)]
