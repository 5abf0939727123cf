"""Finding what ships beside the code: checkpoint, sample CT, interface files.

One function for a checkout and a packaged Slicer extension, where Resources lies beside MAESILLib,
and for an installed wheel, where it lies inside.
"""

from pathlib import Path

from MAESILLib.runtime.errors import InputError

CHECKPOINT = "Checkpoints/maesil-small.safetensors"


def resource_path(relative: str) -> Path:
    """Return the path of a file in Resources.

    Raises:
        InputError: it is not there; the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (path := folder / "Resources" / relative).exists():
            return path
    raise InputError(f"Resources/{relative} is missing from this installation of MAESIL", "install it again")


def embedded_checkpoint() -> Path:
    return resource_path(CHECKPOINT)


def sample_ct() -> Path:
    return resource_path("Sample/MAESILSampleCT.nrrd")
