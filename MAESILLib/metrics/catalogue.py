"""The metrics of results: what each is called, its unit, and how many decimals are shown. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric as people read it.

    Attributes:
        title: what is measured, and over which voxels.
        column: heading in a table whose rows say the rest.
        unit: empty where there is none.
        digits: decimals shown.
    """

    title: str
    column: str
    unit: str = ""
    digits: int = 2

    @property
    def heading(self) -> str:
        """Heading of a column, with the unit."""
        return f"{self.column} ({self.unit})" if self.unit else self.column

    def number(self, value: float | None) -> str:
        """Return a value without its unit; nothing for None."""
        return "" if value is None else f"{value:.{self.digits}f}"

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()


CATALOGUE: dict[str, Metric] = {
    "psnr_masked_db": Metric("PSNR of hidden patches", "PSNR", "dB"),
    "baseline_harmonic_psnr_masked_db": Metric("PSNR of harmonic fill", "harmonic fill", "dB"),
    "baseline_biharmonic_psnr_masked_db": Metric("PSNR of biharmonic fill", "biharmonic", "dB"),
    "baseline_nearest_psnr_masked_db": Metric("PSNR of nearest-voxel fill", "nearest", "dB"),
    "baseline_mean_psnr_masked_db": Metric("PSNR of mean fill", "mean", "dB"),
    "mae_masked_hu": Metric("MAE of hidden patches", "MAE", "HU", 1),
    "psnr_composite_db": Metric("PSNR of composite", "PSNR", "dB"),
    "ssim_composite": Metric("SSIM of composite", "SSIM", digits=4),
    "psnr_complete_db": Metric("PSNR of complete coverage", "PSNR", "dB"),
    "baseline_harmonic_psnr_complete_db": Metric("PSNR of harmonic fill, complete coverage", "harmonic fill", "dB"),
    "mae_complete_hu": Metric("MAE of complete coverage", "MAE", "HU", 1),
    "ssim_complete": Metric("SSIM of complete coverage", "SSIM", digits=4),
    "psnr_autoencoding_db": Metric("PSNR of auto-encoding", "PSNR", "dB"),
    "mae_autoencoding_hu": Metric("MAE of auto-encoding", "MAE", "HU", 1),
    "ssim_autoencoding": Metric("SSIM of auto-encoding", "SSIM", digits=4),
    "border_index": Metric("border index (1 = no grid)", "border index"),
    "baseline_harmonic_border_index": Metric("border index of harmonic fill", "of harmonic"),
    "lpips": Metric("LPIPS, lower is better", "LPIPS", digits=4),
    "over_harmonic_db": Metric("PSNR above harmonic fill", "above it", "dB"),
    "least_over_harmonic_db": Metric("least PSNR above harmonic fill", "least", "dB"),
    "seconds": Metric("time", "time", "s", 1),
    "peak_memory_mib": Metric("peak memory", "memory", "MiB", 0),
}
"""Metrics by their keys in results, in the order in which they are shown."""


def mode_of(metrics: Mapping[str, Any]) -> str:
    """Return what metrics refer to: ``masked``, ``complete`` or ``autoencoding``."""
    return next((mode for mode in ("complete", "autoencoding") if f"psnr_{mode}_db" in metrics), "masked")


def metric_key(metric: str, mode: str) -> str:
    """Return the key of ``psnr``, ``ssim``, ``mae`` or ``harmonic`` in a mode; other keys are the same in all.

    SSIM is the composite's where a share is hidden, the harmonic fill that of the same masks.
    """
    own = {
        "psnr": f"psnr_{mode}_db",
        "ssim": "ssim_composite" if mode == "masked" else f"ssim_{mode}",
        "mae": f"mae_{mode}_hu",
        "harmonic": f"baseline_harmonic_psnr_{'complete' if mode == 'complete' else 'masked'}_db",
    }
    return own.get(metric, metric)


def value_of(row: Mapping[str, Any], metric: str) -> float | None:
    """Return the value of a metric, named as in :func:`metric_key`, in the mode of a row or a summary."""
    return row.get(metric_key(metric, mode_of(row)))


def described(metrics: Mapping[str, Any], keys: Iterable[str] = CATALOGUE) -> list[tuple[str, str]]:
    """Return title and text of each metric that has a number."""
    numbers = {key: metrics[key] for key in keys if isinstance(metrics.get(key), int | float)}
    return [(CATALOGUE[key].title, CATALOGUE[key].text(value)) for key, value in numbers.items()]


def caption(metrics: Mapping[str, Any], separator: str = " | ") -> str:
    """Return PSNR, that of the fills, and MAE in a line, those that have a value."""
    mode = mode_of(metrics)
    # there is a biharmonic fill of the first mask alone
    fills = ("harmonic", "baseline_biharmonic_psnr_masked_db") if mode == "masked" else ("harmonic",)
    keys = [metric_key(metric, mode) for metric in ("psnr", *fills, "mae")]
    return separator.join(f"{title} {text}" for title, text in described(metrics, keys))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; a name may hold what parts its cells."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (header, *rows)]
    first, *others = (f"| {line} |" for line in lines)
    return [first, "|---" * len(header) + "|", *others]
