"""Measuring the methods of the comparison on held-out volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from MAESILLib.body import body_mask
from MAESILLib.checkpoint import load_checkpoint
from MAESILLib.comparison.peers import Peer, load_peer
from MAESILLib.comparison.reference import LowestCosines
from MAESILLib.comparison.runs import MAESIL, title_of
from MAESILLib.comparison.training import Trained
from MAESILLib.comparison.volumes import reconstruct_by_peer
from MAESILLib.config import Config
from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.device import memory_guard
from MAESILLib.errors import InputError
from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.events import Reporter
from MAESILLib.metrics import score, score_whole
from MAESILLib.model import MaskedAutoencoder
from MAESILLib.plan import MaskSpec, Plan
from MAESILLib.provenance import hash_of_patient
from MAESILLib.reconstruction import reconstruct
from MAESILLib.stopping import StopRequest
from MAESILLib.volume import hu_to_unit

AUTOENCODING, COMPLETE, MASKED = "auto-encoding", "complete dual 0.75", "dual 0.75"
MODES = {
    AUTOENCODING: Plan(MaskSpec("none")),
    COMPLETE: Plan(MaskSpec("dual", 0.5, 0.5), "complete"),
    MASKED: Plan(MaskSpec("dual", 0.5, 0.5)),
}
"""What MAESIL is measured in. The others see the whole input, so auto-encoding alone compares with them."""


class Measurer:
    """Measures methods on the volumes of a cache.

    Args:
        config: of the comparison: superpatches and window.
        lpips: the perceptual distance, where its weights are at hand.
    """

    def __init__(
        self,
        config: Config,
        cache: Cache,
        device: torch.device,
        reporter: Reporter,
        stop: StopRequest,
        lpips: PerceptualDistance | None = None,
    ) -> None:
        self.config, self.cache, self.device = config, cache, device
        self.reporter, self.stop, self.lpips = reporter, stop, lpips

    def rows(self, trained: list[Trained], entries: tuple[CacheEntry, ...]) -> list[dict[str, Any]]:
        """Return one row for each method, mode and volume.

        Raises:
            InputError: no volumes, or a checkpoint that cannot be read.
            CancelledError: a stop was asked for.
        """
        if not entries:
            raise InputError(f"{self.cache.folder} holds no volume to measure on", "prepare CTs of more patients")
        rows: list[dict[str, Any]] = []
        done, total = 0, len(trained) * len(entries)
        with memory_guard(self.device, "choose --device cpu, or close other programs"):
            for one in trained:
                network = self.load(one)
                for entry in entries:
                    rows += self._of_volume(one.name, network, entry)
                    done += 1
                    self.reporter.progress("measure", done / total, f"{title_of(one.name)} {entry.name}")
        return rows

    def load(self, one: Trained) -> Peer | MaskedAutoencoder:
        """Return a method's network."""
        if one.path is None:
            return LowestCosines(self.config.model).to(self.device)
        return load_checkpoint(one.path, self.device)[0] if one.name == MAESIL else load_peer(one.path, self.device)[0]

    def read(self, entry: CacheEntry) -> np.ndarray:
        """Return a volume (D, H, W) as intensities of the configuration's window."""
        return hu_to_unit(np.asarray(self.cache.open(entry)), self.config.preprocessing.window_hu)

    def prediction(self, network: Peer | MaskedAutoencoder, unit: np.ndarray, name: str, mode: str) -> Any:
        """Return what a network makes of a volume and what was hidden from it, both (D, H, W)."""
        options: dict[str, Any] = {"device": self.device, "stop": self.stop}
        if isinstance(network, Peer):
            made = reconstruct_by_peer(network, unit, self.config.model, **options)
            return made, np.zeros(unit.shape, bool)
        found = reconstruct(network, unit, MODES[mode], name=name, **options)
        return found.prediction, found.hidden

    def _of_volume(self, method: str, network: Peer | MaskedAutoencoder, entry: CacheEntry) -> list[dict[str, Any]]:
        unit, body = self.read(entry), body_mask(np.asarray(self.cache.open(entry)))
        window, patch_size = self.config.preprocessing.window_hu, self.config.model.patch_size
        rows = []
        for mode in MODES if method == MAESIL else (AUTOENCODING,):
            self.stop.check()
            prediction, hidden = self.prediction(network, unit, entry.name, mode)
            figures: dict[str, float | None]
            if mode == MASKED:
                found = score(unit, prediction, hidden, body, window, patch_size, self.stop)
                # PSNR and error of what was hidden, SSIM of the composite there
                figures = {"psnr_db": found.psnr_masked_db, "mae_hu": found.mae_masked_hu}
                figures |= {"ssim": found.ssim_composite, "border_index": found.border_index}
                prediction = np.where(hidden, prediction, unit)
            else:
                figures = dict(vars(score_whole(unit, prediction, body, window, patch_size, self.stop)))
            figures["lpips"] = None if self.lpips is None else self.lpips.of_slices(unit, prediction)
            where = {"volume": entry.name, "dataset": entry.dataset, "patient": hash_of_patient(entry)}
            rows.append({"method": method, "mode": mode, **where, **_rounded(figures)})
        return rows


def _rounded(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else round(float(value), 5) for key, value in figures.items()}
