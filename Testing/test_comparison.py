"""``maesil compare``: peers trained on MAESIL's own samples, measured alike, tables and figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import Result, assert_refused, maesil
from lpips_factory import write_lpips_weights
from training_factory import make_cache, tiny_config

from MAESILLib.cli import build_parser
from MAESILLib.commands.compare import _search
from MAESILLib.commands.configured import configuration_from
from MAESILLib.comparison import search as comparison_search
from MAESILLib.comparison.peer_task import PeerTraining, config_for_peer
from MAESILLib.comparison.peers import PEERS, latent_of, load_peer, make_peer, peer_loss
from MAESILLib.comparison.runs import run
from MAESILLib.comparison.search import Search, _last_loss
from MAESILLib.comparison.table import differences, summarise
from MAESILLib.comparison.volumes import reconstruct_by_peer
from MAESILLib.config import Config
from MAESILLib.data.cache import Cache, read_cache
from MAESILLib.data.crops import HostCrops
from MAESILLib.errors import CancelledError, DivergedError, InputError
from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest
from MAESILLib.training.loader import BatchLoader
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer

pytest.importorskip("monai")

TINY = {
    "model.superpatch_size": [32, 32, 32],
    "model.encoder_width": 48,
    "model.decoder_width": 32,
    "model.head_width": 16,
    "train.crop_size": [16, 16, 16],
    "train.validation_superpatches": 1,
    "train.preview_at": 0,
}
SMALL_RUN = [f"--set={key}={json.dumps(value)}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cache"
    make_cache(folder, [(24, 32, 40), (32, 24, 28), (16, 24, 24), (24, 24, 24)], ["train", "train", "val", "val"])
    return folder


def compare(data: Path, output: Path, *more: object) -> Result:
    return maesil(
        *("compare", "--data", data, "--output", output, "--preset", "tiny", "--steps", 2, "--device", "cpu"),
        *("--progress", "off", *SMALL_RUN, *(() if "--learning-rates" in more else ("--learning-rates", 1e-3)), *more),
    )


@pytest.fixture(scope="module")
def output(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    result = compare(data, folder)
    assert result.status == 0, result.err
    return folder


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    return json.loads((output / "comparison.json").read_text())


@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_code_has_the_size_the_table_says(name: str) -> None:
    peer, model = make_peer(name).eval(), tiny_config().model
    image = torch.zeros(1, 1, *model.superpatch_size)
    network: Any = peer.network
    with torch.no_grad():
        if name == "ae":
            code = network.intermediate(network.encode(image))
        elif name == "vae":
            code = network.encode(image)[0]
        else:
            code = network.index_quantize(image)
    latent = latent_of(name, model)
    assert code.numel() == latent.numbers
    if latent.bits is None:
        assert latent.numbers / image.numel() == 40 / 64
    else:
        assert 2**latent.bits == network.num_embeddings


def test_maesil_has_a_number_for_each_channel_of_a_token() -> None:
    latent = latent_of("maesil", tiny_config().model)
    assert latent.numbers == 4 * 4 * 4 * 48
    assert latent.bits is None


@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_peer_learns_to_reconstruct(name: str) -> None:
    torch.manual_seed(0)
    peer = make_peer(name).train()
    target = torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4, 4), size=8, mode="trilinear")
    optimizer = torch.optim.AdamW(peer.parameters(), 3e-3)
    errors = []
    for _ in range(80):
        loss = peer_loss(peer(target), target, None)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        errors.append(float(loss.visible_mse))
    assert errors[-1] < 0.5 * errors[0]


def test_entries_of_the_table_that_nobody_chooses_become_codes_of_the_batch() -> None:
    torch.manual_seed(0)
    peer = make_peer("vqvae").train()
    network: Any = peer.network
    table = network.quantizer.quantizer
    image = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        codes = network.encode(image * 2 - 1).movedim(1, -1).flatten(0, -2)
    peer(image)
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
    peer(image)
    assert float(torch.cdist(table.embedding.weight[7:8], codes).min()) < 0.5 * float(codes.std(0).norm())
    moved = (table.embedding.weight - before).norm(dim=1) / before.norm(dim=1)
    assert float(moved.median()) < 0.1
    peer.eval()
    before = table.embedding.weight.clone()
    table.ema_cluster_size.zero_()
    peer(image)
    assert torch.equal(table.embedding.weight, before)


def test_padding_does_not_count_and_samples_weigh_alike() -> None:
    target = torch.zeros(2, 1, 4, 4, 4)
    made = torch.zeros_like(target)
    made[0, :, :2] = 0.5
    made[1] = 0.1
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[0, :, 2:] = False
    made[0, :, 2:] = 9.0

    class Output:
        image, penalty = made, torch.tensor(0.25)

    loss = peer_loss(Output(), target, valid)  # type: ignore[arg-type]
    assert float(loss.visible_mse) == pytest.approx((0.25 + 0.01) / 2)
    assert float(loss.total) == pytest.approx((0.25 + 0.01) / 2 + 0.25)


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    torch.manual_seed(1)
    peer: Any = make_peer("vae").train()
    image = torch.rand(1, 1, 8, 8, 8) * 2 - 1
    with torch.no_grad():
        mean, deviation = peer.network.encode(image)
        _, penalty = peer.reconstructed(image)
    own = torch.distributions.Normal(mean, deviation)
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).mean()
    assert float(penalty) == pytest.approx(1e-6 * float(expected), rel=1e-4)


def test_every_method_sees_the_same_crops(cache: Cache, tmp_path: Path) -> None:
    config = tiny_config(crop_size=(16, 16, 16))
    theirs = config_for_peer(config)
    trainers = [
        Trainer(config, cache, tmp_path / "maesil"),
        Trainer(theirs, cache, tmp_path / "ae", task=PeerTraining("ae")),
    ]
    for step in (0, 3):
        batches = [BatchLoader(t.config, HostCrops(t.sampler)).batch(step, 0) for t in trainers]
        assert torch.equal(batches[0].hu, batches[1].hu)
        assert torch.equal(batches[0].valid_size, batches[1].valid_size)
    rates = [[group["lr"] for group in t.update.optimizer.param_groups] for t in trainers]
    assert rates[0] == rates[1]


class StopAt(StopRequest):
    """Asks for a stop after some looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def requested(self) -> bool:
        self.looks -= 1
        self.reason = "test" if self.looks < 0 else ""
        return bool(self.reason)


@pytest.mark.parametrize(("name", "passes", "looks"), [("ae", 1, 2), ("vae", 1, 2), ("vqvae", 1, 2), ("vqvae", 2, 3)])
def test_a_resumed_run_ends_with_the_same_weights(
    cache: Cache, tmp_path: Path, name: str, passes: int, looks: int
) -> None:
    """With two passes the stop comes between them, when the first has moved the table of the VQ-VAE already."""
    config = config_for_peer(
        tiny_config(crop_size=(16, 16, 16), steps=4, validation_superpatches=1, accumulation=passes)
    )
    task = PeerTraining(name)
    Trainer(config, cache, tmp_path / "whole", task=task).run()
    with pytest.raises(CancelledError):
        Trainer(config, cache, tmp_path / "broken", task=task, stop=StopAt(looks)).run()
    Trainer(config, cache, tmp_path / "broken", task=task, resume=True).run()
    whole, broken = (load_peer(tmp_path / run / "model.safetensors")[0].state_dict() for run in ("whole", "broken"))
    assert any("ema_w" in key for key in whole) == (name == "vqvae")
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_an_update_that_is_left_out_leaves_the_table_as_it_was(cache: Cache, tmp_path: Path) -> None:
    config = config_for_peer(tiny_config(crop_size=(16, 16, 16)))
    trainer = Trainer(config, cache, tmp_path / "run", task=PeerTraining("vqvae"))
    batch = BatchLoader(config, HostCrops(trainer.sampler)).batch(0, 0)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    for jitter, moves in ((batch.jitter * torch.nan, False), (batch.jitter, True)):
        trainer.update.begin(0)
        trainer.update.add(dataclasses.replace(batch, jitter=jitter))
        trainer.update.finish(0)
        after = trainer.model.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before if "ema_w" in key) == moves
        assert all(bool(value.isfinite().all()) for value in after.values())
        assert all(bool(value.isfinite().all()) for value in trainer.update.average.weights.values())


def test_a_run_is_not_taken_for_that_of_another_method(cache: Cache, tmp_path: Path) -> None:
    config = config_for_peer(tiny_config(crop_size=(16, 16, 16), steps=1, validation_superpatches=1))
    Trainer(config, cache, tmp_path / "run", task=PeerTraining("ae")).run()
    with pytest.raises(InputError, match="a run of 'ae', not of 'vqvae'"):
        Trainer(config, cache, tmp_path / "run", task=PeerTraining("vqvae"), resume=True)
    with pytest.raises(InputError, match="a run of 'ae', not of 'maesil'"):
        Trainer(config, cache, tmp_path / "run", resume=True)


def test_a_volume_is_put_together_of_its_superpatches() -> None:
    model = tiny_config().model
    unit = np.random.default_rng(0).random((40, 32, 21), dtype=np.float32)

    class Halves(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> Any:
            assert max(image.shape[2:]) <= 32
            return type("Output", (), {"image": image / 2})

    made = reconstruct_by_peer(Halves(), unit, model)  # type: ignore[arg-type]
    np.testing.assert_allclose(made, unit / 2, atol=1e-7)


def test_the_autoencoding_of_maesil_is_that_of_evaluate(data: Path, output: Path, result: dict[str, Any]) -> None:
    checkpoint = output / "runs" / "maesil" / "model.safetensors"
    done = maesil(
        *("evaluate", "--data", data, "--output", output / "evaluation", "--checkpoint", checkpoint),
        *("--progress", "off", "--device", "cpu"),
    )
    assert done.status == 0, done.err
    evaluated = json.loads((output / "evaluation" / "evaluation.json").read_text())["rows"]
    modes = {"auto-encoding": "autoencoding", "complete dual 0.75": "complete", "dual 0.75": "masked"}
    for row in (row for row in result["rows"] if row["method"] == "maesil"):
        kind = modes[row["mode"]]
        (same,) = (r for r in evaluated if (r["volume"], r["setting"]) == (row["volume"], row["mode"]))
        assert row["psnr_db"] == pytest.approx(same[f"psnr_{kind}_db"], abs=1e-4)
        assert row["ssim"] == pytest.approx(same["ssim_composite" if kind == "masked" else f"ssim_{kind}"], abs=1e-4)


def reconstructed(data: Path, output: Path, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return volume v2 and what a peer makes of it: smaller than a superpatch, one box without padding."""
    cache = read_cache(data)
    entry = next(e for e in cache.entries if e.name == "v2")
    unit = (np.clip(np.asarray(cache.open(entry), np.float32), -1000, 1000) + 1000) / 2000
    peer, _ = load_peer(output / "runs" / method / "model.safetensors")
    with torch.no_grad():
        return unit, peer(torch.from_numpy(unit)[None, None]).image[0, 0].clamp(0, 1).numpy()


def test_the_figures_of_a_peer_are_those_of_its_reconstruction(
    output: Path, data: Path, result: dict[str, Any]
) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    unit, made = reconstructed(data, output, "ae")
    (row,) = (r for r in result["rows"] if (r["method"], r["volume"]) == ("ae", "v2"))
    assert row["psnr_db"] == pytest.approx(peak_signal_noise_ratio(unit, made, data_range=1.0), abs=1e-3)


def test_files_and_tables(output: Path, result: dict[str, Any]) -> None:
    assert [m["method"] for m in result["methods"]] == ["ae", "vae", "vqvae", "cosines", "maesil"]
    learning = [m for m in result["methods"] if m["method"] != "cosines"]
    assert all(m["samples"] == result["budget"]["samples"] == 4 for m in learning)
    for method in result["methods"]:
        if method["method"] in PEERS:
            expected = sum(p.numel() for p in make_peer(method["method"]).parameters())
            assert method["parameters"] == expected
    rows = list(csv.DictReader((output / "comparison.csv").open()))
    assert len(rows) == len(result["rows"]) == 2 * (4 + 3)
    text = (output / "comparison.md").read_text()
    assert "seed 0" in text
    assert result["data"]["fingerprint"] in text
    assert "LPIPS is left out" in text
    line = next(one for one in text.splitlines() if one.startswith("| all volumes (2) | VQ-VAE | auto-encoding |"))
    mean = np.mean([r["psnr_db"] for r in result["rows"] if r["method"] == "vqvae"])
    assert float(re.findall(r"\| (-?[\d.]+) \(", line)[0]) == pytest.approx(mean, abs=0.006)
    # the volumes name no data set: one figure, in both forms
    assert sorted(p.name for p in output.glob("figure-*")) == ["figure-v2.pdf", "figure-v2.png"]
    assert (output / "figure-v2.pdf").read_bytes().startswith(b"%PDF")


def test_cosines_are_those_of_each_patch_alone(data: Path, result: dict[str, Any]) -> None:
    from scipy.fft import dctn, idctn

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
    assert row["psnr_db"] == pytest.approx(-10 * np.log10(np.square(made.clip(0, 1) - unit).mean()), abs=1e-3)
    assert row["mode"] == "auto-encoding"
    described = next(m for m in result["methods"] if m["method"] == "cosines")
    maesil_s = next(m for m in result["methods"] if m["method"] == "maesil")
    assert described["latent_numbers"] == maesil_s["latent_numbers"]
    assert described["parameters"] == 0


def test_lpips_where_its_weights_are(output: Path, data: Path, tmp_path: Path) -> None:
    write_lpips_weights(tmp_path)
    shutil.copytree(output, tmp_path / "again")
    assert compare(data, tmp_path / "again", "--lpips", tmp_path).status == 0
    result = json.loads((tmp_path / "again" / "comparison.json").read_text())
    unit, made = reconstructed(data, output, "vqvae")
    (row,) = (r for r in result["rows"] if (r["method"], r["volume"]) == ("vqvae", "v2"))
    assert row["lpips"] == pytest.approx(PerceptualDistance(tmp_path).of_slices(unit, made), rel=1e-3)
    assert {line["figure"] for line in result["differences"]} == {"psnr_db", "ssim", "lpips"}
    text = (tmp_path / "again" / "comparison.md").read_text()
    assert "LPIPS, lower is better" in text
    assert "left out" not in text


def test_a_second_call_takes_what_is_trained(data: Path, output: Path) -> None:
    states = {p: p.stat().st_mtime_ns for p in output.glob("runs/*/state.pt")}
    assert len(states) == 4
    before = (output / "comparison.csv").read_bytes()
    assert compare(data, output).status == 0
    assert all(p.stat().st_mtime_ns == time for p, time in states.items())
    assert (output / "comparison.csv").read_bytes() == before


def test_another_number_of_updates_is_refused(data: Path, output: Path) -> None:
    done = compare(data, output, "--steps", 3)
    assert_refused(done, "trained for 2 updates, not 3", "same --steps")


def test_weights_older_than_the_state_are_written_anew(data: Path, output: Path) -> None:
    """As a crash between the two leaves them."""
    weights = output / "runs" / "ae" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes((output / "runs" / "vqvae" / "model.safetensors").read_bytes())
    assert compare(data, output, "--methods", "ae").status == 0
    assert weights.read_bytes() == kept


def test_maesil_that_does_not_learn_to_auto_encode_is_refused(data: Path, tmp_path: Path) -> None:
    assert_refused(compare(data, tmp_path, "--set=train.visible_weight=0"), "visible_weight is 0", "auto-encode")


def test_another_configuration_is_refused(data: Path, output: Path) -> None:
    assert_refused(compare(data, output, "--set=train.weight_decay=0.5"), "another configuration", "another folder")


def test_each_method_takes_the_learning_rate_that_its_trials_do_best_with(data: Path, tmp_path: Path) -> None:
    rates = ("--learning-rates", 1e-3, 0.9, "--trial-steps", 4)
    done = compare(data, tmp_path, "--methods", "ae", "maesil", *rates)
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["budget"]["search"] == {"rates": [1e-3, 0.9], "steps": 4}
    for method in result["methods"]:
        losses = {}
        for rate in ("0.001", "0.9"):
            rows = list(
                csv.DictReader((tmp_path / "runs" / "trials" / f"{method['method']}-{rate}" / "log.csv").open())
            )
            assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
            assert {row["val_psnr_masked_db"] for row in rows} == {""}
            losses[float(rate)] = np.mean([float(row["loss"] or "inf") for row in rows[2:]])
        found = {t["learning_rate"]: t["loss"] for t in method["trials"]}
        assert found == {r: pytest.approx(v, rel=1e-5) if np.isfinite(v) else None for r, v in losses.items()}
        # a step of .9 in every weight spoils a network
        assert method["learning_rate"] == min(losses, key=lambda r: losses[r]) == 1e-3
        state = read_state(tmp_path / "runs" / method["method"]).values
        assert state["config"]["train"]["learning_rate"] == 1e-3
    text = (tmp_path / "comparison.md").read_text()
    assert "| 0.001 |" in text
    assert "the one of 0.001, 0.9 with the least loss in the second half of a trial of 4 updates" in text
    assert "At an end of them, so that a rate beyond may be better: AE, MAESIL." in text


def test_a_trial_without_a_finite_loss_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,5\n2,5\n3,0.25\n4,0.75\n")
    assert _last_loss(tmp_path, 4) == 0.5
    path.write_text("step,loss\n1,1\n2,1\n3,0.1\n4,\n")
    assert _last_loss(tmp_path, 4) is None
    for text in ("step,loss\n", "step,loss\n1,1\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="does not hold the 4 updates"):
            _last_loss(tmp_path, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--learning-rates", 1e-3, -1), "between 0 and 1"),
        (("--learning-rates", 1e-3, 1e-2, "--trial-steps", 1), "too few"),
        (("--learning-rates", 1e-3, "--trial-steps", 5), "only one rate"),
    ],
)
def test_rates_that_cannot_be_are_refused(data: Path, tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    assert_refused(compare(data, tmp_path / "out", *arguments), said)
    assert not (tmp_path / "out").exists()


def test_three_rates_around_that_of_the_configuration_are_tried_if_none_is_given() -> None:
    def wanted(*arguments: str) -> Search | None:
        args = build_parser().parse_args(["compare", "--data", "d", "--output", "o", *arguments])
        return _search(args, configuration_from(args))[1]

    assert wanted("--steps", "400") == Search((3e-4, 1e-3, 3e-3), 40)
    assert wanted("--set", "train.learning_rate=0.02") == Search((0.006, 0.02, 0.06), 2000)
    assert wanted("--learning-rates", "0.5") is None


def test_one_rate_for_all_is_told(output: Path, result: dict[str, Any]) -> None:
    assert result["budget"]["search"] is None
    assert {m["learning_rate"] for m in result["methods"]} == {1e-3, None}
    assert "One learning rate for all methods, not searched" in (output / "comparison.md").read_text()


def test_a_run_with_a_rate_that_is_not_searched_is_refused_at_once(data: Path, output: Path) -> None:
    done = compare(data, output, "--methods", "ae", "--learning-rates", 1e-4, 1e-2)
    assert_refused(done, "learning rate 0.001, which is not searched", "same --learning-rates")
    assert not (output / "runs" / "trials").exists()


def test_a_trial_that_diverges_is_not_taken(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise DivergedError("no finite gradient")

    wanted = Search((1e-3, 1e-2), 2)
    arguments = ("ae", tiny_config(crop_size=(16, 16, 16)), cache, tmp_path, wanted)
    told = (torch.device("cpu"), Reporter(), StopRequest())
    out = io.StringIO()
    whole = comparison_search.run

    def diverging(name: str, config: Config, *rest: Any, **more: Any) -> Any:
        return failing() if config.train.learning_rate == 1e-3 else whole(name, config, *rest, **more)

    monkeypatch.setattr(comparison_search, "run", diverging)
    best, trials = comparison_search.search(*arguments, told[0], Reporter("json", out), told[2])
    assert best == 1e-2
    assert "AE with the learning rate 0.001: no finite gradient" in out.getvalue()
    assert trials[0] == {"learning_rate": 1e-3, "loss": None}
    monkeypatch.setattr(comparison_search, "run", failing)
    with pytest.raises(InputError, match="no trial ended with finite losses"):
        comparison_search.search(*arguments, *told)


def test_a_stopped_call_says_how_it_goes_on(cache: Cache, tmp_path: Path) -> None:
    config = tiny_config(crop_size=(16, 16, 16))
    told = (torch.device("cpu"), Reporter(), StopAt(2))
    with pytest.raises(CancelledError, match=r"^AE stopped at step \d+ .*; the same call goes on$"):
        run("ae", config, cache, tmp_path / "run", *told)


def test_an_unknown_volume_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    assert_refused(compare(data, tmp_path / "out", "--figures", "v0"), "holds out no volume 'v0'", "v2, v3")
    assert not (tmp_path / "out" / "runs").exists()


def test_without_monai_it_says_so_before_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    assert_refused(compare(data, tmp_path / "out"), "MONAI", "maesil[compare]")
    assert not (tmp_path / "out" / "runs").exists()


def test_other_files_are_no_peers(output: Path, checkpoint: Path) -> None:
    with pytest.raises(InputError, match="not a checkpoint of maesil compare"):
        load_peer(checkpoint)
    assert_refused(
        maesil("info", output / "runs" / "ae" / "model.safetensors", "--progress", "off"), "not a MAESIL checkpoint"
    )


def made_row(method: str, mode: str, volume: str, dataset: str, patient: str, psnr: float) -> dict[str, Any]:
    figures = {"psnr_db": psnr, "ssim": psnr / 100, "mae_hu": 1.0, "border_index": None, "lpips": None}
    return {"method": method, "mode": mode, "volume": volume, "dataset": dataset, "patient": patient, **figures}


def test_summaries_and_differences_of_known_rows() -> None:
    rows = [
        made_row(method, "auto-encoding", volume, dataset, patient, psnr)
        for method, values in (("ae", (20.0, 30.0, 40.0)), ("maesil", (25.0, 31.0, 39.0)))
        for (volume, dataset, patient), psnr in zip(
            (("a", "x", "p"), ("b", "x", "p"), ("c", "y", "q")), values, strict=True
        )
    ]
    rows.append(made_row("maesil", "dual 0.75", "a", "x", "p", 1.0))
    of_x = next(line for line in summarise(rows) if (line["method"], line["dataset"]) == ("ae", "x"))
    assert of_x["psnr_db"] == 25.0
    assert of_x["psnr_db_sd"] == pytest.approx(np.std([20, 30], ddof=1))
    assert "lpips" not in of_x
    found = {(d["dataset"], d["figure"]): d for d in differences(rows)}
    # patient p: mean of +5 and +1; patient q: -1
    assert found["all volumes", "psnr_db"]["mean"] == pytest.approx((3 - 1) / 2)
    assert (found["all volumes", "psnr_db"]["above"], found["all volumes", "psnr_db"]["volumes"]) == (2, 3)
    assert found["x", "psnr_db"]["low"] is None
    assert ("all volumes", "lpips") not in found
