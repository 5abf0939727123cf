"""The training state: everything an interrupted run needs to go on as if it had not stopped.

Samples, masks and noise are functions of the seed and the sample number, so the step is the sampler's
whole state, and that of every rank. The file is a pickle read with ``weights_only=True``, which builds
tensors and plain values and nothing else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from MAESILLib.config import Config, from_dict, merged, to_dict
from MAESILLib.errors import InputError
from MAESILLib.files import atomic_path
from MAESILLib.training.run_folder import NEW, PREVIOUS, STATE, STATES

FORMAT = "maesil-training-state/3"
FIRST_FORMAT = "maesil-training-state/2"
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError)
"""What torch.load raises for files that are cut, overwritten or none of its own."""


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


@dataclass(frozen=True)
class SavedState:
    """A state that was read.

    Attributes:
        values: what :func:`save_state` packed.
        path: the file it came from.
        problem: which newer file could not be read, and why; empty where this is the newest.
    """

    values: dict[str, Any]
    path: Path
    problem: str = ""


def save_state(
    folder: Path,
    *,
    task: str,
    config: Config,
    data: str,
    volumes: list[str],
    initial: dict[str, Any],
    device: str,
    bf16: bool,
    progress: Progress,
    learnt: dict[str, Any],
) -> None:
    """Write the state to ``folder``, keeping the one before it.

    Args:
        task: name of what is trained.
        data: fingerprint of the cache.
        volumes: those that are trained on.
        device: its type.
        bf16: the precision that was chosen there.
        learnt: weights, moments and averages as :meth:`MAESILLib.training.update.Update.state` gives them.
    """
    state = {
        "format": FORMAT,
        "task": task,
        "config": to_dict(config),
        "data": data,
        "volumes": volumes,
        "initial": initial,
        "device": device,
        "bf16": bf16,
        "progress": vars(progress),
        **learnt,
    }
    path = folder / STATE
    # torch.save to a file hides a full disk behind an error of its own
    packed = io.BytesIO()
    torch.save(state, packed)
    with atomic_path(folder / NEW) as temporary:
        temporary.write_bytes(packed.getbuffer())
    # at every moment one of the names holds a complete state
    if path.exists():
        path.replace(folder / PREVIOUS)
    (folder / NEW).replace(path)


def read_state(folder: Path) -> SavedState:
    """Read the newest complete state of a run; say so where a newer file is damaged.

    Raises:
        InputError: there is none, or none can be read.
    """
    found = [folder / name for name in STATES if (folder / name).is_file()]
    if not found:
        raise InputError(
            f"{folder} holds no training state", "give the folder of a run that saved one, or begin a new run"
        )
    # saving never leaves the one before alone
    problem = f"{STATE}: it is not there" if found[0].name == PREVIOUS else ""
    for path in found:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
        else:
            found_format = state.get("format") if isinstance(state, dict) else None
            if found_format == FORMAT:
                return SavedState(state, path, problem)
            reason = "a run of the first release" if found_format == FIRST_FORMAT else f"not a {FORMAT}"
        problem = problem or f"{path.name}: {reason}"
    raise InputError(f"no training state in {folder} can be read ({problem})", "start a new run in another folder")


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
