"""``maesil info``: checkpoints, caches, volumes and the system, as text and as an event."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_factory import JSON, QUIET, REPOSITORY, assert_refused, maesil, write_ct
from training_factory import tiny_config

from MAESILLib import __version__
from MAESILLib.config import to_dict
from MAESILLib.device import choose_device
from MAESILLib.events import parse_event
from MAESILLib.system import describe_system


def described(*arguments: object) -> dict[str, Any]:
    """The one info event of a command; nothing else is on stdout."""
    result = maesil("info", *arguments, *JSON)
    assert result.status == 0, result.err
    assert result.err == ""
    assert [event["event"] for event in result.events] == ["started", "info", "done"]
    return result.events[1]


class TestText:
    """For people."""

    def test_checkpoint(self, checkpoint: Path) -> None:
        result = maesil("info", checkpoint, *QUIET)
        assert result.status == 0
        text = json.loads(result.out)
        assert text["name"] == "tiny.safetensors"
        assert text["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert text["model"]["superpatch_size"] == [32, 32, 32]
        assert text["preprocessing"] == {"spacing_mm": 1.5, "window_hu": [-1000.0, 1000.0]}

    def test_volume(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "scan.mha", (12, 40, 48), spacing_dhw=(3.0, 0.75, 0.7))
        result = maesil("info", path, *QUIET)
        assert result.status == 0
        assert "12 x 40 x 48 (D x H x W)" in result.out
        assert "3 x 0.75 x 0.7 mm" in result.out
        # 12 * 3 / 1.5, 40 * .75 / 1.5, 48 * .7 / 1.5 rounded up
        assert "24 x 20 x 23" in result.out

    def test_cache(self, tmp_path: Path, scan: Path) -> None:
        assert maesil("prepare", scan, "--output", tmp_path / "cache", *QUIET).status == 0
        result = maesil("info", tmp_path / "cache", *QUIET)
        assert result.status == 0
        assert "1 volumes of 1 patients" in result.out
        assert "scan: 40 x 48 x 44" in result.out

    def test_what_is_none_of_these(self, tmp_path: Path) -> None:
        (tmp_path / "index.json").write_text("[]")
        assert_refused(maesil("info", tmp_path, *QUIET), "index.json has schema None")
        (tmp_path / "notes.safetensors").write_text("hello")
        assert_refused(maesil("info", tmp_path / "notes.safetensors", *QUIET), "not a readable checkpoint")


class TestEvent:
    """For a panel."""

    def test_it_says_what_it_is(self) -> None:
        assert parse_event('{"event": "info"}') is None
        assert parse_event('{"event": "info", "what": "volume"}')

    def test_checkpoint(self, checkpoint: Path) -> None:
        info = described(checkpoint)
        assert (info["what"], info["path"], info["name"]) == ("checkpoint", str(checkpoint), "tiny.safetensors")
        assert info["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert info["model"] == to_dict(tiny_config().model)
        assert info["preprocessing"] == {"spacing_mm": 1.5, "window_hu": [-1000.0, 1000.0]}
        assert info["library_version"] == __version__
        assert {"mask", "training", "megabytes"} <= set(info)

    def test_volume(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "scan.nii", (12, 40, 48), spacing_dhw=(3.0, 0.75, 0.5))
        data = bytearray(path.read_bytes())
        data[252:256] = b"\0\0\0\0"  # qform_code, sform_code
        path.write_bytes(data)
        info = described(path)
        assert (info["what"], info["name"], info["voxel_type"]) == ("volume", "scan", "int16")
        assert info["size_dhw"] == [12, 40, 48]
        assert info["spacing_dhw_mm"] == [3.0, 0.75, 0.5]
        assert len(info["origin_lps_mm"]) == 3
        assert len(info["direction_lps"]) == 9
        assert info["model_grid"] == {"size_dhw": [24, 20, 16], "spacing_mm": 1.5}
        low, high = info["hu_range"]
        assert -1024 <= low < -900 < 400 < high
        assert "left and right are a guess" in info["warnings"][0]

    def test_cache(self, tmp_path: Path, scan: Path) -> None:
        (tmp_path / "notes.nii").write_text("no CT")
        assert maesil("prepare", scan, tmp_path / "notes.nii", "--output", tmp_path / "cache", *QUIET).status == 0
        info = described(tmp_path / "cache")
        assert (info["what"], info["spacing_mm"]) == ("cache", 1.5)
        (volume,) = info["volumes"]
        assert (volume["name"], volume["shape_dhw"], volume["split"]) == ("scan", [40, 48, 44], "")
        (refused,) = info["refused"]
        assert refused["source"] == str(tmp_path / "notes.nii")


class TestSystem:
    def test_event(self) -> None:
        info = described("--system")
        assert (info["what"], info["maesil"]) == ("system", __version__)
        assert info["python"] == ".".join(map(str, sys.version_info[:3]))
        assert info["executable"] == sys.executable
        assert info["packages"]["torch"] == torch.__version__
        assert set(info["packages"]) == {"torch", "numpy", "scipy", "SimpleITK", "safetensors", "matplotlib"}
        assert all(info["packages"].values())
        assert info["problems"] == {}
        cpu = info["devices"][-1]
        assert cpu["kind"] == "cpu"
        assert cpu["name"]
        assert 1 <= cpu["cores"] <= (os.cpu_count() or 1)
        assert cpu["memory_total_gib"] > 0.5
        assert cpu["memory_free_gib"] is None or 0 < cpu["memory_free_gib"] <= cpu["memory_total_gib"]
        for device in info["devices"]:
            assert str(choose_device(device["kind"])) == device["kind"]
        assert choose_device(info["auto"]).type == choose_device("auto").type

    def test_text(self) -> None:
        result = maesil("info", "--system", *QUIET)
        assert result.status == 0
        assert f"Python {'.'.join(map(str, sys.version_info[:3]))}" in result.out
        assert f"\ntorch {torch.__version__}\n" in result.out
        assert " cores" in result.out.splitlines()[-1]
        assert "GiB memory" in result.out.splitlines()[-1]

    def test_cards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def memory(index: int) -> tuple[int, int]:
            if index == 1:
                raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")
            return 3 << 30, 8 << 30

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
        properties = types.SimpleNamespace(total_memory=8 << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
        info = describe_system()
        assert info["devices"][:2] == [
            {"kind": "cuda:0", "name": "Card 0", "memory_total_gib": 8.0, "memory_free_gib": 3.0},
            {"kind": "cuda:1", "name": "Card 1", "memory_total_gib": 8.0, "memory_free_gib": None},
        ]
        assert info["devices"][2]["kind"] == "cpu"
        assert info["auto"] == "cuda:0"
        assert info["problems"] == {"cuda:1": "RuntimeError: CUDA-capable device(s) is/are busy or unavailable"}
        assert "cuda:1: Card 1, 8.0 GiB memory (RuntimeError: CUDA" in maesil("info", "--system", *QUIET).out

    def test_apple(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        info = describe_system()
        assert [device["kind"] for device in info["devices"]] == ["mps", "cpu"]
        assert info["auto"] == "mps"

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("raise ImportError('No module named torch')", "ImportError: No module named torch"),
            ("raise OSError('libcudart.so.12: cannot open\\nshared object file')", "OSError: libcudart.so.12: cannot"),
            ("pass", "AttributeError"),
        ],
    )
    def test_a_torch_that_is_not_there_or_broken(self, tmp_path: Path, code: str, words: str) -> None:
        """What a panel asks before it offers to install one."""
        (tmp_path / "torch.py").write_text(code)
        command = [sys.executable, "-m", "MAESILLib", "info", "--system", "--progress"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
        for mode in ("json", "off"):
            done = subprocess.run(
                [*command, mode], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            assert words in done.stdout
        info = json.loads(subprocess.check_output([*command, "json"], cwd=tmp_path, env=environment).splitlines()[1])
        assert info["packages"]["torch"] is None
        assert info["packages"]["numpy"]
        assert words in info["problems"]["torch"]
        assert [device["kind"] for device in info["devices"]] == ["cpu"]
