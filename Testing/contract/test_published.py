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
    assert result["schema"] == {"comparison": "maesil-comparison/1", "evaluation": evaluate.SCHEMA}[name]
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
    """The comparison had 41 training volumes; seven have been added since, and the checkpoint has seen them."""
    maesil("prepare", real_ct / "MANIFEST.csv", "--output", tmp_path / "cache", "--progress", "off").checked()
    cache = read_cache(tmp_path / "cache")
    train, held_out = (cache.select(split) for split in ("train", "val"))
    assert len(train) == published("comparison")["data"]["training_volumes"] + 7
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
    """Results of 0.1.0, and the page says so first; run anew, it holds what this version's tables say."""
    page = (DOCS / "Comparison.md").read_text(encoding="utf-8")
    result = published("comparison")
    assert result["schema"] != comparison.SCHEMA
    assert f"results below are those of version {result['library_version']}" in page.splitlines()[2]
    assert f"## Results of version {result['library_version']}" in page
    methods = {method["method"]: method for method in result["methods"]}
    shown = table_rows(page)
    overall = [line for line in result["summary"] if line["dataset"] == "all volumes"]
    assert len(overall) == 7
    for line in overall:
        method = methods[line["method"]]
        name = method["title"] + ("" if line["mode"] == "auto-encoding" else f", {line['mode']}")
        (row,) = (row for row in shown if row[0] == name and len(row) == 7)
        assert row[1] == (f"{method['parameters'] / 1e6:.2f} M" if method["parameters"] else "none")
        assert row[3] == ("" if method["learning_rate"] is None else f"{method['learning_rate']:g}")
        digits = {"psnr_db": 2, "ssim": 4, "mae_hu": 1}
        assert row[4:] == [f"{line[key]:.{n}f} ({line[f'{key}_sd']:.{n}f})" for key, n in digits.items()]
    for line in (line for line in result["differences"] if line["dataset"] == "all volumes"):
        title, digits = {"psnr_db": ("PSNR (dB)", 2), "ssim": ("SSIM", 4)}[line["figure"]]
        mean, low, high = (f"{line[key]:+.{digits}f}" for key in ("mean", "low", "high"))
        above = f"{line['above']} of {line['volumes']}"
        assert [f"MAESIL - {methods[line['method']]['title']}", title, mean, f"{low} to {high}", above] in shown
    budget = result["budget"]
    assert f"{budget['samples']:,} superpatches of {budget['crop_size']} in {budget['updates']} updates" in page
    rates = ", ".join(f"{rate:g}" for rate in budget["search"]["rates"])
    assert f"the one of {rates} with the least loss in a trial of {budget['search']['steps']} updates" in page
