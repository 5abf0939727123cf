"""The README's commands, run in its order in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest
from cli_factory import REPOSITORY, write_ct

from MAESILLib.cli import main
from MAESILLib.runtime.resources import CHECKPOINT

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}maesil ([a-z]+ .+)$", README, re.MULTILINE)
TARGETS = re.findall(r"^ {4}make (\w+)", README, re.MULTILINE)


def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (REPOSITORY / "Resources" / CHECKPOINT).exists():
        pytest.skip("this checkout has no embedded checkpoint")
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ct", "scans/scan1", "scans/scan2")):
        write_ct(tmp_path / f"{name}.nii.gz", (48, 64, 64 - 8 * seed), seed)
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        fewer = ["--steps", "2"] if command.startswith("pretrain") else []
        assert main([*shlex.split(command), *fewer, "--progress", "off", "--device", "cpu"]) == 0, command
    for name in ("result", "complete", "slices", "mine"):
        assert (tmp_path / name / "metrics.json").exists()
        assert (tmp_path / name / "figure.png").exists()


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(TARGETS)
    for target in TARGETS:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https:)([^)]+)\)", README):
        assert (REPOSITORY / link).exists(), link
