"""What the pages under docs say holds: commands parse, scripts are shell, tables add up, links lead somewhere."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_factory import REPOSITORY

from MAESILLib.cli import build_parser
from MAESILLib.commands.common import overrides
from MAESILLib.config import load

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
COMMANDS = "demo|prepare|pretrain|reconstruct|evaluate|compare|probe|features|similar|segment|surprise|export|info"
SCRIPTS = sorted(DOCS.glob("*.slurm"))


def commands(text: str) -> list[list[str]]:
    """Return the arguments of each maesil command in a page or a script."""
    joined = text.replace("\\\n", " ")
    found = re.findall(rf"(?:^|\s|`)(?:maesil|-m MAESILLib) ((?:{COMMANDS}) [^\n`#&]*)", joined)
    for name, value in {
        "$SLURM_ARRAY_TASK_ID": "1",
        "$SLURM_ARRAY_TASK_COUNT": "8",
        "$SLURM_CPUS_PER_TASK": "16",
        "$steps": "100",
        "$1": "in",
        "$2": "out",
    }.items():
        found = [command.replace(name, value) for command in found]
    return [shlex.split(command) for command in found if "..." not in command]


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_commands_parse(path: Path) -> None:
    for arguments in commands(path.read_text()):
        if arguments[:2] == ["info", "CACHE"]:
            arguments[1] = "cache"
        args = build_parser().parse_args(arguments)
        if args.command == "pretrain":
            load(args.config, args.preset, overrides(args.set))


def test_there_are_commands() -> None:
    assert sum(len(commands(path.read_text())) for path in (*PAGES, *SCRIPTS)) >= 8


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_names_of_settings_and_files_exist(path: Path) -> None:
    text = path.read_text()
    train = vars(load(None).train)
    for key in re.findall(r"`train\.(\w+)", text):
        assert key in train
    for file in re.findall(r"`?((?:Testing|docs|MAESILLib)/[\w/]+\.\w+)", text):
        assert (REPOSITORY / file).exists(), file


def test_the_costs_add_up() -> None:
    rows = re.findall(r"^\| ([\d,]+) \|(.*)\|$", (DOCS / "Cost.md").read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == ["1,000", "10,000", "100,000"]
    for count_text, rest in rows:
        count = float(count_text.replace(",", ""))
        prepared, cache, samples, work, hours, cores, cost = (cell.strip().replace(",", "") for cell in rest.split("|"))
        assert float(prepared) == pytest.approx(count * 60 / 16 / 3600, rel=0.05)
        number, unit = cache.split()
        assert float(number) * {"GB": 1, "TB": 1000}[unit] == pytest.approx(count * 0.02)
        assert float(samples.split()[0]) == pytest.approx(count * 200 / 1e6)
        flop = count * 200 * 3 * 252e9
        assert float(work) == pytest.approx(flop / 1e15, rel=0.01)
        for text, paid, rate in zip(hours.split(" / "), cost.split(" / "), (1e14, 3e14), strict=True):
            assert float(text) == pytest.approx(flop / rate / 3600, rel=0.1)
            assert float(paid) == pytest.approx(3 * flop / rate / 3600 + 0.05 * count * 60 / 16 / 3600, rel=0.1)
        assert float(cores) == pytest.approx(3e14 / (3 * 252e9) * 0.0019, rel=0.1)
