"""Titles, units and decimals of metrics: every metric of a result has them, and they read well."""

import json

import pytest
from cli_factory import REPOSITORY

from MAESILLib.metrics.catalogue import CATALOGUE, caption, described, markdown_table, metric_key, mode_of


def test_every_metric_of_a_published_evaluation_is_described() -> None:
    result = json.loads((REPOSITORY / "docs" / "results" / "evaluation.json").read_text(encoding="utf-8"))
    numbers = {key for row in result["rows"] for key, value in row.items() if isinstance(value, float)}
    assert len(numbers) > 10
    assert numbers - {"mask_ratio"} <= set(CATALOGUE)


@pytest.mark.parametrize("mode", ["masked", "complete", "autoencoding"])
def test_the_keys_of_a_mode_are_described_with_their_units(mode: str) -> None:
    for metric in ("psnr", "ssim", "mae", "harmonic"):
        key = metric_key(metric, mode)
        assert CATALOGUE[key].unit == {"db": "dB", "hu": "HU"}.get(key.rsplit("_", 1)[-1], "")
    assert mode_of({metric_key("psnr", mode): 20.0, "psnr_masked_db": None}) == mode
    assert metric_key("border_index", mode) == "border_index"


def test_titles_are_distinct() -> None:
    assert len({metric.title for metric in CATALOGUE.values()}) == len(CATALOGUE)


def test_how_metrics_are_written() -> None:
    metrics = {"psnr_masked_db": 21.456, "baseline_harmonic_psnr_masked_db": None, "mae_masked_hu": 61.04}
    metrics |= {"ssim_composite": 0.87654, "seconds": 3, "mask": {"seed": 0}, "lpips": "none"}
    assert described(metrics) == [
        ("PSNR of hidden patches", "21.46 dB"),
        ("MAE of hidden patches", "61.0 HU"),
        ("SSIM of composite", "0.8765"),
        ("time", "3.0 s"),
    ]
    assert caption(metrics) == "PSNR of hidden patches 21.46 dB | MAE of hidden patches 61.0 HU"
    assert caption({}) == ""
    assert CATALOGUE["mae_masked_hu"].heading == "MAE (HU)"
    assert CATALOGUE["border_index"].heading == "border index"
    assert CATALOGUE["lpips"].number(None) == ""


def test_a_name_does_not_part_the_cells_of_a_table() -> None:
    assert markdown_table(["a", "b"], [["1|2", "3"]])[2] == r"| 1\|2 | 3 |"


def test_captions_are_of_the_mode() -> None:
    metrics = {"psnr_masked_db": 21.0, "psnr_complete_db": 20.0, "mae_complete_hu": 70.0}
    metrics |= {"baseline_harmonic_psnr_masked_db": 19.0, "baseline_harmonic_psnr_complete_db": 18.0}
    metrics |= {"baseline_biharmonic_psnr_masked_db": 19.5}
    assert [text.rsplit(" ", 2)[1] for text in caption(metrics).split(" | ")] == ["20.00", "18.00", "70.0"]
    del metrics["psnr_complete_db"]
    assert [text.rsplit(" ", 2)[1] for text in caption(metrics).split(" | ")] == ["21.00", "19.00", "19.50"]
