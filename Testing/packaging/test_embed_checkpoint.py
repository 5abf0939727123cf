"""The script that writes the checkpoint that ships: int8, its data, licence and metrics inside, and its limits."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cli_factory import REPOSITORY
from training_factory import make_cache, tiny_config

from MAESILLib.data.cache import Cache
from MAESILLib.data.provenance import describe_data
from MAESILLib.mae.checkpoint import load_checkpoint, read_info, read_weights, save_checkpoint
from MAESILLib.runtime.files import sha256_of
from MAESILLib.training.trainer import Trainer

METRICS = {"psnr_masked_db": 25.5, "ssim_composite": 0.8, "border_index": 1.1, "nothing": 3.0}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    return importlib.import_module("embed_checkpoint")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("data") / "cache", [(32, 32, 32)] * 3, ["train", "train", "val"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, cache: Cache) -> Path:
    """A checkpoint of a run that began from another, both of a cache that called the patient something else."""
    run = tmp_path_factory.mktemp("source") / "run"
    Trainer(tiny_config(steps=1), cache, run).run()
    path = run / "model.safetensors"
    info = read_info(path)
    old = {**info.training["data"], "patients_sha256": ["0" * 16]}
    training = {**info.training, "data": old}
    training["initialised_from"] = {"name": "model.safetensors", "training": dict(training)}
    save_checkpoint(path, read_weights(path), dataclasses.replace(info, training=training))
    return path


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["embed_checkpoint.py", *map(str, arguments)])
    script.main()


def evaluated(folder: Path, source: Path, target: Path) -> Path:
    """What maesil evaluate writes of both, as far as it is read."""
    described = [{"name": path.stem, "sha256": sha256_of(path)} for path in (source, target)]
    lower = METRICS | {"psnr_masked_db": 25.4}
    summary = [
        {"checkpoint": path.stem, "setting": "dual 0.75", "volumes": 1, **metrics}
        for path, metrics in ((source, METRICS), (target, lower))
    ]
    result = {"data": {"volumes": ["v2"]}, "checkpoints": described, "window_hu": [-1000, 1000], "summary": summary}
    (folder / "evaluation.json").write_text(json.dumps(result))
    return folder / "evaluation.json"


def probed(folder: Path, target: Path, without: str = "") -> Path:
    """What maesil probe writes, as far as it is read."""
    values = {("encoder", "all"): 0.7, ("encoder", "soft tissue"): 0.65, ("hand-made", "all"): 0.69}
    values |= {("hand-made", "soft tissue"): 0.66, ("random weights", "all"): 0.6}
    values |= {("random weights", "soft tissue"): 0.58, ("position", "all"): 0.5}
    where = {"source": "points", "metric": "AUROC"}
    lines = [
        {**where, "window": window, "feature": feature, "group": group, "value": value + (window == 128)}
        for (feature, group), value in values.items()
        for window in (64, 128)
        if feature != without
    ]
    (folder / "probe.json").write_text(json.dumps({"checkpoint": {"sha256": sha256_of(target)}, "metrics": lines}))
    return folder / "probe.json"


def test_it_ships(
    tmp_path: Path,
    script: ModuleType,
    source: Path,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "maesil.safetensors"
    run(script, monkeypatch, source, target, "--data", cache.folder)
    assert target.stat().st_size < 0.4 * source.stat().st_size
    # the encoder was probed before the completion was trained
    early, info = tmp_path / "early.safetensors", read_info(source)
    without = {name: w for name, w in read_weights(source).items() if not name.startswith("completion.")}
    save_checkpoint(early, without, dataclasses.replace(info, parts=("readout",)), as_int8=True)
    files: tuple[object, ...] = ("--evaluation", evaluated(tmp_path, source, target))
    files += ("--probe", probed(tmp_path, early), "--probed", early)
    capsys.readouterr()
    run(script, monkeypatch, source, target, "--data", cache.folder, *files, "--points", "/data/points.csv")
    assert "dual 0.75: psnr_masked_db 25.500, in int8 25.400, -0.100" in capsys.readouterr().out
    trained, before = (load_checkpoint(path)[0].state_dict() for path in (target, source))
    for name, weight in before.items():
        torch.testing.assert_close(trained[name], weight, atol=0.01, rtol=0.01)
    training: dict[str, Any] = read_info(target).training
    assert training["probe"] == {
        **{"points": "points.csv", "window": 64, "auroc": 0.7, "auroc_soft": 0.65, "handmade_auroc": 0.69},
        **{"handmade_auroc_soft": 0.66, "random_auroc": 0.6, "random_auroc_soft": 0.58},
    }
    kept = {"psnr_masked_db": 25.4, "ssim_composite": 0.8, "border_index": 1.1}
    assert training["evaluation"]["settings"] == {"dual 0.75": kept}
    assert "Apache-2.0" in training["licence"]
    expected = describe_data(cache, cache.select("train"))
    assert training["data"] == training["initialised_from"]["training"]["data"] == expected
    assert not list(tmp_path.glob("*.unchecked"))


def test_what_it_refuses(
    tmp_path: Path, script: ModuleType, source: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "maesil.safetensors"
    run(script, monkeypatch, source, target, "--data", cache.folder)
    before = target.read_bytes()

    def refused(match: str, *options: object, data: Path = cache.folder) -> None:
        with pytest.raises(SystemExit, match=match):
            run(script, monkeypatch, source, target, "--data", data, *options)
        assert target.read_bytes() == before

    other = make_cache(tmp_path / "other", [(32, 32, 32)])
    refused("holds 1 of the 2 volumes", data=other.folder)
    refused("does not measure .*maesil", "--probe", probed(tmp_path, source))
    # the same encoder before it was stored as int8
    refused("has another encoder than", "--probe", probed(tmp_path, source), "--probed", source)
    refused("lacks handmade_auroc at a window of 64", "--probe", probed(tmp_path, target, "hand-made"))
    refused("does not measure the target", "--evaluation", evaluated(tmp_path, source, source))
    refused("hold a path: .*/home/me", "--licence", "/home/me")
    assert script.MOST_BYTES == 4 * 2**20
    monkeypatch.setattr(script, "MOST_BYTES", 1000)
    refused("more than 1000")
    assert not list(tmp_path.glob("*.unchecked"))
