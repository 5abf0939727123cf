"""``maesil compare``: baselines trained on MAESIL's own samples, evaluated alike, tables and figures."""

import dataclasses
import json
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import Result, assert_refused, maesil, read_rows
from safetensors.torch import load_file
from scipy.fft import dctn, idctn
from skimage.metrics import peak_signal_noise_ratio
from torchvision_cpu import write_lpips_weights
from training_factory import StopAfter, assert_same, make_cache, tiny_config
from volume_factory import unit_of

from MAESILLib.comparison.baselines import Baseline, BaselineTraining, LowestCosines, code_of, make_baseline
from MAESILLib.comparison.compare import ALL, config_of, summaries, train, verdict
from MAESILLib.comparison.compare import compare as run_comparison
from MAESILLib.config import PRESETS, Config, from_dict, load
from MAESILLib.data.cache import Cache, read_cache
from MAESILLib.evaluation.evaluate import Measuring, protocol
from MAESILLib.evaluation.figures import figure_path
from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.mae.checkpoint_info import read_header
from MAESILLib.reconstruct.reconstruction import reconstruct
from MAESILLib.runtime.errors import CancelledError, InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest
from MAESILLib.training.loader import batches
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer
from MAESILLib.training.update import learning_rate
from MAESILLib.training.validation import preview

pytest.importorskip("monai")

TINY = {
    "model.superpatch_size": [32, 32, 32],
    "model.encoder_width": 48,
    "model.encoder_depth": 2,
    "model.decoder_width": 24,
    "model.head_width": 12,
    "model.completion_channels": [8, 16],
    "train.batch_size": 2,
    "train.crop_size": [16, 16, 16],
    "train.cooldown_crop_size": [16, 16, 32],
    "train.precision": "fp32",
    "train.validation_superpatches": 1,
    "train.preview_at": 0,
}
SMALL_RUN = [f"--set={key}={json.dumps(value)}" for key, value in TINY.items()]
WIDE = ((-1000.0, 1000.0),)
NETWORKS = ("ae", "vae", "vqvae")


def small_crops(**train: Any) -> Config:
    return tiny_config(**{"crop_size": (16, 16, 16), "cooldown_crop_size": (16, 16, 16)} | train)


def baseline(name: str) -> Baseline:
    return make_baseline(name, tiny_config().model, WIDE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cache"
    make_cache(folder, [(24, 32, 40), (32, 24, 28), (16, 24, 24), (24, 24, 24)], ["train", "train", "val", "val"])
    return folder


def compare(data: Path, output: Path, *more: object) -> Result:
    return maesil(
        *("compare", "--data", data, "--output", output, "--preset", "tiny", "--steps", 2, "--device", "cpu"),
        *("--progress", "off", *SMALL_RUN, *more),
    )


@pytest.fixture(scope="module")
def output(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    compare(data, folder, "--no-figures").checked()
    return folder


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    return json.loads((output / "comparison.json").read_text())


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("name", NETWORKS)
def test_a_code_has_the_size_the_table_says(name: str, preset: str) -> None:
    """As many numbers for a patch as MAESIL has, or one of 1024 entries for 4x4x4 voxels."""
    model = load(None, preset).model
    made = make_baseline(name, model, WIDE).eval()
    network: Any = made.network
    patch = torch.zeros(1, 1, *model.patch_size)
    with torch.no_grad():
        if name == "ae":
            code = network.intermediate(network.encode(patch))
        elif name == "vae":
            code = network.encode(patch)[0]
        else:
            code = network.index_quantize(patch)
    numbers, bits = code_of(name, model)
    assert code.numel() == numbers
    if bits is None:
        assert code_of("maesil", model) == (numbers, None)
        assert numbers == model.encoder_width
    else:
        assert (numbers, 2**bits) == (8, network.num_embeddings)


def test_a_patch_that_a_code_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="not a multiple of 4, as AE, VAE and VQ-VAE need"):
        make_baseline("ae", dataclasses.replace(tiny_config().model, patch_size=(6, 8, 8)), WIDE)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_baseline_learns_to_reconstruct(name: str) -> None:
    torch.manual_seed(0)
    model = baseline(name).train()
    target = torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4, 4), size=8, mode="trilinear")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    errors = []
    for _ in range(40):
        made, penalty = model(target)
        error = (made - target).square().mean()
        optimizer.zero_grad()
        (error + penalty).backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.5 * errors[0]


def test_entries_of_the_table_that_nobody_chooses_become_codes_of_the_batch() -> None:
    torch.manual_seed(0)
    vqvae = baseline("vqvae").train()
    network: Any = vqvae.network
    table = network.quantizer.quantizer
    image = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        codes = network.encode(image * 2 - 1).movedim(1, -1).flatten(0, -2)
    vqvae(image)
    # at first all of them; what a normal distribution draws lies 20 times farther
    nearest = torch.cdist(table.embedding.weight, codes).amin(1)
    assert float(nearest.max()) < 0.5 * float(codes.std(0).norm())
    chosen = network.index_quantize(image * 2 - 1)
    assert len(chosen.unique()) > 500
    # one that is chosen stays, one that is not is drawn anew
    table.ema_cluster_size.fill_(1)
    table.ema_cluster_size[7] = 0.01
    table.embedding.weight[7] = 1e4
    table.ema_w.copy_(table.embedding.weight * table.ema_cluster_size[:, None])
    before = table.embedding.weight.clone()
    vqvae(image)
    assert float(torch.cdist(table.embedding.weight[7:8], codes).min()) < 0.5 * float(codes.std(0).norm())
    moved = (table.embedding.weight - before).norm(dim=1) / before.norm(dim=1)
    assert float(moved.median()) < 0.1
    vqvae.eval()
    before = table.embedding.weight.clone()
    table.ema_cluster_size.zero_()
    vqvae(image)
    assert torch.equal(table.embedding.weight, before)


def test_padding_does_not_count_and_samples_weigh_alike(cache: Cache, tmp_path: Path) -> None:
    config = config_of("ae", small_crops(), {})
    trainer = Trainer(config, cache, tmp_path / "run", task=BaselineTraining("ae"))
    batch = next(batches(config, trainer.sampler))
    batch = dataclasses.replace(
        batch,
        hu=torch.zeros_like(batch.hu),
        jitter=torch.tensor([[1.0, 0.0, 0.0]] * 2),
        valid_size=torch.tensor([[8, 16, 16], [16, 16, 16]]),
    )
    made = torch.full(batch.hu.shape, 0.5)
    made[0, :, :8] += 0.5
    made[0, :, 8:] = 9.0
    made[1] += 0.1
    trainer.update.network = lambda image: (made, torch.tensor(0.25))
    loss = trainer.task.loss(trainer.update, batch)
    assert float(loss.metrics["visible_mse"]) == pytest.approx((0.25 + 0.01) / 2)
    assert float(loss.core) == pytest.approx((0.25 + 0.01) / 2 + 0.25)
    assert loss.readers is None


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    torch.manual_seed(1)
    vae: Any = baseline("vae").train()
    image = torch.rand(1, 1, 8, 8, 8) * 2 - 1
    with torch.no_grad():
        mean, deviation = vae.network.encode(image)
        _, penalty = vae.reconstructed(image)
    own = torch.distributions.Normal(mean, deviation)
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).mean()
    assert float(penalty) == pytest.approx(1e-6 * float(expected), rel=1e-4)


def test_every_method_sees_the_same_crops_at_the_same_rate(cache: Cache, tmp_path: Path) -> None:
    """In the cool-down too, in which every second update has larger ones; baselines see the first window."""
    config = small_crops(steps=8, batch_size=8, cooldown_share=0.5, cooldown_crop_size=(32, 32, 32))
    trainers = [
        Trainer(config, cache, tmp_path / "maesil"),
        Trainer(config_of("ae", config, {}), cache, tmp_path / "ae", task=BaselineTraining("ae")),
    ]
    sizes = []
    for first, second in zip(*(batches(t.config, t.sampler) for t in trainers), strict=True):
        assert torch.equal(first.hu, second.hu)
        assert torch.equal(first.valid_size, second.valid_size)
        assert torch.equal(first.jitter, second.jitter)
        assert first.noise_seeds == second.noise_seeds
        assert second.visible.shape[1] == second.hu[0].numel() // 8**3
        sizes.append(first.hu.shape[2])
    assert sizes == [16, 16, 16, 16, 16, 32, 16, 32]
    rates = []
    for step in (0, 3, 7):
        for trainer in trainers:
            trainer.update.begin(step)
        found = [t.update.optimizers["core"].param_groups[0]["lr"] for t in trainers]
        assert found[0] == found[1] == learning_rate(config.train, step, config.train.learning_rate)
        rates.append(found[0])
    assert rates[0] < rates[1] > rates[2]
    assert trainers[1].config.train.ema_decay == config.train.ema_decay
    shapes = [tuple(t.validation_superpatches[0].image.shape[:2]) for t in trainers]
    assert shapes == [(1, 2), (1, 1)]


@pytest.mark.parametrize(("name", "passes", "looks"), [("ae", 1, 2), ("vae", 1, 2), ("vqvae", 2, 3)])
def test_a_resumed_run_ends_with_the_same_weights(
    cache: Cache, tmp_path: Path, name: str, passes: int, looks: int
) -> None:
    """With two passes the stop comes between them, when the first has moved the table of the VQ-VAE already."""
    config = config_of(name, small_crops(steps=4, validation_superpatches=1, accumulation=passes), {})
    task = BaselineTraining(name)
    Trainer(config, cache, tmp_path / "whole", task=task).run()
    with pytest.raises(CancelledError):
        Trainer(config, cache, tmp_path / "broken", task=task, stop=StopAfter(looks)).run()
    Trainer(config, cache, tmp_path / "broken", task=task, resume=True).run()
    whole, broken = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "broken"))
    assert any("ema_w" in key for key in whole) == (name == "vqvae")
    assert_same(whole, broken)


def test_an_update_that_is_left_out_leaves_the_table_as_it_was(cache: Cache, tmp_path: Path) -> None:
    config = config_of("vqvae", small_crops(), {})
    trainer = Trainer(config, cache, tmp_path / "run", task=BaselineTraining("vqvae"))
    batch = next(batches(config, trainer.sampler))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    for jitter, moves in ((batch.jitter * torch.nan, False), (batch.jitter, True)):
        trainer.update.begin(0)
        trainer.update.add(dataclasses.replace(batch, jitter=jitter))
        trainer.update.finish(0)
        after = trainer.model.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before if "ema_w" in key) == moves
        assert all(bool(value.isfinite().all()) for value in after.values())
        assert all(bool(value.isfinite().all()) for value in trainer.update.average.state_dict().values())


def test_a_run_is_not_taken_for_that_of_another_method(cache: Cache, tmp_path: Path) -> None:
    config = config_of("ae", small_crops(steps=1, validation_superpatches=1), {})
    Trainer(config, cache, tmp_path / "run", task=BaselineTraining("ae")).run()
    with pytest.raises(InputError, match="a run of 'ae', not of 'vqvae'"):
        Trainer(config, cache, tmp_path / "run", task=BaselineTraining("vqvae"), resume=True)
    with pytest.raises(InputError, match="a run of 'ae', not of 'maesil'"):
        Trainer(config, cache, tmp_path / "run", resume=True)


def test_a_volume_is_put_together_of_its_superpatches() -> None:
    unit = np.random.default_rng(0).random((40, 32, 21), dtype=np.float32)

    class Halves(Baseline):
        def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert max(image.shape[2:]) <= 32
            return (image + 1) / 2 - 1, image.new_zeros(())

    plan = protocol(0)["auto-encoding"]
    halves: Any = Halves(tiny_config().model, WIDE)
    made = reconstruct(halves, unit, plan, name="v")
    np.testing.assert_allclose(made.prediction, unit / 2, atol=1e-6)
    assert not made.hidden.any()


def test_a_baseline_is_validated_on_patches_that_are_hidden_from_maesil(tmp_path: Path) -> None:
    """It sees them; padding does not count."""
    cache = make_cache(tmp_path / "cache", [(24, 32, 40), (20, 28, 28)], ["train", "val"])
    trainer = Trainer(config_of("ae", small_crops(), {}), cache, tmp_path / "run", task=BaselineTraining("ae"))
    model: Any = trainer.update.average
    (one,) = trainer.validation_superpatches
    assert one.image.shape == (1, 1, 24, 32, 32)
    hidden = torch.ones(3 * 4 * 4, dtype=torch.bool)
    hidden[one.visible[0]] = False
    patches = hidden.view(3, 4, 4).numpy().repeat(8, 0).repeat(8, 1).repeat(8, 2)
    image = one.image[0, 0].numpy()
    with torch.no_grad():
        made = model(one.image)[0][0, 0].clamp(0, 1).numpy()
    counts = patches & one.valid[0, 0].numpy()
    assert 0 < counts.sum() < patches.sum()
    psnr = -10 * np.log10(np.square(made - image)[counts].mean())
    assert trainer.task.validate(trainer.update, [one]) == {"psnr_masked_db": pytest.approx(psnr, abs=1e-3)}
    *_, composite = preview(model, one, trainer.device, False)
    np.testing.assert_allclose(composite, np.where(patches, made, image), atol=1e-6)


def test_the_autoencoding_of_maesil_is_that_of_evaluate(data: Path, output: Path, result: dict[str, Any]) -> None:
    checkpoint = output / "runs" / "maesil" / "model.safetensors"
    maesil(
        *("evaluate", "--data", data, "--output", output / "evaluation", "--checkpoint", checkpoint),
        *("--settings", "auto-encoding", "--no-figures", "--progress", "off", "--device", "cpu"),
    ).checked()
    evaluated = json.loads((output / "evaluation" / "evaluation.json").read_text())["rows"]
    own = [row for row in result["rows"] if row["method"] == "MAESIL"]
    assert [(row["volume"], row["setting"]) for row in own] == [("v2", "auto-encoding"), ("v3", "auto-encoding")]
    for row in own:
        (same,) = (r for r in evaluated if (r["volume"], r["setting"]) == (row["volume"], row["setting"]))
        assert {k: v for k, v in row.items() if k != "method"} == {k: v for k, v in same.items() if k != "checkpoint"}


def reconstructed(data: Path, output: Path, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return volume v2 and what a baseline makes of it: smaller than a superpatch, one box without padding."""
    cache = read_cache(data)
    entry = next(e for e in cache.entries if e.name == "v2")
    unit = unit_of(cache.open(entry))
    config = json.loads((output / "comparison.json").read_text())["config"]
    model = make_baseline(method, from_dict(config, "comparison.json").model, WIDE).eval()
    model.load_state_dict(load_file(output / "runs" / method / "model.safetensors"))
    with torch.no_grad():
        return unit, model(torch.from_numpy(unit)[None, None])[0][0, 0].clamp(0, 1).numpy()


def test_the_metrics_of_a_baseline_are_those_of_its_reconstruction(
    output: Path, data: Path, result: dict[str, Any]
) -> None:
    unit, made = reconstructed(data, output, "ae")
    (row,) = (r for r in result["rows"] if (r["method"], r["volume"]) == ("AE", "v2"))
    assert row["psnr_autoencoding_db"] == pytest.approx(peak_signal_noise_ratio(unit, made, data_range=1.0), abs=1e-3)


def test_files_and_tables(output: Path, result: dict[str, Any]) -> None:
    assert [m["method"] for m in result["methods"]] == ["ae", "vae", "vqvae", "cosines", "maesil"]
    learning = [m for m in result["methods"] if m["method"] != "cosines"]
    assert all((m["samples"], m["updates"], m["precision"]) == (4, 2, "fp32") for m in learning)
    for method in result["methods"]:
        if method["method"] in NETWORKS:
            assert method["parameters"] == sum(p.numel() for p in baseline(method["method"]).parameters())
    assert {m["code"] for m in result["methods"]} == {"48 numbers", "8 codes of 10 bits"}
    rows = read_rows(output / "comparison.csv")
    assert len(rows) == len(result["rows"]) == 2 * 5
    text = (output / "comparison.md").read_text()
    assert "2 updates, batch size 2, crops of 16x16x16, in the cool-down of 16x16x32 too, seed 0" in text
    assert result["data"]["fingerprint"] in text
    assert "LPIPS is left out" in text
    line = next(one for one in text.splitlines() if one.startswith("| VQ-VAE | ") and "8 codes of 10 bits" in one)
    digits = {"psnr_autoencoding_db": 2, "ssim_autoencoding": 4, "mae_autoencoding_hu": 1}
    for (key, n), shown in zip(digits.items(), re.findall(r"\| (-?[\d.]+) \(", line), strict=True):
        values = [r[key] for r in result["rows"] if r["method"] == "VQ-VAE"]
        assert float(shown) == pytest.approx(np.mean(values), abs=0.6 * 10**-n)
    for method in result["methods"]:
        path = figure_path({"method": method["title"], "volume": "v2"})
        assert path == f"figures/{method['title']}/v2.png"


def test_figures_go_with_the_tables_they_belong_to(data: Path, tmp_path: Path) -> None:
    done = compare(data, tmp_path, "--methods", "cosines", "--progress", "json")
    told = done.named("artifact")
    assert [event["kind"] for event in told] == ["figure", "figure", "json", "csv", "md"]
    assert all(Path(event["path"]).is_file() for event in told)
    figures = [Path(event["path"]).relative_to(tmp_path).as_posix() for event in told[:2]]
    assert figures == ["figures/cosines/v2.png", "figures/cosines/v3.png"]
    compare(data, tmp_path, "--methods", "cosines", "--no-figures").checked()
    assert not list(tmp_path.glob("figures/*/*.png"))


def test_the_first_sentence_says_who_is_ahead(output: Path, result: dict[str, Any]) -> None:
    """After two updates the cosines are; the next lines are of known numbers."""
    first = (output / "comparison.md").read_text().splitlines()[0]
    assert first.startswith("MAESIL loses in auto-encoding: ")
    mean = np.mean([r["psnr_autoencoding_db"] for r in result["rows"] if r["method"] == "cosines"])
    assert f"cosines ({mean:.2f} dB" in first

    def line(method: str, psnr: float | None, ssim: float) -> dict[str, Any]:
        found = {"psnr_autoencoding_db": psnr, "ssim_autoencoding": ssim}
        return {"method": method, "dataset": ALL, **found}

    own = line("MAESIL", 30.0, 0.9)
    of_one = {**line("AE", 99.0, 1.0), "dataset": "x"}
    assert verdict([own, of_one]) == verdict([line("AE", 30.0, 0.9)]) == []
    ahead = verdict([of_one, line("AE", 29.0, 0.8), line("VAE", 30.0, 0.9), own])[0]
    assert ahead == "MAESIL is ahead in auto-encoding (30.00 dB, SSIM 0.9000), of AE, VAE, over all volumes."
    for other in (line("VAE", 31.0, 0.8), line("VAE", 29.0, 0.91), line("VAE", None, 0.9)):
        said = verdict([line("AE", 29.0, 0.8), other, own])[0]
        assert said.startswith("MAESIL loses in auto-encoding: VAE (")
        assert "AE (29" not in said.replace("VAE", "")


def test_cosines_are_those_of_each_patch_alone(data: Path, result: dict[str, Any]) -> None:
    cache = read_cache(data)
    entry = next(e for e in cache.entries if e.name == "v2")
    unit = (np.clip(np.asarray(cache.open(entry), np.float64), -1000, 1000) + 1000) / 2000
    made = np.empty_like(unit)
    frequency = np.add.outer(np.add.outer(np.arange(8) ** 2, np.arange(8) ** 2), np.arange(8) ** 2)
    kept = np.zeros(512, bool)
    kept[np.argsort(frequency.ravel(), kind="stable")[:48]] = True
    for d, h, w in np.ndindex(*(n // 8 for n in unit.shape)):
        here = np.s_[8 * d : 8 * d + 8, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
        found = dctn(unit[here], norm="ortho") * kept.reshape(8, 8, 8)
        made[here] = idctn(found, norm="ortho")
    (row,) = (r for r in result["rows"] if (r["method"], r["volume"]) == ("cosines", "v2"))
    assert row["psnr_autoencoding_db"] == pytest.approx(
        -10 * np.log10(np.square(made.clip(0, 1) - unit).mean()), abs=1e-3
    )
    assert row["setting"] == "auto-encoding"
    described = next(m for m in result["methods"] if m["method"] == "cosines")
    maesil_s = next(m for m in result["methods"] if m["method"] == "maesil")
    assert described["code"] == maesil_s["code"]
    assert described["parameters"] == 0


def test_all_cosines_lose_nothing() -> None:
    model = dataclasses.replace(tiny_config().model, patch_size=(8, 4, 8), encoder_width=600, head_width=24)
    image = torch.rand(1, 1, 16, 16, 16)
    torch.testing.assert_close(LowestCosines(model, WIDE)(image)[0], image, atol=1e-5, rtol=0)
    assert code_of("cosines", model) == (256, None)


def test_lpips_where_its_weights_are(output: Path, data: Path, tmp_path: Path) -> None:
    write_lpips_weights(tmp_path)
    shutil.copytree(output, tmp_path / "again")
    compare(data, tmp_path / "again", "--no-figures", "--lpips", tmp_path).checked()
    result = json.loads((tmp_path / "again" / "comparison.json").read_text())
    unit, made = reconstructed(data, output, "vqvae")
    (row,) = (r for r in result["rows"] if (r["method"], r["volume"]) == ("VQ-VAE", "v2"))
    assert row["lpips"] == pytest.approx(PerceptualDistance(tmp_path).of_slices(unit, made), rel=1e-3)
    assert {line["metric"] for line in result["differences"]} == {"psnr_db", "ssim", "lpips"}
    text = (tmp_path / "again" / "comparison.md").read_text()
    assert "LPIPS, lower is better" in text
    assert "left out" not in text


def test_a_second_call_takes_what_is_trained(data: Path, output: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(output, again)
    states = {p: p.stat().st_mtime_ns for p in again.glob("runs/*/state.pt")}
    assert len(states) == 4
    # as a crash between state and weights leaves them: they are written anew
    weights = [output / "runs" / "ae" / "model.safetensors", again / "runs" / "ae" / "model.safetensors"]
    shutil.copy(output / "runs" / "vqvae" / "model.safetensors", weights[1])
    done = compare(data, again, "--progress", "json", "--no-figures").checked()
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [event["kind"] for event in done.named("artifact")] == ["json", "csv", "md"]
    progress = done.named("progress")
    assert {event["stage"] for event in progress} == {"measure"}
    assert progress[-1]["fraction"] == 1
    assert all(p.stat().st_mtime_ns == time for p, time in states.items())
    assert (again / "comparison.csv").read_bytes() == (output / "comparison.csv").read_bytes()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--steps=3", ("another configuration (train.steps: 2 -> 3)", "another folder")),
        ("--set=train.weight_decay=0.5", ("another configuration", "another folder")),
        ("--set=train.readout=false", ("train.readout is false", "auto-encode")),
    ],
)
def test_other_configurations_are_refused(data: Path, output: Path, option: str, words: tuple[str, ...]) -> None:
    assert_refused(compare(data, output, option), *words)


def test_a_method_can_have_a_learning_rate_of_its_own(data: Path, tmp_path: Path) -> None:
    rates = ("--learning-rate", "ae=1e-3", "maesil=0.002", "--set=train.learning_rate=0.004")
    compare(data, tmp_path, "--no-figures", "--methods", "ae", "vqvae", "maesil", *rates).checked()
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert {m["method"]: m["learning_rate"] for m in result["methods"]} == {"ae": 1e-3, "vqvae": 4e-3, "maesil": 2e-3}
    for method in result["methods"]:
        state = read_state(tmp_path / "runs" / method["method"]).values
        assert state["config"]["train"]["learning_rate"] == method["learning_rate"]
    assert "| 0.002 |" in (tmp_path / "comparison.md").read_text()
    # refused before MAESIL, which comes first here, is trained
    (tmp_path / "runs" / "maesil" / "state.pt").unlink()
    done = compare(data, tmp_path, "--methods", "maesil", "ae", "--learning-rate", "ae=1e-4")
    assert_refused(done, "train.learning_rate: 0.001 -> 0.0001", "another folder")
    assert not (tmp_path / "runs" / "maesil" / "state.pt").exists()


@pytest.mark.parametrize("rate", ["ae", "ae=", "ae=0", "ae=1", "ae=nan", "cosines=0.1", "other=0.1", "0.1"])
def test_rates_that_cannot_be_are_refused(data: Path, tmp_path: Path, rate: str) -> None:
    assert_refused(compare(data, tmp_path / "out", "--learning-rate", rate), f"--learning-rate {rate}", "as vae=3e-4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_every_preset(data: Path, tmp_path: Path, preset: str) -> None:
    """One window or two, with completion or without."""
    compare(data, tmp_path, "--no-figures", "--preset", preset, "--methods", "ae", "cosines", "maesil").checked()
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert len(result["config"]["preprocessing"]["windows_hu"]) == (1 if preset == "paper" else 2)
    assert result["window_hu"] == [-1000, 1000]
    assert {row["method"] for row in result["rows"]} == {"AE", "cosines", "MAESIL"}


def test_a_stopped_call_says_how_it_resumes(cache: Cache, tmp_path: Path) -> None:
    config = config_of("ae", small_crops(), {})
    measuring = Measuring(cache, (), torch.device("cpu"), stop=StopAfter(2))
    with pytest.raises(CancelledError, match=r"^AE stopped at step \d+ .*; repeat the same command to resume$"):
        train("ae", config, measuring, tmp_path / "run", Reporter())


def test_without_monai_it_says_so_before_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    assert_refused(compare(data, tmp_path / "out"), "MONAI", "maesil[compare]")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_baselines_weights_are_described_and_no_maesil_checkpoint(output: Path) -> None:
    weights = output / "runs" / "ae" / "model.safetensors"
    described = json.loads(read_header(weights)["__metadata__"]["maesil-baseline"])
    assert (described["format"], described["method"]) == ("maesil-baseline/1", "ae")
    assert (described["model"]["encoder_width"], described["training"]["steps"]) == (48, 2)
    assert described["preprocessing"]["windows_hu"] == [[-1000, 1000]]
    assert_refused(maesil("info", weights, "--progress", "off"), "not a MAESIL checkpoint")


def made_row(method: str, volume: str, dataset: str, psnr: float) -> dict[str, Any]:
    where = {"method": method, "volume": volume, "dataset": dataset, "setting": "auto-encoding", "mask_ratio": 0.0}
    return {**where, "psnr_autoencoding_db": psnr, "ssim_autoencoding": psnr / 100, "psnr_masked_db": None}


def test_summaries_and_differences_of_known_rows() -> None:
    rows = [
        made_row(method, volume, dataset, psnr)
        for method, values in (("AE", (20.0, 30.0, 40.0)), ("MAESIL", (25.0, 31.0, 39.0)))
        for (volume, dataset), psnr in zip((("a", "x"), ("b", "x"), ("c", "y")), values, strict=True)
    ]
    patients = {"a": "p", "b": "p", "c": "q"}
    result = summaries(rows, patients)
    means = {(line["method"], line["dataset"]): line for line in result["summary"]}
    assert set(means) == {(method, dataset) for method in ("AE", "MAESIL") for dataset in ("x", "y", ALL)}
    assert (means["AE", "x"]["psnr_autoencoding_db"], means["AE", "x"]["volumes"]) == (25.0, 2)
    assert means["AE", "x"]["psnr_autoencoding_db_sd"] == pytest.approx(np.std([20, 30], ddof=1), abs=1e-4)
    assert means["MAESIL", ALL]["psnr_autoencoding_db"] == pytest.approx(95 / 3, abs=1e-4)
    assert "lpips" not in means["AE", "x"]
    found = {(d["dataset"], d["metric"]): d for d in result["differences"]}
    assert len(found) == len(result["differences"]) == 3 * 2
    assert all((d["method"], d["minus"]) == ("AE", "MAESIL") for d in found.values())
    # patient p: mean of -5 and -1; patient q: +1
    assert found[ALL, "psnr_db"]["mean"] == pytest.approx((-3 + 1) / 2)
    assert (found[ALL, "psnr_db"]["low"], found[ALL, "psnr_db"]["high"]) == (-3, 1)
    assert (found[ALL, "psnr_db"]["above"], found[ALL, "psnr_db"]["volumes"]) == (1, 3)
    assert found["x", "psnr_db"]["mean"] == pytest.approx(-3)
    assert found["x", "psnr_db"]["low"] is None
    assert summaries([row for row in rows if row["method"] == "AE"], patients)["differences"] == []


def test_a_stop_does_not_wait_for_the_import_of_monai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, ended = StopRequest(), threading.Event()
    with stop.until_first_check(lambda _: ended.set()):
        stop.check()
    stop.ask("test")
    monkeypatch.setattr("MAESILLib.comparison.compare.check_run", lambda *_: ended.wait(5) and shutil.rmtree("nowhere"))
    measuring = SimpleNamespace(cache=None, device=None, entries=[1], stop=stop)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_comparison(small_crops(), tmp_path, ["ae"], measuring, rates={}, with_figures=False, reporter=Reporter())
