"""The results that README and docs show: they parse, name seeds, commit and data, and the pages show what they hold."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_factory import REPOSITORY, maesil, read_strict_json

from MAESILLib.comparison import compare as comparison
from MAESILLib.data.cache import read_cache
from MAESILLib.evaluation import evaluate
from MAESILLib.mae.checkpoint import checkpoint_identity, read_info
from MAESILLib.metrics.catalogue import mode_of, value_of
from MAESILLib.runtime.resources import embedded_checkpoint

DOCS = REPOSITORY / "docs"
NAMES = ("comparison", "evaluation")


def published(name: str) -> dict[str, Any]:
    return read_strict_json(DOCS / "results" / f"{name}.json")


def table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_it_names_what_it_was_made_with(name: str) -> None:
    result = published(name)
    assert result["schema"] == {"comparison": comparison.SCHEMA, "evaluation": evaluate.SCHEMA}[name]
    # a + would say that the files differed from the commit
    assert re.fullmatch(r"[0-9a-f]{12}", result["commit"])
    assert re.fullmatch(r"[0-9a-f]{16}", result["data"]["fingerprint"])
    assert result["data"]["volumes"]
    seeds = {
        "comparison": lambda: [result["budget"]["seed"]],
        "evaluation": lambda: [setting["seed"] for setting in result["settings"]],
    }[name]()
    assert seeds
    assert all(isinstance(seed, int) for seed in seeds)


@pytest.mark.parametrize("name", NAMES)
def test_its_commit_is_one_of_the_project(name: str) -> None:
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no history here")
    assert git("merge-base", "--is-ancestor", published(name)["commit"], "HEAD").returncode == 0


def test_they_measure_what_prepare_still_holds_out(real_ct: Path, tmp_path: Path) -> None:
    maesil("prepare", real_ct / "MANIFEST.csv", "--output", tmp_path / "cache", "--progress", "off").checked()
    cache = read_cache(tmp_path / "cache")
    train, held_out = (cache.select(split) for split in ("train", "val"))
    assert len(train) == published("comparison")["data"]["training_volumes"]
    for name in NAMES:
        assert published(name)["data"]["volumes"] == [entry.name for entry in held_out]
    data = read_info(embedded_checkpoint()).training["data"]
    assert sorted(data["sources_sha256"]) == sorted(entry.source_sha256 for entry in train)


def test_it_is_of_the_embedded_checkpoint() -> None:
    (one,) = published("evaluation")["checkpoints"]
    # its metadata hold figures of this evaluation, so the file is another
    assert one["weights_sha256"] == checkpoint_identity(embedded_checkpoint())["weights_sha256"]
    assert one["trained_on"] == []


SETTINGS = {
    "dual .29/.29, 50 % hidden": "dual 0.5",
    "dual .5/.5, 75 % hidden": "dual 0.75",
    "dual .68/.68, 90 % hidden": "dual 0.9",
    "uniform, 50 % hidden": "uniform 0.5",
    "uniform, 75 % hidden": "uniform 0.75",
    "uniform, 90 % hidden": "uniform 0.9",
    "complete cover of dual .5/.5": "complete dual 0.75",
    "auto-encoding (mask `none`)": "auto-encoding",
}
IN_README = ("dual 0.75", "dual 0.9", "uniform 0.75")


def evaluation_row(line: dict[str, Any]) -> list[str]:
    # of a complete cover the biharmonic fill is that of its first mask alone
    biharmonic = line.get("baseline_biharmonic_psnr_masked_db") if mode_of(line) == "masked" else None
    fills = [biharmonic, value_of(line, "harmonic")]
    fills += [line.get(f"baseline_{fill}_psnr_masked_db") for fill in ("nearest", "mean")]
    shown = ["" if value is None else f"{value:.2f}" for value in (value_of(line, "psnr"), *fills)]
    border = f"{line['border_index']:.2f}"
    if line.get("baseline_harmonic_border_index") is not None:
        border += f" ({line['baseline_harmonic_border_index']:.2f})"
    return [*shown, f"{value_of(line, 'mae'):.1f}", f"{value_of(line, 'ssim'):.3f}", border]


def test_the_pages_show_the_evaluation() -> None:
    summary = {line["setting"]: line for line in published("evaluation")["summary"]}
    assert set(SETTINGS.values()) == set(summary)
    readme, page = (
        {row[0]: row[1:] for row in table_rows((REPOSITORY / name).read_text(encoding="utf-8"))}
        for name in ("README.md", "docs/Evaluation.md")
    )
    for title, setting in SETTINGS.items():
        expected = evaluation_row(summary[setting])
        assert page[title] == expected
        if setting in IN_README:
            # PSNR of MAESIL and both smooth fills
            assert readme[title] == expected[:3]


def test_the_page_shows_the_comparison() -> None:
    """It shows what the command wrote of the methods and of all volumes, and says who loses before anything else."""
    page, result = (DOCS / "Comparison.md").read_text(encoding="utf-8"), published("comparison")
    made = [row for row in table_rows(comparison.markdown(result)) if len(row) == 8 or "all volumes" in row]
    assert len(made) == 2 + 5 + 8
    assert [row for row in made if row not in table_rows(page)] == []
    verdict = re.search(r"(?<=against its )[\d.]+ dB", comparison.markdown(result))
    assert verdict
    assert f"MAESIL loses in auto-encoding: {verdict[0]}" in page.splitlines()[2]
