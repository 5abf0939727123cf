"""The training loop.

A run is a folder:

    config.json             what was asked for
    model.safetensors       the averaged weights, latest
    best.safetensors        the averaged weights that validated best
    state.pt                everything needed to go on
    log.csv, tensorboard/   figures
    previews/               pictures, and the latest as a volume
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from MAESILLib.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from MAESILLib.config import Config, to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.data.sampling import CropSampler
from MAESILLib.device import memory_guard, precision_context, use_bf16
from MAESILLib.errors import CancelledError, InputError
from MAESILLib.events import Reporter
from MAESILLib.files import write_json
from MAESILLib.model import MaskedAutoencoder
from MAESILLib.provenance import describe_data, trained_on
from MAESILLib.stopping import StopRequest
from MAESILLib.training.batch import Batch, BatchLoader, intensities
from MAESILLib.training.log import TrainingLog
from MAESILLib.training.loss import Loss, masked_loss
from MAESILLib.training.optimizer import WeightAverage, learning_rate, make_optimizer
from MAESILLib.training.run_folder import BEST, MODEL, PREVIEW_VOLUME, holds_state
from MAESILLib.training.state import Progress, check_same_run, read_state, save_state
from MAESILLib.training.validation import (
    ValidationSuperpatch,
    preview,
    validate,
    validation_set,
    write_preview_picture,
    write_preview_volume,
)


@dataclass(frozen=True)
class StepResult:
    """Figures of one update, means over its passes."""

    loss: float
    hidden_mse: float
    visible_mse: float
    gradient: float
    gradient_norm: float
    is_finite: bool


class Trainer:
    """Trains one model on one cache into one folder.

    Args:
        resume: go on from the folder's state; without it the folder must hold none.
        initial: a checkpoint whose weights to start from.

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
        initial: Path | str | None = None,
        reporter: Reporter | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config, self.cache, self.folder = config, cache, Path(folder)
        self.device = torch.device(device)
        self.reporter, self.stop = reporter or Reporter(), stop or StopRequest()
        self.bf16 = use_bf16(config.train.precision, self.device)
        self._check_folder(resume)
        if resume and initial is not None:
            raise InputError("a resumed run goes on from its own weights", "leave out either --resume or --init")
        # with a validation set of its own nothing of the training data needs to be held out
        share = 0.0 if validation else config.train.validation_share
        self.entries = cache.select("train", share)
        if not self.entries:
            raise InputError(f"{cache.folder} holds no training volume", "see its index.json: all are validation")
        self.data = describe_data(cache, self.entries)
        self.validation_entries = validation.entries if validation else cache.select("val", share)
        self._check_validation(self.data, "the training data")
        self.fingerprint = f"{cache.fingerprint()}/{validation.fingerprint()}" if validation else cache.fingerprint()

        torch.manual_seed(config.train.seed)
        self.model = MaskedAutoencoder(config.model).to(self.device).train()
        self.initial: dict[str, Any] = {}
        if initial is not None:
            self._start_from(initial)
        self.optimizer = make_optimizer(self.model, config.train)
        self.average = WeightAverage(self.model, config.train.ema_decay)
        self.progress = Progress()
        if resume:
            self._restore()
        self.averaged_model = MaskedAutoencoder(config.model).to(self.device).eval()
        self.validation_superpatches = self._validation(validation or cache)
        self.network = torch.compile(self.model) if config.train.compile else self.model
        self.sampler = CropSampler(
            cache,
            self.entries,
            crop_size=config.train.crop_size,
            patch_size=config.model.patch_size,
            volume_weighting=config.train.volume_weighting,
            min_foreground=config.train.min_foreground,
            flip=config.train.flip,
            seed=config.train.seed,
        )

    def run(self) -> None:
        """Train to the last step.

        Raises:
            CancelledError: a stop was asked for; the state is saved.
            OutOfMemoryError: the batch does not fit.
        """
        train = self.config.train
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", to_dict(self.config))
        log = TrainingLog(self.folder, self.progress.step)
        if not log.has_board:
            self.reporter.text("tensorboard is not installed: figures go to log.csv alone")
        loader = BatchLoader(self.config, self.sampler)
        hint = "choose a smaller train.batch_size (with train.accumulation), crop_size or preset"
        try:
            with memory_guard(self.device, hint):
                self._loop(loader, log)
        finally:
            loader.close()
            log.close()
        self.reporter.progress("pretrain", 1.0)
        self.reporter.artifact("checkpoint", self.folder / MODEL)
        if (self.folder / BEST).exists():
            self.reporter.artifact("best_checkpoint", self.folder / BEST)
        assert self.progress.step >= train.steps

    def _loop(self, loader: BatchLoader, log: TrainingLog) -> None:
        train, progress = self.config.train, self.progress
        last_time, last_samples = time.monotonic(), progress.samples
        while progress.step < train.steps:
            if self.stop.requested():
                self._save()
                raise CancelledError(
                    f"stopped at step {progress.step} ({self.stop.reason}); --resume goes on from there"
                )
            step = progress.step
            result = self._update(loader, step)
            if result is None:
                continue
            self.average.update(self.model, step)
            progress.step += 1
            progress.samples += train.batch_size * train.accumulation
            progress.skipped += not result.is_finite
            done = progress.step
            is_last = done == train.steps
            validated = self._validate() if done % train.validate_every == 0 or is_last else None
            if done == train.preview_at or validated is not None:
                self._preview()
            if done % train.log_every == 0 or validated is not None or done == 1:
                now = time.monotonic()
                rate = (progress.samples - last_samples) / max(now - last_time, 1e-9)
                progress.seconds += now - last_time
                last_time, last_samples = now, progress.samples
                self._log(log, loader, result, step, rate, validated)
            self.reporter.progress("pretrain", done / train.steps, f"step {done} psnr {_db(result.hidden_mse):.2f} dB")
            if done % train.checkpoint_every == 0 or is_last:
                self._save()

    def _update(self, loader: BatchLoader, step: int) -> StepResult | None:
        """Do one update; None, and nothing done, if a stop was asked for between its passes."""
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for micro in range(train.accumulation):
            if micro > 0 and self.stop.requested():
                return None
            loss = self._forward(loader.batch(step, micro))
            (loss.total / train.accumulation).backward()
            losses.append(torch.stack([loss.total.detach(), loss.hidden_mse, loss.visible_mse, loss.gradient]))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.gradient_clip)
        total, hidden, visible, gradient = torch.stack(losses).mean(0).tolist()
        is_finite = math.isfinite(total) and math.isfinite(float(norm))
        if is_finite:
            self.optimizer.step()
        return StepResult(total, hidden, visible, gradient, float(norm), is_finite)

    def _forward(self, batch: Batch) -> Loss:
        train = self.config.train
        image, target, valid = intensities(batch, self.config.preprocessing.window_hu, self.device)
        queried = batch.queried.to(self.device) if batch.queried.shape[1] else None
        with precision_context(self.device, self.bf16):
            prediction = self.network(
                image, batch.visible.to(self.device), valid=valid, queried=queried, offset=batch.offset
            )
        return masked_loss(
            prediction,
            target,
            valid,
            self.config.model.patch_size,
            visible_weight=train.visible_weight,
            gradient_weight=train.gradient_weight,
        )

    def _validate(self) -> float | None:
        if not self.validation_superpatches:
            return None
        self._load_average()
        psnr = validate(self.averaged_model, self.validation_superpatches, self.device, self.bf16)
        if not math.isfinite(psnr):
            self.reporter.warning(f"validation at step {self.progress.step} gave no finite figure")
            return None
        self.progress.validation.append({"step": self.progress.step, "psnr_masked_db": round(psnr, 4)})
        if self.progress.best_psnr_masked_db is None or psnr > self.progress.best_psnr_masked_db:
            self.progress.best_psnr_masked_db = psnr
            save_checkpoint(self.folder / BEST, self.averaged_model, self.info())
        return psnr

    @property
    def previewed(self) -> ValidationSuperpatch:
        """The validation superpatch of the previews: the one with most to see."""
        return max(self.validation_superpatches, key=lambda superpatch: float(superpatch.image.std()))

    def _preview(self) -> None:
        if not self.validation_superpatches:
            return
        self._load_average()
        shown = preview(self.averaged_model, self.previewed, self.device, self.bf16)
        picture = self.folder / "previews" / f"step_{self.progress.step:07d}.png"
        write_preview_picture(picture, shown)
        self.reporter.artifact("preview", picture)
        # pictures are kept, the volume is for whoever watches: the latest one is enough
        write_preview_volume(self.folder / PREVIEW_VOLUME, shown, self.config.preprocessing)
        self.reporter.artifact("preview_volume", self.folder / PREVIEW_VOLUME)

    def _log(
        self, log: TrainingLog, loader: BatchLoader, result: StepResult, step: int, rate: float, validated: float | None
    ) -> None:
        assert loader.last is not None
        batch = loader.last
        tokens = math.prod(n // p for n, p in zip(batch.hu.shape[2:], self.config.model.patch_size, strict=True))
        values: dict[str, Any] = {
            "loss": result.loss,
            "psnr_masked_db": _db(result.hidden_mse),
            "lr": learning_rate(self.config.train, step),
            "samples_per_s": round(rate, 3),
        }
        event = {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}
        self.reporter.metric(step + 1, **event, val_psnr_masked_db=validated)
        log.write(
            step + 1,
            samples=self.progress.samples,
            visible_mse=result.visible_mse,
            gradient_error=result.gradient,
            gradient_norm=result.gradient_norm,
            mask=batch.mask.strategy,
            hidden_share=round(1 - batch.visible.shape[1] / tokens, 4),
            val_psnr_masked_db="" if validated is None else validated,
            skipped=self.progress.skipped,
            seconds=round(self.progress.seconds, 1),
            **{k: "" if v is None or not math.isfinite(v) else v for k, v in values.items()},
        )

    def _save(self) -> None:
        save_state(
            self.folder,
            config=self.config,
            data=self.fingerprint,
            initial=self.initial,
            progress=self.progress,
            model=self.model,
            optimizer=self.optimizer,
            average=self.average,
        )
        self._load_average()
        save_checkpoint(self.folder / MODEL, self.averaged_model, self.info())

    def info(self) -> CheckpointInfo:
        """Return what the checkpoint says of this run."""
        progress = self.progress
        training = {
            "preset": self.config.preset,
            "steps": progress.step,
            "samples": progress.samples,
            "skipped_steps": progress.skipped,
            "seconds": round(progress.seconds),
            "train": to_dict(self.config.train),
            "data": self.data,
            "validation": progress.validation[-1:],
            "best_psnr_masked_db": progress.best_psnr_masked_db,
        }
        if self.initial:
            training["initialised_from"] = self.initial
        return CheckpointInfo(self.config.model, self.config.preprocessing, to_dict(self.config.mask), training)

    def _start_from(self, path: Path | str) -> None:
        model, info = load_checkpoint(path, self.device)
        if info.model != self.config.model:
            raise InputError(f"{path} has another architecture than this run", "choose the preset it was trained with")
        if info.preprocessing != self.config.preprocessing:
            raise InputError(f"{path} was trained with another spacing or window", "set the same [preprocessing]")
        seen = trained_on(info.training, self.validation_entries)
        if seen:
            raise InputError(
                f"{path} was trained on {len(seen)} of the validation volumes or their patients, first '{seen[0]}'",
                "choose another checkpoint, or other validation data",
            )
        self.model.load_state_dict(model.state_dict())
        self.initial = {"name": Path(path).name, "training": info.training}

    def _load_average(self) -> None:
        self.averaged_model.load_state_dict(self.average.weights)

    def _validation(self, cache: Cache) -> list[ValidationSuperpatch]:
        superpatches = validation_set(cache, self.validation_entries, self.config) if self.validation_entries else []
        if not superpatches:
            self.reporter.warning("no volume is held out for validation, so no best checkpoint is kept")
        return superpatches

    def _check_validation(self, data: dict[str, Any], where: str) -> None:
        seen = trained_on({"data": data}, self.validation_entries)
        if seen:
            raise InputError(
                f"{len(seen)} validation volumes, first '{seen[0]}', or their patients are in {where}",
                "validate on patients that nothing was trained on",
            )

    def _check_folder(self, resume: bool) -> None:
        if holds_state(self.folder) and not resume:
            raise InputError(f"{self.folder} already holds a run", "add --resume to go on, or choose another folder")

    def _restore(self) -> None:
        saved = read_state(self.folder)
        state = saved.values
        check_same_run(state, self.config, self.fingerprint, self.folder)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.weights = {k: v.to(self.device) for k, v in state["average"].items()}
        self.progress = Progress(**state["progress"])
        self.initial = state["initial"]
        torch.set_rng_state(state["rng"])
        if saved.problem:
            self.reporter.warning(
                f"a newer state cannot be read ({saved.problem}); going on from {saved.path}, step {self.progress.step}"
            )


def _db(mse: float) -> float:
    return -10 * math.log10(mse) if mse > 0 else math.nan
