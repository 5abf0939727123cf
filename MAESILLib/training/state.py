"""The training state: everything that an interrupted run needs to resume as if it had not stopped.

Samples, masks and noise are functions of the seed and the sample number, so the step is the sampler's
whole state, and that of every rank. The file is a pickle read with ``weights_only=True``, which builds
tensors and plain values and nothing else.
"""

import io
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from MAESILLib.config import Config, from_dict, merged, to_dict
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import write_bytes
from MAESILLib.training.run_folder import STATE

FORMAT = "maesil-training-state/3"
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)
"""What zipfile, torch.load and the use of what it returns raise for files that are cut, overwritten or made up."""
KINDS: dict[str, type] = {
    **dict.fromkeys(("task", "data", "device"), str),
    **dict.fromkeys(("config", "initial", "progress", "model", "optimizer", "average", "buffers"), dict),
    **{"volumes": list, "bf16": bool},
}
"""Kinds of a state's values."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Updates done."""
    samples: int = 0
    skipped: int = 0
    """Updates left out because the loss or the gradient was not finite."""
    best_psnr_masked_db: float | None = None
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.step, self.samples, self.skipped)
        measured = [value for one in self.validation for value in one.values()]
        numbers = (self.seconds, self.best_psnr_masked_db or 0.0, *measured)
        if not all(type(n) is int and n >= 0 for n in counts) or not all(type(n) in (int, float) for n in numbers):
            raise ValueError("its 'progress' holds what is no number")


@dataclass(frozen=True)
class SavedState:
    values: dict[str, Any]
    path: Path


def save_state(folder: Path, values: dict[str, Any]) -> None:
    """Write a state to ``folder``, in the place of the one before.

    Raises:
        DiskFullError: the disk or the quota is full; the one before stays.
    """
    # torch.save to a file hides a full disk behind an error of its own
    packed = io.BytesIO()
    torch.save({"format": FORMAT, **values}, packed)
    write_bytes(folder / STATE, packed.getbuffer())


def read_state(folder: Path) -> SavedState:
    """Read the state of a run.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no training state", "give the folder of a run that saved one, or begin a new run"
        )
    with unreadable(path):
        # torch does not look at the check sums
        with zipfile.ZipFile(path) as packed:
            if damaged := packed.testzip():
                raise ValueError(f"{damaged} is damaged")
        values = torch.load(path, map_location="cpu", weights_only=True)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if wrong := [key for key, kind in KINDS.items() if not isinstance(values[key], kind)]:
            raise ValueError(f"its '{wrong[0]}' is of another kind")
        Progress(**values["progress"])
    # a method that hides nothing has a mask that no pretraining may have
    from_dict({key: value for key, value in values["config"].items() if key != "mask"}, str(path))
    return SavedState(values, path)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Refuse the state ``path`` where what it holds raises an error in the block.

    Raises:
        InputError: says why.
    """
    try:
        yield
    except pickle.UnpicklingError:
        # torch's own words advise to read it unsafely
        reason = "it holds more than numbers and text"
    except UNREADABLE as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
    else:
        return
    raise InputError(
        f"{path} cannot be read ({reason})",
        "start a new run in another folder, with --init from a checkpoint of this one",
    )


def cooled_down(saved: SavedState, updates: int) -> dict[str, Any]:
    """Return the configuration of a run in which the learning rate falls over the next ``updates`` updates.

    Raises:
        InputError: there are none, or the run is in a cool-down already.
    """
    folder, step = saved.path.parent, saved.values["progress"]["step"]
    if updates < 1:
        raise InputError(f"--cooldown {updates}", "give the number of updates of the cool-down, at least 1")
    began = from_dict(saved.values["config"], str(saved.path)).train.cooldown_from
    if step > began:
        raise InputError(f"{folder} is in its own cool-down since step {began}", "branch from an earlier state")
    steps = step + updates
    return merged(saved.values["config"], {"train": {"steps": steps, "cooldown_share": updates / steps}})


def check_same_run(
    state: dict[str, Any], task: str, config: Config, data: str, folder: Path, free: set[tuple[str, str]]
) -> None:
    """Refuse to resume with a task, a configuration or data that the run was not started with.

    The number of steps may grow, because a run may be prolonged; it changes the schedule from there on.

    Args:
        free: sections and keys that may differ.
    """
    if state["task"] != task:
        raise InputError(f"{folder} holds a run of '{state['task']}', not of '{task}'", "choose another folder")
    old, new = state["config"], to_dict(config)
    changed = [
        f"{section}.{key}: {old[section].get(key)!r} -> {value!r}"
        for section, values in new.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if old[section].get(key) != value and (section, key) not in free
    ]
    if changed:
        raise InputError(
            f"{folder} was trained with another configuration ({'; '.join(changed[:3])})",
            "resume with the same one, or start a run in another folder",
        )
    if state["data"] != data:
        raise InputError(f"{folder} was trained on other data", "give the same cache, or start a run in another folder")
