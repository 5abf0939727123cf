"""``maesil info``: checkpoints, caches, volumes and the system, as text and as an event."""

import hashlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from cli_factory import JSON, QUIET, REPOSITORY, assert_refused, maesil, write_checkpoint, write_ct
from training_factory import tiny_config
from volume_factory import forget_orientation, trunk, write_dicom
from worker_stub import header

from MAESILLib import __version__
from MAESILLib.commands import info as info_command
from MAESILLib.config import to_dict
from MAESILLib.runtime.device import choose_device
from MAESILLib.runtime.events import parse_event
from MAESILLib.runtime.system import describe_system


def described(*arguments: object) -> dict[str, Any]:
    """The one info event of a command; nothing else is on stdout."""
    result = maesil("info", *arguments, *JSON).checked()
    assert result.err == ""
    assert [event["event"] for event in result.events] == ["started", "info", "done"]
    return result.events[1]


class TestFiles:
    """As text for people, and as an event for a panel."""

    def test_checkpoint(self, checkpoint: Path) -> None:
        result = maesil("info", checkpoint, *QUIET).checked()
        lines = dict(line.split(": ", 1) for line in result.out.splitlines())
        sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert lines["tiny.safetensors"].endswith(f" MB, maesil {__version__}, sha256 {sha256}")
        assert "superpatch 32 x 32 x 32, patch 8 x 8 x 8 (D x H x W)" in lines["encoder"]
        assert lines["input"] == "1.5 mm, windows -1000 to 1000, -160 to 240 HU"
        for part in ("encoder", "decoder", "completion", "readout"):
            assert f"{part} 0." in lines["parameters"]
        assert lines["trained on"] == "0 crops of 0 CTs"
        assert lines["encoder against hand-made features"] == "not probed"
        info = described(checkpoint)
        assert (info["what"], info["path"], info["name"]) == ("checkpoint", str(checkpoint), "tiny.safetensors")
        assert info["sha256"] == sha256
        assert info["model"] == to_dict(tiny_config().model)
        assert info["preprocessing"] == {"spacing_mm": 1.5, "windows_hu": [[-1000.0, 1000.0], [-160.0, 240.0]]}
        assert list(info["parts"]) == ["encoder", "decoder", "completion", "readout"]
        assert info["library_version"] == __version__
        assert {"mask", "training", "megabytes"} <= set(info)

    PROBE: ClassVar = {"points": "points.csv", "window": 64, "auroc": 0.71, "auroc_soft": 0.66, "random_auroc": 0.6}

    @pytest.mark.parametrize(
        ("handmade", "words"),
        [
            ((0.70, 0.65), "encoder beats hand-made features for all structures and soft tissue: AUROC 0.710"),
            ((0.70, 0.66), "encoder beats hand-made features for all structures: "),
            ((0.72, 0.65), "encoder beats hand-made features for soft tissue: "),
            ((0.71, 0.67), "encoder does not beat hand-made features: AUROC 0.710, soft tissue 0.660; hand-made 0.710"),
            ((0.71, None), "encoder against hand-made features: not probed"),
        ],
    )
    def test_whether_the_encoder_beats_hand_made_features(
        self, tmp_path: Path, handmade: tuple[float, float | None], words: str
    ) -> None:
        made = dict(zip(("handmade_auroc", "handmade_auroc_soft"), handmade, strict=True))
        before = {"name": "model.safetensors", "training": {"samples": 4000}}
        training = {"samples": 320000, "initialised_from": before, "probe": self.PROBE | made}
        training |= {"data": {"volumes": ["a", "b"], "licences": ["CC BY 4.0"]}, "licence": "weights: Apache-2.0"}
        path = write_checkpoint(tmp_path / "c.safetensors", training=training)
        text = maesil("info", path, *QUIET).out
        assert words in text
        assert "trained on: 324,000 crops of 2 CTs, CC BY 4.0\n" in text
        assert "licence: weights: Apache-2.0\n" in text

    def test_volume(self, tmp_path: Path) -> None:
        path = forget_orientation(write_ct(tmp_path / "scan.nii", (12, 40, 48), spacing_dhw=(3.0, 0.75, 0.7)))
        result = maesil("info", path, *QUIET).checked()
        assert "12 x 40 x 48 (D x H x W)" in result.out
        assert "3 x 0.75 x 0.7 mm" in result.out
        # 12 * 3 / 1.5, 40 * .75 / 1.5, 48 * .7 / 1.5 rounded up
        assert "24 x 20 x 23" in result.out
        info = described(path)
        assert (info["what"], info["name"], info["voxel_type"]) == ("volume", "scan", "int16")
        assert info["size_dhw"] == [12, 40, 48]
        assert info["spacing_dhw_mm"] == pytest.approx([3.0, 0.75, 0.7])
        assert len(info["origin_lps_mm"]) == 3
        assert len(info["direction_lps"]) == 9
        assert info["model_grid"] == {"size_dhw": [24, 20, 23], "spacing_mm": 1.5}
        low, high = info["hu_range"]
        assert -1024 <= low < -900 < 400 < high
        assert "left and right are a guess" in info["warnings"][0]

    def test_folder(self, tmp_path: Path) -> None:
        """Of one study it is the volume, of several and of files a list, as prepare sees it."""
        tags = {"0020|000d": "1.2.7"}
        write_dicom(tmp_path / "scans" / "a" / "3", trunk() + 1024)
        *_, info, _ = maesil("info", tmp_path / "scans", *JSON).events
        assert info["what"] == "volume"
        cut = write_dicom(tmp_path / "scans" / "b", trunk() + 1024, uid="1.2.8", tags=tags)[5]
        cut.unlink()
        write_ct(tmp_path / "scans" / "ct.nii", (12, 40, 48), spacing_dhw=(3.0, 0.75, 0.7))
        (tmp_path / "scans" / "notes.nrrd").write_text("no CT")
        result = maesil("info", tmp_path / "scans", *QUIET).checked()
        head, *lines = result.out.splitlines()
        assert head.endswith("2 CTs (D x H x W, by their headers), 2 that cannot be used")
        assert "  3: 12 x 40 x 48, 2.5 x 0.8 x 0.7 mm" in lines
        assert "  ct: 12 x 40 x 48, 3 x 0.75 x 0.7 mm" in lines
        *_, info, _ = maesil("info", tmp_path / "scans", *JSON).events
        assert info["what"] == "folder"
        by_name = {row["name"]: row for row in info["inputs"]}
        assert by_name["ct"]["size_dhw"] == [12, 40, 48]
        assert "missing about 1 slice (" in by_name["b"]["problem"]
        assert "no NRRD header" in by_name["notes"]["problem"]

    def test_a_header_that_ends_its_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a", "crash", "z"):
            write_ct(tmp_path / f"{name}.nrrd", (12, 40, 48))
        monkeypatch.setattr(info_command, "_header", header)
        *_, info, _ = maesil("info", tmp_path, *JSON).events
        found = {row["name"]: row["problem"] for row in info["inputs"]}
        assert "the reader died (signal 11)" in found.pop("crash")
        assert found == {"a": "", "z": ""}

    def test_cache(self, tmp_path: Path, scan: Path) -> None:
        (tmp_path / "notes.nii").write_text("no CT")
        maesil("prepare", scan, tmp_path / "notes.nii", "--output", tmp_path / "cache", *QUIET).checked()
        result = maesil("info", tmp_path / "cache", *QUIET).checked()
        assert "1 volumes of 1 patients" in result.out
        assert "ct_0001: 40 x 48 x 44" in result.out
        info = described(tmp_path / "cache")
        assert (info["what"], info["spacing_mm"]) == ("cache", 1.5)
        (volume,) = info["volumes"]
        assert (volume["name"], volume["shape_dhw"], volume["split"]) == ("ct_0001", [40, 48, 44], "")
        (refused,) = info["refused"]
        assert refused["name"] == "ct_0002"

    def test_what_is_none_of_these(self, tmp_path: Path) -> None:
        (tmp_path / "index.json").write_text("[]")
        assert_refused(maesil("info", tmp_path, *QUIET), "index.json is not of schema 'maesil-cache/5'")
        (tmp_path / "notes.safetensors").write_text("hello")
        assert_refused(maesil("info", tmp_path / "notes.safetensors", *QUIET), "not a readable checkpoint")

    def test_an_event_says_what_it_is(self) -> None:
        assert parse_event('{"event": "info"}') is None
        assert parse_event('{"event": "info", "what": "volume"}')


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
        result = maesil("info", "--system", *QUIET).checked()
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
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
        out = {}
        for mode in ("json", "off"):
            command = [sys.executable, "-m", "MAESILLib", "info", "--system", "--progress", mode]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
            )
            assert words in done.stdout
            out[mode] = done.stdout.splitlines()
        info = json.loads(out["json"][1])
        assert info["packages"]["torch"] is None
        assert info["packages"]["numpy"]
        assert words in info["problems"]["torch"]
        assert [device["kind"] for device in info["devices"]] == ["cpu"]
