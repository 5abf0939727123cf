"""The names of a run's files; needs no torch, so that a panel can look into a run's folder."""

from __future__ import annotations

from pathlib import Path

MODEL, BEST = "model.safetensors", "best.safetensors"
STATE = "state.pt"
NEW = "state.new.pt"
PREVIOUS = "state.previous.pt"
STATES = (NEW, STATE, PREVIOUS)
"""Every name under which a state may lie, the newest first: ``NEW`` is there only where saving was cut short."""
PREVIEW_VOLUME = "previews/latest.npz"


def holds_state(folder: Path) -> bool:
    """Say whether a run's folder holds a state to go on from, under any of its names."""
    return any((folder / name).is_file() for name in STATES)


def best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a run that validated best, or the latest, or None."""
    return next((folder / name for name in (BEST, MODEL) if (folder / name).is_file()), None)
