"""The tables of a comparison as Markdown: who is ahead, methods and their metrics, paired differences."""

import math
from typing import Any

from MAESILLib.comparison.baselines import COSINES, MAESIL, TITLES
from MAESILLib.evaluation.tables import WITHOUT_LPIPS, differences, differences_table, summarise
from MAESILLib.metrics.catalogue import CATALOGUE, markdown_table, metric_key

ALL = "all volumes"
PSNR, SSIM, MAE = (metric_key(metric, "autoencoding") for metric in ("psnr", "ssim", "mae"))
COSINES_NOTE = " cosines: each patch by as many of its lowest cosines as MAESIL has numbers for it; nothing is learnt."


def summaries(rows: list[dict[str, Any]], patients: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return what tables are made of, for each data set and for all volumes.

    Args:
        rows: of each method and volume.
        patients: of each volume.

    Returns:
        ``summary``: mean and deviation over volumes of each method; ``differences``: each other method minus MAESIL,
        paired by volume.
    """
    rows = [*rows, *(row | {"dataset": ALL} for row in rows)]
    maesil_first = sorted(rows, key=lambda row: row["method"] != TITLES[MAESIL])
    has_maesil = maesil_first[0]["method"] == TITLES[MAESIL]
    return {
        "summary": summarise(rows, ("dataset", "method", "setting")),
        "differences": differences(maesil_first, patients, "method", ("dataset", "setting")) if has_maesil else [],
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a comparison."""
    budget, data, (low, high) = result["budget"], result["data"], result["window_hu"]
    lines = [
        *verdict(result["summary"]),
        f"Every method that learns: {budget['updates']} updates, {budget['crops']}, seed {budget['seed']}, from the "
        f"{data['training_volumes']} training volumes of data {data['fingerprint']}; evaluated on "
        f"{len(data['volumes'])} volumes of other patients, {result['spacing_mm']:g} mm, window {low:g} to {high:g} HU."
        f" Library {result['library_version']}" + (f", commit {result['commit']}." if result["commit"] else "."),
        "",
        *_methods_table(result),
        "",
        "Auto-encoding, mean (sd) over volumes: every method sees the whole input."
        + (COSINES_NOTE if any(method["method"] == COSINES for method in result["methods"]) else ""),
    ]
    if result["differences"]:
        lines += ["", *differences_table(result["differences"], ("method", "minus", "dataset")), ""]
        lines.append(
            "Mean over patients, 95 % interval by bootstrap over patients (none for a single patient), and on how many "
            "volumes the method is higher than MAESIL."
        )
    return "\n".join(lines if result["lpips"] else [*lines, "", WITHOUT_LPIPS]) + "\n"


def verdict(summary: list[dict[str, Any]]) -> list[str]:
    """Return a sentence on whether MAESIL loses over all volumes; none where nothing is compared with it."""
    means = {
        # no finite value: nothing was lost
        line["method"]: [math.inf if line.get(key) is None else line[key] for key in (PSNR, SSIM)]
        for line in summary
        if line["dataset"] == ALL
    }
    if TITLES[MAESIL] not in means or len(means) == 1:
        return []
    told = {name: f"{psnr:.2f} dB, SSIM {ssim:.4f}" for name, (psnr, ssim) in means.items()}
    own, own_told = means.pop(TITLES[MAESIL]), told[TITLES[MAESIL]]
    above = [f"{name} ({told[name]})" for name, mean in means.items() if mean[0] > own[0] or mean[1] > own[1]]
    if above:
        return [f"MAESIL loses in auto-encoding: {', '.join(above)} against its {own_told}, over all volumes.", ""]
    return [f"MAESIL is ahead in auto-encoding ({own_told}), of {', '.join(means)}, over all volumes.", ""]


def _methods_table(result: dict[str, Any]) -> list[str]:
    """Return methods and their metrics over all volumes."""
    keys = [PSNR, SSIM, *(["lpips"] if result["lpips"] else []), MAE]
    titles = [CATALOGUE[key].title if key == "lpips" else CATALOGUE[key].heading for key in keys]
    patch = "x".join(map(str, result["config"]["model"]["patch_size"]))
    header = ["method", "parameters", f"code of a patch ({patch} voxels)", "learning rate", "training"]
    rows = []
    overall = (line for line in result["summary"] if line["dataset"] == ALL)
    for method, line in zip(result["methods"], overall, strict=True):
        parameters = f"{method['parameters'] / 1e6:.2f} M" if method["parameters"] else "none"
        rate = "" if method["learning_rate"] is None else f"{method['learning_rate']:g}"
        training = f"{method['training_seconds']} s, {method['precision']}" if method["updates"] else "none"
        means = [_mean_sd(line, key) for key in keys]
        rows.append([method["title"], parameters, method["code"], rate, training, *means])
    return markdown_table([*header, *titles], rows)


def _mean_sd(line: dict[str, Any], key: str) -> str:
    """Return the mean of a metric in a summary, and its deviation if there is one."""
    mean, sd = (CATALOGUE[key].number(line.get(name)) for name in (key, f"{key}_sd"))
    return f"{mean} ({sd})" if sd else mean
