"""The Slicer panel in the test host: how soon it is there, how long a click takes, how long Slicer stands still.

    python Testing/Benchmarks/bench_panel.py [VOLUME...]

Beside it the same command alone, from the start of its process to the end. The event loop's gaps are measured with a
5 ms timer: from the click to the end of the worker (nothing but the work in the background), and from there to the
filled views.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "Testing"), str(REPOSITORY / "Testing" / "support")]

from slicer_host import boot  # noqa: E402 (after the path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volumes", nargs="*", type=Path, help="CTs to reconstruct besides the sample")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        host = boot(Path(folder) / "settings")
        (Path(folder) / "bin").mkdir()
        host.install_python_slicer(Path(folder) / "bin")
        host.add_module_path(REPOSITORY / "MAESIL")
        imported = timed(lambda: host.load_module("MAESIL"))
        opened = timed(lambda: host.open_module("MAESIL"))
        import slicer

        panel = slicer.util.getModuleWidget("MAESIL").panel
        host.process_events(until=lambda: panel.system.job is None, timeout=60)
        print(f"module imported in {imported:.3f} s, panel built in {opened:.2f} s")
        print("click to nine filled views, s; beside: the worker alone; longest gaps of the event loop, ms")
        print(f"{'':28}{'views':>7}{'alone':>7}{'ratio':>7}{'job':>7}{'load':>7}{'cancel s':>10}")
        panel.input.load_sample()
        measure(host, panel, Path(folder))
        for path in arguments.volumes:
            panel.parameters.inputVolume = slicer.util.loadVolume(str(path))
            measure(host, panel, Path(folder))
        panel.stop_jobs()
    sys.stdout.flush()
    os._exit(0)


def measure(host: Any, panel: Any, folder: Path) -> None:
    """Cancel a reconstruction of the chosen volume, let one run to its end, and run its command alone."""
    name = panel.parameters.inputVolume.GetName()
    panel.ui.applyButton.click()
    host.process_events(until=lambda: panel.reconstruct.task.job.worker_pid, timeout=60)
    host.process_events(1.0)
    begin = time.perf_counter()
    panel.ui.cancelButton.click()
    host.process_events(until=lambda: panel.reconstruct.task is None, timeout=30)
    cancelled = time.perf_counter() - begin

    begin = time.perf_counter()
    with host.stall_meter() as job_gaps:
        panel.ui.applyButton.click()
        task = panel.reconstruct.task
        host.process_events(until=lambda: task.job.worker_pid, timeout=60)
        command, volume = task.job.arguments, Path(shutil.copy(task.job.arguments[1], folder))
        host.process_events(until=lambda: task.loader is not None or not task.is_running, timeout=600)
    with host.stall_meter() as load_gaps:
        host.process_events(until=lambda: panel.reconstruct.task is None, timeout=60)
        host.render()
    views = time.perf_counter() - begin
    command = [
        str(volume) if part == command[1] else part.replace(str(task.output), f"{folder}/out") for part in command
    ]
    alone = [sys.executable, "-m", "MAESILLib", *command, "--progress", "json"]
    seconds = timed(lambda: subprocess.run(alone, check=True, stdout=subprocess.DEVNULL, cwd=REPOSITORY))
    print(
        f"{name[:26]:28}{views:7.1f}{seconds:7.1f}{views / seconds:7.2f}"
        f"{job_gaps.worst_ms:7.0f}{load_gaps.worst_ms:7.0f}{cancelled:10.2f}"
    )


def timed(action: Any) -> float:
    """Return how long an action takes, in seconds."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
