"""The training loop.

A run is a folder:

    config.json             what was asked for
    model.safetensors       the averaged weights, latest
    best.safetensors        the averaged weights that validated best
    state.pt                everything needed to resume
    log.csv, tensorboard/   metrics
    previews/               pictures, and the latest as a volume
"""

import itertools
import math
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from MAESILLib.config import FREE_KEYS, SCHEDULE, Config, to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.data.provenance import describe_data, trained_on
from MAESILLib.data.sampling import CropSampler, readable
from MAESILLib.mae.checkpoint import CheckpointInfo, load_weights, read_info, read_weights
from MAESILLib.runtime.device import memory_guard, set_up_convolutions
from MAESILLib.runtime.errors import CancelledError, InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import remove_partial, write_json
from MAESILLib.runtime.lock import only_writer
from MAESILLib.runtime.stopping import StopRequest
from MAESILLib.training.batch import Batch, crop_size_of_step, samples_of_update
from MAESILLib.training.loader import batches, check_shares
from MAESILLib.training.log import TrainingLog
from MAESILLib.training.precision import choose_bf16
from MAESILLib.training.ranks import ALONE, Ranks
from MAESILLib.training.run_folder import BEST, MODEL, PREVIEW_VOLUME, holds_state
from MAESILLib.training.state import Progress, SavedState, check_same_run, read_state, save_state, unreadable
from MAESILLib.training.task import MASKED_AUTOENCODING, Task
from MAESILLib.training.update import Update, learning_rate
from MAESILLib.training.validation import (
    ValidationSuperpatch,
    preview,
    validation_set,
    write_preview_picture,
    write_preview_volume,
)

MAX_SKIPPED_STEPS = 100
"""In a row, after which a run ends."""


class Trainer:
    """Trains one model on one cache into one folder.

    Args:
        resume: resume from the folder's state; without it the folder must hold none.
        start: a state that was read already: the folder's, to resume, or that of a run from which this one branches.
        initial: a checkpoint whose weights to start from.
        ranks: this process among those that train together; the first one writes the folder.

    Raises:
        InputError: nothing to train on, a folder in use, or a state that does not fit.
    """

    def __init__(
        self,
        config: Config,
        cache: Cache,
        folder: Path | str,
        *,
        validation: Cache | None = None,
        device: torch.device | str = "cpu",
        resume: bool = False,
        start: SavedState | None = None,
        initial: Path | str | None = None,
        reporter: Reporter | None = None,
        stop: StopRequest | None = None,
        ranks: Ranks = ALONE,
        task: Task = MASKED_AUTOENCODING,
    ) -> None:
        self.config, self.cache, self.folder, self.ranks, self.task = config, cache, Path(folder), ranks, task
        self.device = torch.device(device)
        self.reporter, self.stop = reporter or Reporter(), stop or StopRequest()
        self.waited = 0.0
        check_shares(config, ranks)
        if holds_state(self.folder) and not resume:
            raise InputError(f"{self.folder} already holds a run", "add --resume, or choose another folder")
        if (resume or start) and initial is not None:
            raise InputError("--init cannot be combined with --resume", "leave out one of them")
        # with a validation set of its own nothing of the training data needs to be held out
        share = 0.0 if validation else config.train.validation_share
        self.entries = cache.select("train", share)
        if not self.entries:
            raise InputError(f"{cache.folder} holds no training volume", "maesil info lists it: all are validation")
        self.entries, self.damaged = readable(cache, self.entries)
        for problem in self.damaged:
            self.reporter.warning(f"left out of {len(self.entries) + len(self.damaged)} training volumes: {problem}")
        if not self.entries:
            raise InputError(f"no training volume of {cache.folder} can be read: {self.damaged[0]}", "")
        self.data = describe_data(cache, self.entries)
        self.validation_entries = validation.entries if validation else cache.select("val", share)
        if seen := trained_on({"data": self.data}, self.validation_entries):
            raise InputError(
                f"{len(seen)} validation volumes, first '{seen[0]}', or their patients are in the training data",
                "validate on patients that nothing was trained on",
            )
        self.fingerprint = f"{cache.fingerprint()}/{validation.fingerprint()}" if validation else cache.fingerprint()

        saved = read_state(self.folder) if resume and start is None else start
        self.bf16, self.why_bf16 = self._choose_bf16(saved)
        torch.manual_seed(config.train.seed)
        set_up_convolutions(self.device, self.bf16)
        if saved is None and initial is None and not config.train.core:
            raise InputError("train.core=false needs a trained core", "give its checkpoint as --init")
        with self._memory_guard():
            self.model = task.build(config).to(self.device).train()
            self.initial = {} if initial is None else self._start_from(initial)
            self.update = Update(config, self.model, ranks, self.device, self.bf16, task)
        self.progress = Progress()
        if saved is not None:
            self._restore(saved, is_branch=not resume)
        self.validation_superpatches = self._validation(validation or cache)
        self._check_same_on_all_ranks()
        self.sampler = CropSampler(
            cache,
            self.entries,
            patch_size=config.model.patch_size,
            volume_weighting=config.train.volume_weighting,
            min_foreground=config.train.min_foreground,
            flip=config.train.flip,
            seed=config.train.seed,
        )

    @contextmanager
    def _compile_guard(self) -> Iterator[None]:
        """Name the setting where torch.compile fails."""
        try:
            yield
        except Exception as error:
            # importing its exceptions takes seconds
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"torch.compile failed: {reason}", "set train.compile=false") from error

    def _memory_guard(self) -> AbstractContextManager[None]:
        hint = "choose a larger train.accumulation, or a smaller train.batch_size, crop_size or preset"
        return memory_guard(self.device, hint)

    def run(self) -> None:
        """Train to the last step.

        Raises:
            CancelledError: a stop was asked for; the state is saved.
            OutOfMemoryError: the batch does not fit.
            InputError: the training has diverged; the state is saved. Or another process writes into the folder.
        """
        with only_writer(self.folder) if self.ranks.is_main else nullcontext():
            self._run()

    def _run(self) -> None:
        log = None
        if self.ranks.is_main:
            for folder in (self.folder, (self.folder / PREVIEW_VOLUME).parent):
                remove_partial(folder)
            write_json(self.folder / "config.json", to_dict(self.config))
            validated = (f"val_{name}" for name in self.task.validation_metrics(self.config))
            log = TrainingLog(self.folder, self.progress.step, (*self.task.metrics, *validated))
            if self.config.train.precision == "auto":
                self.reporter.text(f"precision: {self.precision} ({self.why_bf16})")
            if log.board is None:
                self.reporter.text("tensorboard is not installed or does not start: metrics go to log.csv alone")
        try:
            with self._memory_guard(), self._compile_guard(), closing(self._loader()) as loader:
                self._loop(loader, log)
        finally:
            if log is not None:
                log.close()
        # the first rank may still be writing: who ends before it makes a launcher end it
        self.ranks.wait()
        self.reporter.progress("pretrain", 1.0)
        self.reporter.artifact("checkpoint", self.folder / MODEL)
        if (self.folder / BEST).exists():
            self.reporter.artifact("best_checkpoint", self.folder / BEST)

    def _loader(self) -> Generator[Batch, None, None]:
        pin = self.device.type == "cuda"
        return batches(self.config, self.sampler, self.ranks, first=self.progress.step, pin=pin)

    def _loop(self, loader: Iterator[Batch], log: TrainingLog | None) -> None:
        train, progress = self.config.train, self.progress
        self.lap_began, self.lap_step = time.monotonic(), progress.step
        skipped = 0
        while progress.step < train.steps:
            metrics = None if self._stops() else self._update(loader, progress.step)
            if metrics is None:
                # before the state is saved, because that ends in a barrier
                reason = next(filter(None, self.ranks.gather(self.stop.reason)))
                self._save()
                raise CancelledError(f"stopped at step {progress.step} ({reason}); resume with --resume")
            progress.step += 1
            progress.samples += train.batch_size
            done = progress.step
            is_last = done == train.steps
            if metrics["skipped"]:
                self._warn_of_skipped(done - 1)
            skipped = skipped + 1 if metrics["skipped"] else 0
            if skipped == MAX_SKIPPED_STEPS:
                self._save()
                raise InputError(
                    f"{skipped} steps up to step {done} skipped: non-finite gradients",
                    "start again from an earlier checkpoint with --init and a lower train.learning_rate, or "
                    "train.precision fp32",
                )
            validated = self._validate() if done % train.validate_every == 0 or is_last else None
            if done == train.preview_at or validated is not None:
                self._preview()
            if log is not None and (done % train.log_every == 0 or validated is not None or done == 1):
                self._log(log, metrics, validated)
            note = f"step {done} psnr {_db(metrics[self.task.metrics[0]]):.2f} dB"
            self.reporter.progress("pretrain", done / train.steps, note)
            if done % train.checkpoint_every == 0 or is_last:
                self._save()

    def _stops(self) -> bool:
        return self.ranks.any(self.stop.requested())

    def _update(self, loader: Iterator[Batch], step: int) -> dict[str, float] | None:
        """Do one update and return its metrics; None, and nothing done, if a stop was asked for between its passes."""
        self.update.begin(step)
        for number in range(self.config.train.accumulation):
            if number > 0 and self._stops():
                self.update.abandon()
                return None
            began = time.monotonic()
            self.batch = next(loader)
            self.waited += time.monotonic() - began
            self.update.add(self.batch)
        return self.update.finish(step)

    def _warn_of_skipped(self, step: int) -> None:
        """Count a skipped update (from 0) and name its samples."""
        self.progress.skipped += 1
        samples, crop = samples_of_update(self.config, step), crop_size_of_step(self.config, step)
        volumes = sorted({self.sampler.crop(sample, crop).source for sample in samples})
        self.reporter.warning(
            f"step {step + 1} skipped: non-finite gradient; samples {samples.start} to {samples.stop - 1} of "
            f"{', '.join(volumes[:4])}{' and others' if len(volumes) > 4 else ''}"
        )

    def _validate(self) -> dict[str, float] | None:
        if not self.validation_superpatches:
            return None
        found = self.task.validate(self.update, self.validation_superpatches)
        psnr = found["psnr_masked_db"]
        if not math.isfinite(psnr):
            self.reporter.warning(f"validation at step {self.progress.step}: PSNR is not finite")
            return None
        rounded = {name: round(value, 4) for name, value in found.items()}
        self.progress.validation.append({"step": self.progress.step, **rounded})
        self._warn_of_falling_probe()
        if self.progress.best_psnr_masked_db is None or psnr > self.progress.best_psnr_masked_db:
            self.progress.best_psnr_masked_db = psnr
            self.save_weights(BEST)
        return rounded

    def _warn_of_falling_probe(self) -> None:
        probed = [one["probe_auroc"] for one in self.progress.validation if "probe_auroc" in one][-4:]
        if len(probed) == 4 and all(later < earlier for earlier, later in itertools.pairwise(probed)):
            self.reporter.warning(
                f"the probe has fallen for three validations, from {probed[0]:.3f} to {probed[-1]:.3f}: the encoder "
                "loses anatomy"
            )

    def _preview(self) -> None:
        if not self.validation_superpatches or not self.ranks.is_main:
            return
        # the one with most to see
        shown = max(self.validation_superpatches, key=lambda superpatch: float(superpatch.image.std()))
        views = preview(self.update.average, shown, self.device, self.bf16)
        picture = self.folder / "previews" / f"step_{self.progress.step:07d}.png"
        write_preview_picture(picture, *views)
        self.reporter.artifact("preview", picture)
        # pictures are kept, the volume is for whoever watches: the latest one is enough
        write_preview_volume(self.folder / PREVIEW_VOLUME, *views, self.config.preprocessing)
        self.reporter.artifact("preview_volume", self.folder / PREVIEW_VOLUME)

    def _log(self, log: TrainingLog, metrics: dict[str, float], validated: dict[str, float] | None) -> None:
        batch, step, train, patch_size = self.batch, self.progress.step, self.config.train, self.config.model.patch_size
        now = time.monotonic()
        seconds = max(now - self.lap_began, 1e-9)
        self.progress.seconds += seconds
        values: dict[str, Any] = {
            "loss": metrics["loss"],
            "psnr_masked_db": _db(metrics[self.task.metrics[0]]),
            "lr": learning_rate(train, step - 1, train.learning_rate),
            "samples_per_s": round((step - self.lap_step) * train.batch_size / seconds, 3),
        }
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        found = {f"val_{name}": value for name, value in (validated or {}).items()}
        self.reporter.metric(step, **values, **found)
        log.write(
            step,
            samples=self.progress.samples,
            **{name: metrics[name] for name in self.task.metrics},
            gradient_norm=metrics["gradient_norm"],
            mask=batch.mask.strategy,
            mask_ratio=round(1 - batch.visible.shape[1] / (batch.hu[0].numel() / math.prod(patch_size)), 4),
            loader_wait=round(self.waited / seconds, 4),
            **found,
            skipped=self.progress.skipped,
            seconds=round(self.progress.seconds, 1),
            **values,
        )
        self.lap_began, self.lap_step, self.waited = now, step, 0.0

    def _save(self) -> None:
        if self.ranks.is_main:
            state = {
                "task": self.task.name,
                "config": to_dict(self.config),
                "data": self.fingerprint,
                "volumes": self.data["volumes"],
                "initial": self.initial,
                "device": self.device.type,
                "bf16": self.bf16,
                "progress": vars(self.progress),
            }
            save_state(self.folder, state | self.update.state())
        self.save_weights(MODEL)
        # a rank that ends before the first has written makes a launcher end that
        self.ranks.wait()

    def save_weights(self, name: str) -> None:
        """Write the averaged weights as the checkpoint ``name`` of the run."""
        if self.ranks.is_main:
            self.task.save(self.folder / name, self.update.average.state_dict(), self.info())

    def info(self) -> CheckpointInfo:
        """Return what the checkpoint says of this run."""
        progress = self.progress
        training = {
            "preset": self.config.preset,
            "steps": progress.step,
            "ranks": self.ranks.size,
            "samples": progress.samples,
            "skipped_steps": progress.skipped,
            "seconds": round(progress.seconds),
            "precision": self.precision,
            "train": to_dict(self.config.train),
            "data": self.data,
            "damaged_volumes": len(self.damaged),
            "validation": progress.validation[-1:],
            "best_psnr_masked_db": progress.best_psnr_masked_db,
        }
        if self.initial:
            training["initialised_from"] = self.initial
        return CheckpointInfo(self.config.model, self.config.preprocessing, to_dict(self.config.mask), training)

    def _start_from(self, path: Path | str) -> dict[str, Any]:
        """Take the weights of a checkpoint; return what the run's own checkpoints tell of it."""
        info = read_info(path)
        model = info.model
        if "completion" not in info.parts:
            model = replace(model, completion_channels=self.config.model.completion_channels)
        if model != self.config.model:
            raise InputError(f"{path} has another architecture than this run", "choose the preset it was trained with")
        if info.preprocessing != self.config.preprocessing:
            raise InputError(f"{path} was trained with another spacing or window", "set the same [preprocessing]")
        if seen := trained_on(info.training, self.validation_entries):
            raise InputError(
                f"{path} was trained on {len(seen)} of the validation volumes or their patients, first '{seen[0]}'",
                "choose another checkpoint, or other validation data",
            )
        weights = read_weights(path)
        # the teacher's head, and a reader that the checkpoint lacks, start anew
        for part in ("core", *info.parts):
            module = getattr(self.model, part)
            if module is not None:
                own = {name.removeprefix(part + "."): w for name, w in weights.items() if name.startswith(part + ".")}
                load_weights(module, own, path)
        return {"name": Path(path).name, "training": info.training}

    def _validation(self, cache: Cache) -> list[ValidationSuperpatch]:
        entries, problems = readable(cache, self.validation_entries)
        for problem in problems:
            self.reporter.warning(f"left out of the validation: {problem}")
        superpatches = validation_set(cache, entries, self.config) if entries else []
        if not superpatches and self.config.train.validation_superpatches > 0:
            self.reporter.warning("no volume is held out for validation, so no best checkpoint is kept")
        return superpatches

    @property
    def precision(self) -> str:
        """Return what matrix products are computed in."""
        return "bf16" if self.bf16 else "fp32"

    def _choose_bf16(self, saved: SavedState | None) -> tuple[bool, str]:
        """Choose the precision; a run keeps it, because resuming must not depend on a timing."""
        if saved is not None and saved.values.get("device") == self.device.type:
            return saved.values["bf16"], "as the run began"
        chosen = choose_bf16(self.config.train.precision, self.device) if self.ranks.is_main else (False, "")
        return self.ranks.gather(chosen)[0]

    def _restore(self, saved: SavedState, is_branch: bool) -> None:
        state, run = saved.values, saved.path.parent
        free = FREE_KEYS | SCHEDULE if is_branch else FREE_KEYS
        check_same_run(state, self.task.name, self.config, self.fingerprint, run, free)
        with unreadable(saved.path):
            self.update.load(state)
            self.progress = Progress(**state["progress"])
        self.initial = state["initial"]
        if is_branch:
            # the branch has no best checkpoint yet
            self.progress.best_psnr_masked_db, self.progress.validation = None, []
        if state["volumes"] != self.data["volumes"]:
            self.reporter.warning(
                f"the run was trained on {len(state['volumes'])} volumes so far, now on {len(self.entries)}: sample "
                "order differs from an uninterrupted run"
            )

    def _check_same_on_all_ranks(self) -> None:
        validation = [(one.volume, *one.image.shape) for one in self.validation_superpatches]
        own = (to_dict(self.config), (self.fingerprint, self.damaged, validation), self.progress.step)
        for rank, theirs in enumerate(self.ranks.gather(own)):
            for what, here, there in zip(("configuration", "data", "step"), own, theirs, strict=True):
                if here != there:
                    raise InputError(
                        f"rank {rank} has another {what} than rank {self.ranks.rank}",
                        "give all ranks the same files, on a file system that all machines share",
                    )


def _db(mse: float) -> float:
    return -10 * math.log10(mse) if mse > 0 else math.nan
