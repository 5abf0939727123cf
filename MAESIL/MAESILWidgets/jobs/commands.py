"""The command lines of MAESILLib, from what the panel or a script asks for."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

STROKES = "strokes.nrrd"


@dataclass(frozen=True)
class ReconstructOptions:
    """What ``maesil reconstruct`` is asked for; an empty checkpoint is the embedded one.

    ``painted`` is the name of a label map, which lies beside the volume.
    """

    checkpoint: str = ""
    mask: str = "dual"
    plane_ratio: float = 0.5
    axis_ratio: float = 0.5
    coverage: str = "single"
    overlap: float = 0.0
    seed: int = 0
    device: str = "auto"
    completion: bool = True
    painted: str = ""

    def title(self) -> str:
        """Return a short name for the result: mask and seed, and what is not the default."""
        ratios = "" if self.mask == "none" else f" {self.plane_ratio:.2f}/{self.axis_ratio:.2f}"
        coverage = "complete" if self.coverage == "complete" else ""
        overlap = f"overlap {self.overlap:.0%}" if self.overlap else ""
        decoder = "" if self.completion else "decoder"
        mask = "" if self.painted and self.mask == "none" else f"{self.mask}{ratios}"
        painted = f"painted {self.painted}" if self.painted else ""
        parts = (mask, painted, f"seed {self.seed}", coverage, overlap, decoder, Path(self.checkpoint).stem)
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class TrainOptions:
    """What ``maesil pretrain`` is asked for."""

    run_folder: str
    preset: str = "tiny"
    steps: int = 200
    mask: str = "mix"
    device: str = "auto"
    seed: int = 0
    resume: bool = False


def reconstruct_arguments(volume: Path, name: str, output: Path, options: ReconstructOptions) -> list[str]:
    """Return the arguments of ``maesil`` that reconstruct a file.

    Args:
        name: of the volume node; equal names and seeds give equal masks.
    """
    # with =, because a name may begin with a dash
    painted = ("--mask-file", str(volume.with_name(painted_file(options)))) if options.painted else ()
    arguments = ["reconstruct", str(volume), f"--name={name}", "--output", str(output), *_options(options)]
    return [*arguments, *painted, "--no-figure", "--no-compress"]


def batch_arguments(folder: Path, output: Path, options: ReconstructOptions) -> list[str]:
    """Return the arguments of ``maesil`` that reconstruct the CTs of a folder, each into a folder of its own."""
    return ["reconstruct", str(folder), "--output", str(output), *_options(options)]


def _options(options: ReconstructOptions) -> list[str]:
    return [
        *(("--checkpoint", options.checkpoint) if options.checkpoint else ()),
        *("--mask", options.mask, "--plane-ratio", number(options.plane_ratio)),
        *("--axis-ratio", number(options.axis_ratio), "--coverage", options.coverage),
        *("--overlap", number(options.overlap), "--seed", str(int(options.seed)), "--device", options.device),
        *(() if options.completion else ("--no-completion",)),
    ]


def painted_file(options: ReconstructOptions) -> str:
    """Return the name of the label map of what is painted, which lies beside the volume; results name it."""
    return f"{file_name(options.painted)}.seg.nrrd"


def file_name(name: str) -> str:
    """Return a node's name as a file can bear it."""
    kept = "".join(c if c.isalnum() or c in "-_ ." else "_" for c in name).strip(" .")
    return kept[:80] or "volume"


def pretrain_arguments(cache: Path, options: TrainOptions) -> list[str]:
    """Return the arguments of ``maesil`` that train; a resumed run keeps its configuration, but for the steps."""
    arguments = ["pretrain", "--data", str(cache), "--output", options.run_folder]
    arguments += ["--steps", str(int(options.steps)), "--device", options.device]
    if options.resume:
        return [*arguments, "--resume"]
    arguments += ["--preset", options.preset, "--seed", str(int(options.seed))]
    # the mixture is the configuration's own
    arguments += [] if options.mask == "mix" else ["--set", f'mask.strategies=["{options.mask}"]']
    # a panel is looked at: figures and pictures come sooner than a cluster wants them
    arguments += ["--set", "train.log_every=5", "--set", f"train.validate_every={max(10, options.steps // 10)}"]
    arguments += ["--set", f"train.checkpoint_every={max(10, min(500, options.steps // 4))}"]
    return [*arguments, "--set", f"train.preview_at={min(10, options.steps)}"]


def explore_arguments(command: str, volume: Path, output: Path, checkpoint: str, device: str) -> list[str]:
    """Return the arguments of ``maesil features``, ``segment fit`` or ``surprise``.

    Args:
        volume: of segments the label map of what is painted lies beside it.
        output: folder for the results; of ``segment fit`` it holds the volume's features.
    """
    own = {
        "features": ["features", str(volume), "--output", str(output), "--no-colors"],
        "segment": ["segment", "fit", str(volume), "--strokes", str(volume.with_name(STROKES))],
        "surprise": ["surprise", str(volume), "--output", str(output)],
    }[command]
    if command == "segment":
        own += ["--features", str(output), "--output", str(output / "segments.safetensors"), "--fill", str(output)]
    return [*own, *(["--checkpoint", checkpoint] if checkpoint else []), "--device", device]


def number(value: float) -> str:
    """Return a number for a command line, which knows no decimal comma; sliders leave 0.30000000000000004 behind."""
    return repr(round(float(value), 4))


def for_terminal(arguments: list[str]) -> str:
    """Return the command as a user can paste it into a terminal of this system, where MAESIL is installed."""
    words = ["maesil", *arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
