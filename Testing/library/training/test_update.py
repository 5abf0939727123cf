"""One update: what decays, rates and averages, when it is skipped, how it is compiled, and who reads its crops."""

import copy
import dataclasses
import functools
import io
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from training_factory import assert_same, tiny_config

from MAESILLib.config import MaskTraining
from MAESILLib.data.cache import Cache
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.runtime.errors import CancelledError, InputError
from MAESILLib.runtime.events import Reporter, parse_event
from MAESILLib.runtime.stopping import StopRequest
from MAESILLib.training.batch import make_batch
from MAESILLib.training.log import read_log
from MAESILLib.training.state import read_state
from MAESILLib.training.task import Pretraining
from MAESILLib.training.trainer import Trainer
from MAESILLib.training.update import is_decayed, learning_rate, make_optimizers, update_average


def warnings_of(out: io.StringIO) -> list[str]:
    events = [parse_event(line) for line in out.getvalue().splitlines()]
    return [event["message"] for event in events if event and event["event"] == "warning"]


class Spoilt(Trainer):
    """Gets a batch that holds a NaN at chosen updates, or a gradient that does."""

    spoilt: tuple[int, ...] = ()
    gradient = False

    def _update(self, loader, step):
        if step not in self.spoilt:
            return super()._update(loader, step)
        encoder = self.model.core.encoder
        if self.gradient:
            hook = encoder.embed.bias.register_hook(lambda gradient: gradient * torch.nan)
        else:
            hook = encoder.register_forward_pre_hook(lambda _, inputs: (inputs[0] * torch.nan, *inputs[1:]))
        try:
            return super()._update(loader, step)
        finally:
            hook.remove()


def test_a_batch_with_a_nan_changes_nothing_and_is_named(tmp_path: Path, cache: Cache) -> None:
    out = io.StringIO()
    trainer = Spoilt(tiny_config(log_every=4), cache, tmp_path / "run", reporter=Reporter("json", out, io.StringIO()))
    trainer.spoilt = (2, 5)
    trainer.run()
    assert trainer.progress.skipped == 2
    told = [text for text in warnings_of(out) if "skipped: non-finite gradient" in text]
    assert [text.split()[1] for text in told] == ["3", "6"]
    volumes = {trainer.sampler.crop(sample, (32, 32, 32)).source for sample in (4, 5)}
    assert f"samples 4 to 5 of {', '.join(sorted(volumes))}" in told[0]
    assert read_log(tmp_path / "run" / "log.csv")[-1]["skipped"] == 2
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())
    steps = {int(moments["step"]) for moments in trainer.update.state()["optimizer"].values()}
    assert steps == {trainer.config.train.steps - 2}, "a skipped update counts for the optimizer too"


def test_a_skipped_update_is_as_if_it_had_not_been(tmp_path: Path, cache: Cache) -> None:
    trainer = Spoilt(tiny_config(steps=3), cache, tmp_path / "run")
    trainer.spoilt, trainer.gradient = (2,), True
    trainer.run()
    assert trainer.progress.skipped == 1
    shorter = Trainer(tiny_config(steps=3), cache, tmp_path / "shorter")
    for step in range(2):
        shorter.update.begin(step)
        shorter.update.add(make_batch(shorter.config, shorter.sampler, step, range(2 * step, 2 * step + 2)))
        shorter.update.finish(step)
    assert_same(trainer.model.state_dict(), shorter.model.state_dict())


def test_a_reader_without_a_finite_gradient_does_not_hold_up_the_others(tmp_path: Path, cache: Cache) -> None:
    trainer = Trainer(tiny_config(steps=1), cache, tmp_path / "run")
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.model.completion.stem.bias.register_hook(lambda gradient: gradient * torch.nan)
    trainer.run()
    assert trainer.progress.skipped == 0
    after = trainer.model.state_dict()
    for name in ("core.encoder.embed.weight", "readout.head.weight"):
        assert not torch.equal(after[name], before[name])
    for name, weight in after.items():
        assert not name.startswith("completion.") or torch.equal(weight, before[name]), name


def test_a_run_that_has_diverged_ends_and_can_be_resumed(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("MAESILLib.training.trainer.MAX_SKIPPED_STEPS", 3)
    trainer = Spoilt(tiny_config(completion=False), cache, tmp_path / "run")
    trainer.spoilt = tuple(range(2, 8))
    with pytest.raises(InputError, match="3 steps up to step 5 skipped: non-finite gradients"):
        trainer.run()
    assert read_state(tmp_path / "run").values["progress"]["step"] == 5
    again = Trainer(tiny_config(completion=False), cache, tmp_path / "run", resume=True)
    again.run()
    assert again.progress.step == 8


def test_compiled_blocks_compute_the_same(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be traced, and trace to the same numbers; compiling them needs a C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    out = io.StringIO()
    # one number of visible tokens, that of validation: each other one is traced anew
    mask = MaskTraining(("uniform",), (0.75,))
    plain = dataclasses.replace(tiny_config(steps=2, completion=False), mask=mask)
    Trainer(plain, cache, tmp_path / "plain").run()
    reporter = Reporter("json", out, io.StringIO())
    config = dataclasses.replace(plain, train=dataclasses.replace(plain.train, compile=True))
    compiled = Trainer(config, cache, tmp_path / "compiled", reporter=reporter)
    assert compiled.model.core.encoder.blocks[0]._compiled_call_impl is not None
    compiled.run()
    assert not warnings_of(out)
    losses = ([row["loss"] for row in read_log(tmp_path / name / "log.csv")] for name in ("plain", "compiled"))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    resumed = Trainer(plain, cache, tmp_path / "compiled", resume=True)
    assert resumed.progress.step == 2, "names of weights do not depend on compiling"


def test_where_nothing_can_be_compiled_the_error_names_the_setting(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no compiler here\nmore")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(InputError, match=r"torch.compile failed: .*no compiler here") as refused:
        Trainer(tiny_config(steps=2, compile=True), cache, tmp_path / "run").run()
    assert refused.value.hint == "set train.compile=false"
    assert "\n" not in refused.value.message


def test_the_number_of_reading_threads_changes_nothing_but_who_reads(tmp_path: Path, cache: Cache) -> None:
    seen: set[str] = set()

    def losses(threads: int) -> list[object]:
        config = tiny_config(loader_threads=threads, batch_size=8, completion=False)
        trainer = Trainer(config, cache, tmp_path / str(threads))
        crop = trainer.sampler.crop

        def watched(sample: int, size: tuple[int, int, int]):
            seen.add(threading.current_thread().name)
            return crop(sample, size)

        trainer.sampler.crop = watched
        trainer.run()
        return [row["loss"] for row in read_log(tmp_path / str(threads) / "log.csv")]

    one = losses(1)
    assert len(seen) == 1
    seen.clear()
    assert losses(5) == one
    assert len(seen) > 1


def test_a_damaged_volume_is_named_counted_and_left_out(tmp_path: Path, cache: Cache) -> None:
    def warned(**options: object) -> list[str]:
        out = io.StringIO()
        config = tiny_config(steps=4, checkpoint_every=2, completion=False)
        trainer = Trainer(config, cache, tmp_path / "run", reporter=Reporter("json", out, io.StringIO()), **options)
        trainer.run()
        return warnings_of(out)

    class StopAtTwo(StopRequest):
        def requested(self) -> bool:
            self.reason = "test" if (tmp_path / "run" / "state.pt").exists() else ""
            return bool(self.reason)

    with pytest.raises(CancelledError):
        warned(stop=StopAtTwo())
    volume = cache.folder / "volumes" / "v1.npy"
    whole = volume.read_bytes()
    volume.write_bytes(whole[:-1])
    left_out, changed = warned(resume=True)
    assert "v1.npy" in left_out
    assert "left out of 3 training volumes" in left_out
    assert "on 3 volumes so far, now on 2" in changed
    info = load_checkpoint(tmp_path / "run" / "model.safetensors")[1].training
    assert (info["damaged_volumes"], info["data"]["volumes"]) == (1, ["v0", "v2"])
    for name in ("v0", "v2"):
        (cache.folder / "volumes" / f"{name}.npy").unlink()
    with pytest.raises(InputError, match=r"no training volume .* can be read"):
        Trainer(tiny_config(), cache, tmp_path / "other")


def test_only_matrices_decay() -> None:
    network = Pretraining(tiny_config())
    decayed = {name for name, p in network.named_parameters() if is_decayed(name, p)}
    assert decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    rest = {name for name, _ in network.named_parameters()} - decayed
    assert {"core.decoder.mask_token", "core.decoder.mix.weight", "readout.mix.weight"} < rest
    kernels = {name for name, p in network.named_parameters() if p.dim() == 5}
    assert kernels
    assert kernels < rest
    assert all(name.endswith(("bias", "token", "mix.weight")) or "norm" in name for name in rest - kernels)


def test_core_completion_and_readout_have_optimizers_of_their_own() -> None:
    network = Pretraining(tiny_config())
    optimizers = make_optimizers(network, tiny_config().train)
    names = {parameter: name for name, parameter in network.named_parameters()}
    held = {part: [names[p] for g in o.param_groups for p in g["params"]] for part, o in optimizers.items()}
    assert sorted(itertools.chain.from_iterable(held.values())) == sorted(names.values())
    assert all(name.startswith(("core.", "latent_head.")) for name in held["core"])
    for part in ("completion", "readout"):
        assert all(name.startswith(part + ".") for name in held[part])
    assert [g["weight_decay"] for g in optimizers["core"].param_groups] == [0.05, 0.0]
    alone = tiny_config(completion=False, readout=False)
    assert list(make_optimizers(Pretraining(alone), alone.train)) == ["core"]
    frozen = tiny_config(core=False)
    assert list(make_optimizers(Pretraining(frozen), frozen.train)) == ["completion", "readout"]


def test_the_learning_rate_rises_stays_and_falls_with_one_minus_the_root() -> None:
    train = tiny_config(steps=100, warmup_steps=10, cooldown_share=0.25, final_learning_rate=0.1).train
    rates = [learning_rate(train, step, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 + 0.9 * (step + 1) / 10 for step in range(10)], rel=1e-12)
    assert rates[10:75] == pytest.approx([1.0] * 65, rel=1e-12)
    assert rates[75:] == pytest.approx([0.1 + 0.9 * (1 - (n / 25) ** 0.5) for n in range(1, 26)], rel=1e-12)
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.8)
    assert rates[99] == 0.1
    assert all(a > b for a, b in itertools.pairwise(rates[74:]))
    # without a cool-down
    train = tiny_config(steps=100, warmup_steps=0, cooldown_share=0.0, final_learning_rate=0.1).train
    assert train.cooldown_from == 100
    assert {learning_rate(train, step, 1.0) for step in range(100)} == {1.0}
    # a lower rate, of the readers, falls no lower than itself
    train = tiny_config(steps=10, warmup_steps=0, cooldown_share=1.0, final_learning_rate=0.1).train
    assert [learning_rate(train, step, 0.05) for step in range(10)] == [0.05] * 10


def test_the_average_follows_its_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.zeros(()))
    torch.nn.init.constant_(model.weight, 0.0)
    average = copy.deepcopy(model)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]):
        torch.nn.init.constant_(model.weight, value)
        model.count.fill_(value)
        update_average(average, model, 0.5, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.weight.item() == pytest.approx(expected, rel=1e-6)
    assert float(average.count) == 11.0
