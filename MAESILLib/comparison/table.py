"""The comparison as Markdown: who is ahead in auto-encoding, methods, metrics by data set, paired differences."""

from __future__ import annotations

import math
from typing import Any

from MAESILLib.comparison.baselines import COSINES, MAESIL, TITLES
from MAESILLib.evaluation.evaluate import AUTOENCODING
from MAESILLib.evaluation.tables import (
    METRICS,
    WITHOUT_LPIPS,
    differences,
    differences_table,
    headline,
    headline_ssim,
    markdown_table,
    mean_sd,
    mode_of,
    summarise,
)

ALL = "all volumes"
BY = ("dataset", "method", "setting")


def summary_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and deviation over volumes for each data set and for all of them, method and setting."""
    return [line for part in _by_dataset(rows) for line in summarise(part, BY)]


def differences_of(rows: list[dict[str, Any]], patients: dict[str, str]) -> list[dict[str, Any]]:
    """Return each other method minus MAESIL in auto-encoding, paired by volume, for each data set and all of them.

    Args:
        patients: of each volume.
    """
    chosen = [row for row in rows if row["setting"] == AUTOENCODING]
    chosen.sort(key=lambda row: row["method"] != TITLES[MAESIL])
    if not chosen or chosen[0]["method"] != TITLES[MAESIL]:
        return []
    return [
        {"dataset": part[0]["dataset"], **line}
        for part in _by_dataset(chosen)
        for line in differences(part, patients, "method")
    ]


def _by_dataset(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    names = dict.fromkeys(row["dataset"] for row in rows)
    parts = [[row for row in rows if row["dataset"] == name] for name in names]
    return [*parts, [row | {"dataset": ALL} for row in rows]]


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a comparison."""
    budget, data = result["budget"], result["data"]
    lines = [
        *verdict(result["summary"]),
        f"Every method that learns: {budget['updates']} updates of {budget['crops']}, seed {budget['seed']}, from the "
        f"{data['training_volumes']} training volumes of data {data['fingerprint']}; measured on "
        f"{len(data['volumes'])} volumes of other patients, {result['spacing_mm']:g} mm, window "
        f"{result['window_hu'][0]:g} to {result['window_hu'][1]:g} HU. Library {result['library_version']}"
        + (f", commit {result['commit']}." if result["commit"] else "."),
        "",
        *_methods_table(result),
        "",
        *_metrics_table(result),
        "",
        "Mean (sd) over volumes. auto-encoding: the whole input is seen; complete: each patch predicted from passes "
        "that hid it; dual 0.75: hidden patches alone. Only auto-encoding compares the methods."
        + _of_cosines(result["methods"]),
    ]
    if result["differences"]:
        lines += [
            "",
            *differences_table(result["differences"], ("method", "minus", "dataset")),
            "",
            "Auto-encoding: mean over patients, 95 % interval by bootstrap over patients (none for a single patient), "
            "and on how many volumes the method is higher than MAESIL.",
        ]
    if not result["lpips"]:
        lines += ["", WITHOUT_LPIPS]
    return "\n".join(lines) + "\n"


def verdict(summary: list[dict[str, Any]]) -> list[str]:
    """Return a sentence on whether MAESIL loses in auto-encoding, over all volumes; none where nothing is compared."""
    means = {
        # no finite value: nothing was lost
        line["method"]: tuple(math.inf if v is None else v for v in (headline(line), headline_ssim(line)))
        for line in summary
        if line["dataset"] == ALL and line["setting"] == AUTOENCODING
    }
    if TITLES[MAESIL] not in means or len(means) == 1:
        return []
    own = means.pop(TITLES[MAESIL])
    above = {name: mean for name, mean in means.items() if mean[0] > own[0] or mean[1] > own[1]}
    if not above:
        return [f"MAESIL is ahead in auto-encoding ({_told(own)}), of {', '.join(means)}, over all volumes.", ""]
    better = ", ".join(f"{name} ({_told(mean)})" for name, mean in above.items())
    return [f"MAESIL loses in auto-encoding: {better} against its {_told(own)}, over all volumes.", ""]


def _told(mean: tuple[float, ...]) -> str:
    return f"{mean[0]:.2f} dB, SSIM {mean[1]:.4f}"


def _methods_table(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            m["title"],
            f"`{m['network']}`",
            f"{m['parameters'] / 1e6:.2f} M" if m["parameters"] else "none",
            m["code"],
            "" if m["learning_rate"] is None else f"{m['learning_rate']:g}",
            f"{m['training_seconds']} s, {m['precision']}" if m["updates"] else "none",
        ]
        for m in result["methods"]
    ]
    patch = "x".join(map(str, result["config"]["model"]["patch_size"]))
    return markdown_table(
        ["method", "network", "parameters", f"code of a patch ({patch} voxels)", "learning rate", "training"], rows
    )


def _metrics_table(result: dict[str, Any]) -> list[str]:
    metrics = [METRICS[key] for key in METRICS if key != "lpips" or result["lpips"]]
    metrics.append(("MAE (HU)", 1, lambda line: f"mae_{mode_of(line)}_hu"))
    rows = [
        [
            f"{line['dataset']} ({line['volumes']})",
            line["method"],
            line["setting"],
            *(mean_sd(line, key_of(line), digits) for _, digits, key_of in metrics),
        ]
        for line in result["summary"]
    ]
    return markdown_table(["data set (volumes)", "method", "mode", *(title for title, _, _ in metrics)], rows)


def _of_cosines(methods: list[dict[str, Any]]) -> str:
    if all(method["method"] != COSINES for method in methods):
        return ""
    return " cosines: each patch by as many of its lowest cosines as MAESIL has numbers for it; nothing is learnt."
