"""Training: what a step does, exact resume, what each setting changes, and that it learns."""

import dataclasses
import io
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_factory import StopAfter, assert_same, four_volumes, make_cache, smooth_hu, tiny_config

from MAESILLib.config import Config, from_dict, load
from MAESILLib.data.cache import Cache
from MAESILLib.mae.checkpoint import load_checkpoint, read_info, read_weights, save_checkpoint
from MAESILLib.mae.loss import core_loss
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for
from MAESILLib.mae.model import MaskedAutoencoder, windowed
from MAESILLib.runtime.errors import CancelledError, InputError
from MAESILLib.runtime.events import Reporter, parse_event
from MAESILLib.runtime.lock import only_writer
from MAESILLib.training.log import read_log
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer
from MAESILLib.training.update import learning_rate, make_optimizers
from MAESILLib.training.validation import validate


def losses(run: Path) -> list[Any]:
    return [
        (row["step"], row["loss"], row["gradient_norm"], row["val_psnr_masked_db"]) for row in read_log(run / "log.csv")
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, str]:
    """A trainer that has run, and the events it sent, while the clock was set back by an hour again and again."""
    folder, out = tmp_path_factory.mktemp("finished"), io.StringIO()
    reporter = Reporter("json", out, io.StringIO())
    trainer = Trainer(tiny_config(), four_volumes(folder / "cache"), folder / "run", reporter=reporter)
    now, hours = time.time, itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - 3600 * next(hours))
        trainer.run()
    return trainer, out.getvalue()


def test_a_run_writes_everything_it_promises(finished: tuple[Trainer, str]) -> None:
    trainer, _ = finished
    run = trainer.folder
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert {"model.safetensors", "best.safetensors", "state.pt", "log.csv", "config.json"} <= names
    assert {"previews/step_0000002.png", "previews/step_0000004.png", "previews/step_0000008.png"} <= names
    assert any(n.startswith("tensorboard/") for n in names)
    rows = read_log(run / "log.csv")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if row["val_psnr_masked_db"] is not None] == [4, 8]
    assert all(0 <= row["seconds"] < 60 and row["samples_per_s"] > 0 for row in rows)
    model, info = load_checkpoint(run / "model.safetensors")
    assert info.training["steps"] == 8
    assert info.training["samples"] == 16
    assert info.training["precision"] == "fp32"
    assert info.training["data"]["volumes"] == ["v0", "v1", "v2"]
    assert info.parts == ("completion", "readout")
    # the average is shipped, without the teacher's head
    assert_same(model.state_dict(), {name: trainer.update.average.state_dict()[name] for name in model.state_dict()})
    validated = {int(v["step"]): v["psnr_masked_db"] for v in trainer.progress.validation}
    assert set(validated) == {4, 8}
    best = read_info(run / "best.safetensors").training
    assert best["best_psnr_masked_db"] == pytest.approx(max(validated.values()), abs=1e-4)
    assert best["steps"] == max(validated, key=lambda step: validated[step])


def test_resume_is_exact_to_the_last_bit(tmp_path: Path, cache: Cache) -> None:
    config = tiny_config(batch_size=4, accumulation=2, completion_crops=2, steps=6, validate_every=3)
    whole = Trainer(config, cache, tmp_path / "whole")
    whole.run()

    run = tmp_path / "broken"
    for resume, at in ((False, 3), (True, 2)):
        with pytest.raises(CancelledError, match="--resume"):
            Trainer(config, cache, run, resume=resume, stop=StopAfter(at)).run()
    # the first stop came between the two passes of the second update, which was then done anew
    assert read_state(run).values["progress"]["step"] == 2
    last = Trainer(config, cache, run, resume=True)
    last.run()
    assert losses(run) == losses(tmp_path / "whole")
    assert_same(last.model.state_dict(), whole.model.state_dict())
    assert_same(last.update.average.state_dict(), whole.update.average.state_dict())
    assert last.progress.best_psnr_masked_db == whole.progress.best_psnr_masked_db


def test_refusals(tmp_path: Path, cache: Cache) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError, match="holds no training state"):
        Trainer(tiny_config(), cache, run, resume=True)
    trainer = Trainer(tiny_config(steps=2), cache, run)
    with only_writer(run), pytest.raises(InputError, match="is in use by process"):
        trainer.run()
    trainer.run()
    with pytest.raises(InputError, match="already holds a run"):
        Trainer(tiny_config(steps=2), cache, run)
    with pytest.raises(InputError, match=r"train\.learning_rate"):
        Trainer(tiny_config(steps=2, learning_rate=1.0), cache, run, resume=True)
    other = make_cache(tmp_path / "other", [(40, 40, 40), (40, 40, 32)])
    with pytest.raises(InputError, match="other data"):
        Trainer(tiny_config(steps=2), other, run, resume=True)
    larger = from_dict({"preset": "tiny"})
    with pytest.raises(InputError, match="another architecture"):
        Trainer(larger, cache, tmp_path / "new", initial=run / "model.safetensors")


def test_starting_from_a_checkpoint_takes_its_weights_and_says_so(tmp_path: Path, cache: Cache) -> None:
    Trainer(tiny_config(steps=2), cache, tmp_path / "one").run()
    start = tmp_path / "one" / "model.safetensors"
    second = Trainer(tiny_config(steps=2), cache, tmp_path / "two", initial=start)
    first, _ = load_checkpoint(start)
    for name, weight in first.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight)
        assert torch.equal(second.update.average.state_dict()[name], weight)
    assert second.info().training["initialised_from"]["training"]["steps"] == 2
    second.run()
    resumed = Trainer(tiny_config(steps=3), cache, tmp_path / "two", resume=True)
    assert resumed.info().training["initialised_from"]["training"]["steps"] == 2
    with pytest.raises(InputError, match="--init cannot be combined with --resume"):
        Trainer(tiny_config(steps=3), cache, tmp_path / "two", resume=True, initial=start)


def test_a_checkpoint_with_other_parts_is_a_start_too(tmp_path: Path, cache: Cache) -> None:
    """What it lacks starts anew, what is not trained is left out; the core must be whole."""
    configs = [tiny_config(steps=2, completion=c, readout=r) for c, r in ((True, False), (False, True))]
    for number, config in enumerate(configs):
        Trainer(config, cache, tmp_path / str(number)).run()
    for number, config in enumerate(configs):
        other = tmp_path / str(1 - number) / "model.safetensors"
        fresh = Trainer(config, cache, tmp_path / f"fresh {number}").model.state_dict()
        begun = Trainer(config, cache, tmp_path / f"begun {number}", initial=other).model.state_dict()
        given = read_weights(other)
        for name, weight in begun.items():
            assert torch.equal(weight, given[name] if name.startswith("core.") else fresh[name]), name
    info, weights = read_info(other), read_weights(other)
    del weights["core.encoder.norm.weight"]
    save_checkpoint(tmp_path / "cut.safetensors", weights, info)
    with pytest.raises(InputError, match=r"cut\.safetensors: state dict mismatch: 1 tensors .* first 'encoder\.norm"):
        Trainer(configs[0], cache, tmp_path / "cut", initial=tmp_path / "cut.safetensors")


def test_a_core_that_is_not_trained_stays_as_it_was(tmp_path: Path, cache: Cache) -> None:
    """And a completion is trained on it, of any shape where the checkpoint has none, resumed like any other run."""
    Trainer(tiny_config(steps=2, completion=False), cache, tmp_path / "core").run()
    given = tmp_path / "core" / "model.safetensors"
    config = tiny_config(steps=4, core=False)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, completion_channels=(8, 8)))
    whole = Trainer(config, cache, tmp_path / "whole", initial=given)
    before = {name: w.clone() for name, w in whole.model.state_dict().items()}
    whole.run()
    stopped = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    Trainer(stopped, cache, tmp_path / "cut", initial=given).run()
    cut = Trainer(config, cache, tmp_path / "cut", resume=True)
    cut.run()
    weights = read_weights(given)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, cut.model.state_dict()[name]), name
        if name.startswith("core."):
            assert torch.equal(weight, weights[name]), name
        elif "mix" not in name:
            assert not torch.equal(weight, before[name]), name
    with pytest.raises(InputError, match=r"train\.core=false needs a trained core"):
        Trainer(config, cache, tmp_path / "alone")


def test_one_superpatch_is_learnt_by_heart() -> None:
    """Overfitting: the hidden voxels of one superpatch under one mask reach 35 dB, by the core alone."""
    torch.manual_seed(0)
    train = tiny_config(steps=200, warmup_steps=10, cooldown_share=0.4, gradient_clip=100.0, weight_decay=0.0).train
    core = MaskedAutoencoder(dataclasses.replace(tiny_config().model, encoder_depth=1, decoder_width=384), 2)
    hu = torch.from_numpy(smooth_hu((16, 16, 16), 3).astype(np.float32))[None, None]
    image = windowed(hu, tiny_config().preprocessing.windows_hu)
    visible = draw_visible((2, 2, 2), MaskSpec("dual"), 1, generator_for(0))
    optimizer = make_optimizers(core, train)["core"]
    for step in range(train.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step, 2e-3)
        optimizer.zero_grad()
        loss, squared = core_loss(core(image, visible), image, None, (8, 8, 8), 0.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(core.parameters(), train.gradient_clip)
        optimizer.step()
    assert -10 * np.log10(float(squared)) > 35


def test_training_beats_what_it_starts_from(tmp_path: Path) -> None:
    """The decoder's picture, for the completion starts from a fill, which is good already."""
    cache = make_cache(tmp_path / "cache", [(48, 48, 48)] * 3, ["train", "train", "val"])
    config = tiny_config(steps=60, batch_size=4, learning_rate=2e-3, ema_decay=0.9, validate_every=30, completion=False)
    trainer = Trainer(config, cache, tmp_path / "run")
    before = validate(trainer.model, trainer.validation_superpatches, torch.device("cpu"), False)
    trainer.run()
    assert trainer.progress.best_psnr_masked_db > before + 2


CHANGES: dict[str, Any] = {
    "steps": 5,
    "batch_size": 3,
    "crop_size": (16, 32, 32),
    "learning_rate": 2e-3,
    "final_learning_rate": 5e-4,
    "warmup_steps": 3,
    "cooldown_share": 0.25,
    "cooldown_crop_size": (16, 32, 32),
    "weight_decay": 0.5,
    "betas": (0.5, 0.9),
    "gradient_clip": 1e-3,
    "ema_decay": 0.05,
    "decoded_ratio": 0.3,
    "band_slope": 1.0,
    "teacher_weight": 1.0,
    "teacher_crops": 1,
    "completion": False,
    "completion_crops": 1,
    "completion_gradient_weight": 1.0,
    "readout": False,
    "reader_learning_rate": 2e-3,
    "flip": False,
    "scale_jitter": 0.5,
    "shift_jitter_hu": 200.0,
    "noise_hu": 100.0,
    "volume_weighting": 3.0,
    "min_foreground": 0.99,
    "precision": "bf16",
    "validate_every": 2,
    "validation_superpatches": 1,
    "preview_at": 3,
    "checkpoint_every": 1,
    "log_every": 3,
    "seed": 1,
}
NEEDS_MORE = {"core", "validation_share", "accumulation", "compile", "loader_threads"}
"""Tested by themselves: above, in test_sampling, test_update and test_ranks."""


def keys_config(key: str = "completion", **train: object) -> Config:
    """Two updates of four are a cool-down; with the completion, which takes half of the time, for keys that need it."""
    return tiny_config(**{"steps": 4, "cooldown_share": 0.5, "completion": key.startswith("completion"), **train})


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, dict[bool, list[bytes]]]:
    folder = tmp_path_factory.mktemp("keys")
    cache = four_volumes(folder / "cache", (36, 40, 40))
    return cache, {key == "completion": trace(keys_config(key), cache, folder / key) for key in ("completion", "rest")}


def trace(config: Config, cache: Cache, folder: Path) -> list[bytes]:
    """Everything a run leaves that a setting could change, but for its times and its own description."""
    saved: list[int] = []

    class Watching(Trainer):
        def _save(self) -> None:
            saved.append(self.progress.step)
            super()._save()

    trainer = Watching(config, cache, folder)
    trainer.run()
    times = ("seconds", "samples_per_s", "loader_wait")
    rows = [{k: v for k, v in row.items() if k not in times} for row in read_log(folder / "log.csv")]
    weights = [w.numpy().tobytes() for w in trainer.update.average.parameters()]
    previews = sorted(p.name for p in (folder / "previews").iterdir())
    return [repr(rows).encode(), repr(previews).encode(), repr(saved).encode(), *weights]


def test_every_training_key_is_tested() -> None:
    assert sorted([*CHANGES, *NEEDS_MORE]) == sorted(f.name for f in dataclasses.fields(tiny_config().train))


@pytest.mark.parametrize("key", CHANGES)
def test_every_training_key_changes_something(
    key: str, tmp_path: Path, reference_run: tuple[Cache, dict[bool, list[bytes]]]
) -> None:
    cache, expected = reference_run
    found = trace(keys_config(key, **{key: CHANGES[key]}), cache, tmp_path / "run")
    assert found != expected[key.startswith("completion")]


def test_the_same_configuration_gives_the_same_run(
    tmp_path: Path, reference_run: tuple[Cache, dict[bool, list[bytes]]]
) -> None:
    cache, expected = reference_run
    assert trace(keys_config(), cache, tmp_path / "run") == expected[True]


def test_the_loss_curve_of_twenty_steps(tmp_path: Path, cache: Cache) -> None:
    """A golden curve: a change of the mathematics shows, rounding of another processor does not."""
    small = {"crop_size": (32, 32, 32), "cooldown_crop_size": (32, 32, 64), "warmup_steps": 5, "cooldown_share": 0.3}
    small |= {"teacher_crops": 4, "completion_crops": 4}
    train = {"steps": 20, "precision": "fp32", "validation_superpatches": 1, "validate_every": 20, "log_every": 1}
    Trainer(load(None, "tiny", {"train": {**train, **small}}), cache, tmp_path / "run").run()
    rows = read_log(tmp_path / "run" / "log.csv")
    for name, golden in GOLDEN.items():
        found = [row[name] for row in rows]
        np.testing.assert_allclose(found, [float(n) for n in golden.split()], rtol=0, atol=1e-4, err_msg=name)


GOLDEN = {
    "loss": (
        "0.380199 0.349012 0.309481 0.265951 0.262662 0.265435 0.268786 0.244186 0.204681 0.21006 "
        "0.179661 0.169749 0.149305 0.150428 0.147093 0.138868 0.127261 0.129841 0.125717 0.125527"
    ),
    "latent_loss": (
        "0.623892 0.552015 0.527731 0.523258 0.514609 0.510926 0.503544 0.475275 0.462881 0.447362 "
        "0.423787 0.405505 0.383866 0.394745 0.395456 0.37131 0.366212 0.361724 0.349533 0.351268"
    ),
    "visible_mse": (
        "0.474873 0.45951 0.440719 0.444842 0.402805 0.42453 0.397426 0.304623 0.288297 0.283503 "
        "0.306813 0.233624 0.191997 0.207694 0.189167 0.157505 0.129783 0.156988 0.149287 0.152308"
    ),
    "completed_mse": (
        "0.0133825 0.0218211 0.0312124 0.0250659 0.0245944 0.0335442 0.0119909 0.025906 0.019242 0.0336296 "
        "0.0467843 0.0171063 0.0212231 0.0288701 0.020237 0.0172385 0.0150919 0.0227811 0.0175276 0.0100539"
    ),
}


def test_validation_has_masks_on(finished: tuple[Trainer, str], tmp_path: Path) -> None:
    """Most tokens are hidden, by masks that depend on the data and not on the run."""
    trainer, _ = finished
    again = Trainer(tiny_config(seed=5), trainer.cache, tmp_path / "other")
    for a, b in zip(trainer.validation_superpatches, again.validation_superpatches, strict=True):
        assert a.visible.shape[1] < 0.4 * np.prod([n // 8 for n in a.image.shape[2:]])
        assert torch.equal(a.visible, b.visible), "validation masks depend on the run's seed"


def test_events_of_a_run(finished: tuple[Trainer, str]) -> None:
    events = [parse_event(line) or {} for line in finished[1].splitlines()]
    assert all(events)
    metrics = [e for e in events if e["event"] == "metric"]
    assert [m["step"] for m in metrics] == list(range(1, 9))
    assert {"loss", "psnr_masked_db", "lr", "samples_per_s"} <= set(metrics[0])
    kinds = [e["kind"] for e in events if e["event"] == "artifact"]
    assert kinds == ["preview", "preview_volume"] * 3 + ["checkpoint", "best_checkpoint"]


def test_preview_volume(finished: tuple[Trainer, str]) -> None:
    """Masked and reconstruction agree where patches are visible, and the error is their difference to the input."""
    trainer, _ = finished
    # the one with most to see
    superpatch = max(trainer.validation_superpatches, key=lambda one: float(one.image.std()))
    with np.load(trainer.folder / "previews" / "latest.npz", allow_pickle=False) as file:
        masked, reconstruction, error = (file[kind].astype(int) for kind in ("masked", "reconstruction", "error"))
        assert float(file["spacing_mm"]) == 1.5
    hu = -1000 + 2000 * superpatch.image[0, 0].numpy()
    assert np.abs(reconstruction - error - hu).max() <= 1.01
    changed = masked != reconstruction
    assert 0.3 < changed.mean() < 0.8
    assert (masked[changed] == -1000).all()
    assert np.abs(error[~changed]).max() <= 1


def test_nothing_is_validated_on_that_was_trained_on(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(InputError, match="in the training data"):
        Trainer(tiny_config(), cache, tmp_path / "a", validation=cache)
    Trainer(tiny_config(steps=2), cache, tmp_path / "one").run()
    swapped = Cache(
        cache.folder,
        cache.spacing_mm,
        tuple(dataclasses.replace(e, split="val" if e.split == "train" else "train") for e in cache.entries),
    )
    with pytest.raises(InputError, match="was trained on 3 of the validation volumes"):
        Trainer(tiny_config(), swapped, tmp_path / "two", initial=tmp_path / "one" / "model.safetensors")


def test_a_validation_that_is_not_finite_is_never_best(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([float("nan"), 12.5])
    monkeypatch.setattr("MAESILLib.training.task.validate", lambda *_: next(figures))
    trainer = Trainer(tiny_config(completion=False), cache, tmp_path / "run")
    trainer.run()
    assert trainer.progress.best_psnr_masked_db == 12.5
    assert [v["step"] for v in trainer.progress.validation] == [8]
