"""``maesil export`` end to end, and the script that fine-tunes what it writes."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import (
    JSON,
    QUIET,
    REPOSITORY,
    assert_refused,
    file_size_limit,
    leftovers,
    maesil,
    run_process,
    write_image,
)
from export_factory import smooth_image
from volume_factory import geometry

from MAESILLib.export.encoder import load_encoder
from MAESILLib.export.monai_nets import monai_unetr, monai_vit


class TestCommand:
    """From a checkpoint to a file that loads."""

    def test_every_format(self, lively: Path, tmp_path: Path) -> None:
        size, image = ("--size", 16, 32, 24), smooth_image((16, 32, 24))
        for kind, more in (("torch", ()), ("vit", size), ("unetr", size)):
            result = maesil("export", lively, "--format", kind, "--output", tmp_path / f"new/{kind}.safetensors", *more)
            assert result.status == 0, result.err
            assert "images of 1.5 mm, HU [-900, 700] mapped to [0, 1], LPS" in result.out
        assert leftovers(tmp_path) == []
        with torch.no_grad():
            expected = load_encoder(lively)(image)
            assert torch.equal(load_encoder(tmp_path / "new/torch.safetensors")(image), expected)
            for net in (
                monai_vit(tmp_path / "new/vit.safetensors"),
                monai_unetr(tmp_path / "new/unetr.safetensors", 2).vit,
            ):
                assert (net(image)[0] - expected).abs().max() < 1e-5

    def test_patches_of_16(self, lively: Path, tmp_path: Path) -> None:
        output = tmp_path / "unetr.safetensors"
        result = maesil("export", lively, "--format", "unetr", "--patch", 16, "--size", 32, 32, 48, "--output", output)
        assert result.status == 0, result.err
        assert "images of 0.75 mm" in result.out
        assert monai_unetr(output, 2).feat_size == (2, 2, 3)

    def test_the_embedded_checkpoint_as_a_process(self, tmp_path: Path) -> None:
        output = tmp_path / "encoder.safetensors"
        result = run_process("export", "--format", "torch", "--output", output, *JSON)
        assert result.status == 0, result.err
        assert result.named("artifact")[0]["path"] == str(output)
        assert load_encoder(output).width == 320

    def test_an_older_file_is_replaced(self, lively: Path, tmp_path: Path) -> None:
        output = tmp_path / "encoder.safetensors"
        output.write_text("older")
        assert maesil("export", lively, "--format", "torch", "--output", output, *QUIET).status == 0
        assert load_encoder(output).width == 48

    def test_images_larger_than_in_training_are_warned_about(self, lively: Path, tmp_path: Path) -> None:
        arguments = ("export", lively, "--format", "vit", "--output", tmp_path / "vit.safetensors", *JSON, "--size")
        assert maesil(*arguments, 48, 48, 48).named("warning") == []
        assert "larger than" in maesil(*arguments, 48, 48, 56).named("warning")[0]["message"]

    def test_info_describes_it(self, lively: Path, tmp_path: Path) -> None:
        output = tmp_path / "encoder.safetensors"
        maesil("export", lively, "--format", "torch", "--output", output, *QUIET)
        said = json.loads(maesil("info", output, *QUIET).out)
        assert said["kind"] == "torch"
        assert said["source"]["name"] == "lively.safetensors"
        assert maesil("info", output, *JSON).named("info")[0]["what"] == "export"

    def test_an_export_is_no_checkpoint(self, lively: Path, scan: Path, tmp_path: Path) -> None:
        output = tmp_path / "encoder.safetensors"
        maesil("export", lively, "--format", "torch", "--output", output, *QUIET)
        result = maesil("reconstruct", scan, "--checkpoint", output, "--output", tmp_path / "result", *QUIET)
        assert_refused(result, "maesil-export/1")
        again = maesil("export", output, "--format", "vit", "--output", tmp_path / "vit.safetensors", *QUIET)
        assert_refused(again, "is an export already", "lively.safetensors")


class TestRefused:
    """One clear line, and nothing is written."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--format", "vit", "--size", 16, 20, 16), ("(16, 20, 16)", "multiples of 8")),
            (("--format", "vit", "--size", 16, -8, 16), ("(16, -8, 16)",)),
            (("--format", "unetr", "--size", 8, 16, 16), ("too small", "16")),
            (("--format", "unetr", "--size", 24, 32, 32, "--patch", 16), ("multiples of 16",)),
            (("--format", "torch", "--size", 16, 16, 16), ("any size", "leave the size out")),
            (("--format", "vit", "--patch", 16), ("leave the patch out",)),
            (("--format", "onnx"), ("invalid choice", "onnx")),
            ((), ("--format",)),
        ],
    )
    def test_arguments(self, lively: Path, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str]) -> None:
        result = maesil("export", lively, "--output", tmp_path / "e.safetensors", *arguments, *QUIET)
        assert_refused(result, *words)
        assert list(tmp_path.iterdir()) == []

    def test_outputs(self, lively: Path, tmp_path: Path) -> None:
        (tmp_path / "folder.safetensors").mkdir()
        (tmp_path / "file").touch()
        before = lively.read_bytes()
        for output, words in (
            (tmp_path / "encoder.pt", ("encoder.safetensors",)),
            (tmp_path / "folder.safetensors", ("is a folder",)),
            (tmp_path / "file" / "e.safetensors", ("is a file",)),
            (lively, ("the checkpoint itself",)),
        ):
            assert_refused(maesil("export", lively, "--format", "torch", "--output", output, *QUIET), *words)
        assert lively.read_bytes() == before

    def test_checkpoints(self, tmp_path: Path) -> None:
        torch.save({}, tmp_path / "pickle.pt")
        for name, words in (("pickle.pt", ("not a readable",)), ("none.safetensors", ("no such checkpoint",))):
            output = tmp_path / "out" / "e.safetensors"
            result = maesil("export", tmp_path / name, "--format", "torch", "--output", output, *QUIET)
            assert_refused(result, name, *words)
            assert not output.exists()

    @pytest.mark.parametrize("missing", ["monai", "einops"])
    def test_without_monai(self, lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, missing, None)
        arguments = ("export", lively, "--output", tmp_path / "e.safetensors", *QUIET, "--format")
        for kind in ("vit", "unetr"):
            assert_refused(maesil(*arguments, kind), f"{missing} is not installed", "pip install 'maesil[compare]'")
        assert list(tmp_path.iterdir()) == []
        assert maesil(*arguments, "torch").status == 0

    def test_a_full_disk(self, lively: Path, tmp_path: Path) -> None:
        with file_size_limit(10_000):
            result = maesil("export", lively, "--format", "torch", "--output", tmp_path / "e.safetensors", *QUIET)
        assert_refused(result, "e.safetensors", status=4)
        assert list(tmp_path.iterdir()) == []


def test_the_page_on_downstream_work(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and its Python, in its order, with the embedded checkpoint."""
    text = (REPOSITORY / "docs" / "Downstream.md").read_text(encoding="utf-8")
    shutil.copy(scan, tmp_path / "ct.nii.gz")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^ {4}maesil (.+)$", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert maesil(*shlex.split(command), *QUIET).status == 0, command
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert names["tokens"].shape == (1, 5 * 6 * 6, 320)
    assert [tuple(m.shape) for m in names["maps"]] == 8 * [(1, 320, 5, 6, 6)]
    assert names["vit"].norm.weight.shape == (320,)
    # what the page says of blocks, arguments and exchanged modules
    blocks = names["net"].vit.blocks
    assert [n for n, block in enumerate(blocks) if not isinstance(block, torch.nn.Identity)] == [
        0,
        2,
        3,
        5,
        6,
        8,
        9,
        11,
    ]
    assert blocks[0].attn.input_rearrange.query_norm.weight.shape == (64,)


def test_fine_tuning_runs(
    lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "Testing" / "Benchmarks"))
    import finetune_sts

    rows = [
        {"file": f"c{n}.nii.gz", "dataset": "sts", "split": "train" if n < 3 else "val", "labels": "1=x" if n else ""}
        for n in range(5)
    ]
    with open(tmp_path / "MANIFEST.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    rng = np.random.default_rng(0)
    size = (24, 40, 32)
    for row in rows:
        tumour = np.zeros(size, np.uint8)
        tumour[8:18, 10:26, 8:20] = 1
        hu = np.where(tumour, 300, -200) + rng.normal(0, 30, size)
        grid = geometry(size, (1.5, 1.5, 1.5))
        write_image(tmp_path / row["file"], hu.astype(np.int16), grid)
        write_image(tmp_path / row["file"].replace(".nii", "_seg.nii"), tumour, grid)
    output = tmp_path / "out.json"
    arguments = ["--data", tmp_path, "--checkpoint", lively, "--cases", 2, "--steps", 12, "--crop", 16, "--features", 4]
    finetune_sts.main([str(a) for a in [*arguments, "--learning-rate", 0.02, "--output", output]])
    result = json.loads(output.read_text())
    assert [(row["arm"], row["seed"]) for row in result["runs"]] == [("pretrained", 0), ("scratch", 0)]
    # two of three training rows have labels
    assert "2 training and 2 validation cases" in capsys.readouterr().out
    for row in result["runs"]:
        assert set(row["dice"]) == {"c3", "c4"}
        assert row["last_losses"] < row["first_losses"] or row["mean_dice"] > 0.5
