"""Stands in for MAESILLib in the module's self test where torch is not installed: what it reports was recorded.

    worker.py reconstruct VOLUME ... --output FOLDER ... --stop-file FILE ...

The volumes are copies of the input, the error is zero; the metrics are those of the sample.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

STAGES = ("read", "reconstruct", "measure", "write")


def say(event: str, **values: object) -> None:
    """Print an event, as MAESILLib/runtime/events.py does."""
    print(json.dumps({"event": event, **values}), flush=True)


def reconstruct(volume: Path, output: Path, stop_file: Path) -> bool:
    """Write results, and say whether nobody wanted to stop."""
    for stage in STAGES:
        for step in range(11):
            if stop_file.exists():
                return False
            say("progress", stage=stage, fraction=step / 10, eta_s=None)
            time.sleep(0.02)
    output.mkdir(parents=True)
    for kind in ("masked", "reconstruction", "composite", "mask"):
        shutil.copyfile(volume, output / f"{kind}.nrrd")
    header, blank, voxels = volume.read_bytes().partition(b"\n\n")
    (output / "error.nrrd").write_bytes(header + blank + bytes(len(voxels)))
    shutil.copyfile(Path(__file__).with_name("metrics.json"), output / "metrics.json")
    return True


def main(arguments: list) -> int:
    """Run a command and return its exit status."""
    say("started", pid=os.getpid(), version="recorded", command=arguments[0])
    if arguments[0] == "reconstruct":
        output, stop_file = (Path(arguments[arguments.index(name) + 1]) for name in ("--output", "--stop-file"))
        if not reconstruct(Path(arguments[1]), output, stop_file):
            say("error", kind="cancelled", message="stopped", hint="")
            return 3
    say("done", seconds=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
