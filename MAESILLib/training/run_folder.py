"""The names of a run's files; needs no torch, so that a panel can look into a run's folder."""

from pathlib import Path

MODEL, BEST = "model.safetensors", "best.safetensors"
STATE = "state.pt"
PREVIEW_VOLUME = "previews/latest.npz"


def holds_state(folder: Path) -> bool:
    """Say whether a run's folder holds a state to resume from."""
    return (folder / STATE).is_file()


def best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a run that validated best, or the latest, or None."""
    return next((folder / name for name in (BEST, MODEL) if (folder / name).is_file()), None)
