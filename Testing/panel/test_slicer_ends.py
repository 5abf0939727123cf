"""However a job ends, the user is told, nothing is left behind, and the scene is as it was."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gui_factory import (
    REPOSITORY,
    apply_and_wait,
    ct_node,
    is_alive,
    result_of,
    scene_state,
    use_checkpoint,
    wait_for_end,
    wait_for_worker,
    wait_until_gone,
    workers_of_this_process,
)

BIG = (96, 128, 128)


def assert_as_it_was(panel: Any, before: dict[str, Any], *words: str) -> None:
    """No result, no file, no process; a message with these words; and Apply works again."""
    assert scene_state() == before
    assert not list(panel.temporary.iterdir())
    assert not workers_of_this_process()
    assert panel.results.result is None
    text = panel.ui.statusLabel.text
    for word in words:
        assert word in text, text
    assert panel.ui.statusLabel.isVisible()
    assert not panel.ui.progressBar.isVisible()
    assert not panel.ui.cancelButton.enabled


def launcher(folder: Path, before: str) -> None:
    """Replace PythonSlicer by one that first runs a line of shell: limits that a user's machine may have."""
    path = folder / "PythonSlicer"
    path.write_text(f'#!/bin/sh\n{before}\n"{sys.executable}" "$@"\nexit $?\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def ready(panel: Any, checkpoint: Path) -> Any:
    """The panel with a volume that takes a while."""
    use_checkpoint(panel, checkpoint)
    panel.parameters.inputVolume = ct_node(BIG)
    return panel


class TestCancel:
    @pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3, 1.0, 2.0])
    def test_at_any_moment(self, host: Any, ready: Any, after_s: float) -> None:
        before = scene_state()
        ready.ui.applyButton.click()
        host.process_events(after_s)
        if ready.reconstruct.task is None:
            pytest.fail("it ended before it could be cancelled: the volume is too small")
        pid = ready.reconstruct.task.job.worker_pid
        ready.ui.cancelButton.click()
        begin = time.monotonic()
        wait_for_end(host, ready.reconstruct, 10)
        assert time.monotonic() - begin < 3
        if pid:
            assert not is_alive(pid)
        assert_as_it_was(ready, before, "Cancelled")
        assert ready.ui.applyButton.enabled

    @pytest.mark.parametrize("stage", ["read", "reconstruct", "measure", "write", "load"])
    def test_in_every_stage(self, host: Any, ready: Any, stage: str) -> None:
        before, seen = scene_state(), []
        ready.ui.applyButton.click()
        task = ready.reconstruct.task
        told = task.on_progress

        def note(share: float, name: str, eta: float | None) -> None:
            told(share, name, eta)
            if name == stage and not seen:
                seen.append(name)
                ready.ui.cancelButton.click()

        task.on_progress = note
        wait_for_end(host, ready.reconstruct, 60)
        assert seen == [stage]
        assert_as_it_was(ready, before, "Cancelled")

    def test_a_worker_that_does_not_listen_is_killed(self, host: Any, ready: Any) -> None:
        before = scene_state()
        ready.ui.applyButton.click()
        pid = wait_for_worker(host, lambda: ready.reconstruct.task)
        os.kill(pid, signal.SIGSTOP)
        ready.ui.cancelButton.click()
        begin = time.monotonic()
        wait_for_end(host, ready.reconstruct, 10)
        assert time.monotonic() - begin < 3
        wait_until_gone(pid, 1)
        assert_as_it_was(ready, before, "Cancelled")

    def test_then_again(self, host: Any, ready: Any) -> None:
        ready.ui.applyButton.click()
        host.process_events(0.5)
        ready.ui.cancelButton.click()
        wait_for_end(host, ready.reconstruct, 10)
        apply_and_wait(host, ready)
        assert result_of(ready).is_whole()


class TestFailures:
    def test_worker_killed(self, host: Any, ready: Any) -> None:
        before = scene_state()
        ready.ui.applyButton.click()
        pid = wait_for_worker(host, lambda: ready.reconstruct.task)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(host, ready.reconstruct, 20)
        assert_as_it_was(ready, before, "signal 9", "memory", "Close other programs")

    def test_launcher_killed(self, host: Any, ready: Any) -> None:
        """The worker notices that nobody waits for it."""
        before = scene_state()
        ready.ui.applyButton.click()
        pid = wait_for_worker(host, lambda: ready.reconstruct.task)
        os.kill(int(ready.reconstruct.task.job._process.processId()), signal.SIGKILL)
        wait_for_end(host, ready.reconstruct, 20)
        wait_until_gone(pid, 5)
        assert_as_it_was(ready, before, "ended from outside")

    def test_out_of_memory(self, host: Any, ready: Any, tmp_path: Path) -> None:
        ready.parameters.inputVolume = ct_node((220, 256, 256), name="large")
        before = scene_state()
        # a real limit, set when everything is imported: the work itself runs into it
        limit = tmp_path / "limit"
        limit.mkdir()
        (limit / "sitecustomize.py").write_text(
            "import resource, torch, scipy.ndimage, scipy.sparse, SimpleITK\n"
            "torch.zeros(8, 8) @ torch.zeros(8, 8)\n"
            "pages = int(open('/proc/self/statm').read().split()[0])\n"
            "most = pages * resource.getpagesize() + (250 << 20)\n"
            "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        )
        launcher(tmp_path / "launchers", f'export PYTHONPATH="{limit}:$PYTHONPATH"')
        apply_and_wait(host, ready, 120)
        assert_as_it_was(ready, before, "memory")
        assert "bug" not in ready.ui.statusLabel.text
        assert "fault of MAESIL" not in ready.ui.statusLabel.text

    def test_disk_full_while_the_worker_writes(self, host: Any, ready: Any, tmp_path: Path) -> None:
        before = scene_state()
        launcher(tmp_path / "launchers", "ulimit -f 512")
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "larger than the system allows")

    def test_disk_full_while_the_volume_is_written(
        self, host: Any, ready: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The real error of a full disk: what the export writes goes to /dev/full."""
        from MAESILWidgets.scene import export

        before = scene_state()
        opened = open

        def full(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            # unbuffered, so that the write itself fails, as on a full disk
            if "w" in mode:
                return opened("/dev/full", "wb", buffering=0)
            return opened(path, mode, *args, **kwargs)

        monkeypatch.setattr(export, "open", full, raising=False)
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "disk full")

    def test_checkpoint_truncated_after_it_was_chosen(
        self, host: Any, ready: Any, checkpoint: Path, tmp_path: Path
    ) -> None:
        mine = tmp_path / "mine.safetensors"
        mine.write_bytes(checkpoint.read_bytes())
        use_checkpoint(ready, mine)
        before = scene_state()
        launcher(tmp_path / "launchers", f'truncate -s 5000 "{mine}"')
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "mine.safetensors", "damaged")

    def test_volume_deleted(self, host: Any, ready: Any) -> None:
        import slicer

        ready.ui.applyButton.click()
        pid = wait_for_worker(host, lambda: ready.reconstruct.task)
        slicer.mrmlScene.RemoveNode(ready.parameters.inputVolume)
        before = scene_state()
        begin = time.monotonic()
        wait_for_end(host, ready.reconstruct, 20)
        assert time.monotonic() - begin < 3
        assert not is_alive(pid)
        assert_as_it_was(ready, before, "is gone", "deleted")

    def test_volume_deleted_while_it_is_written(self, host: Any, ready: Any) -> None:
        import slicer

        ready.ui.applyButton.click()
        slicer.mrmlScene.RemoveNode(ready.parameters.inputVolume)
        before = scene_state()
        wait_for_end(host, ready.reconstruct, 20)
        assert_as_it_was(ready, before, "is gone", "deleted")

    def test_scene_closed(self, host: Any, ready: Any) -> None:
        ready.ui.applyButton.click()
        pid = wait_for_worker(host, lambda: ready.reconstruct.task)
        host.close_scene()
        wait_for_end(host, ready.reconstruct, 20)
        assert not is_alive(pid)
        assert_as_it_was(ready, {}, "is gone", "scene was closed")

    def test_no_python_slicer(self, host: Any, ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        before = scene_state()
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(sys, "executable", "/opt/Slicer/SlicerApp-real")
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "PythonSlicer was not found")

    def test_a_python_that_cannot_be_started(self, host: Any, ready: Any, tmp_path: Path) -> None:
        before = scene_state()
        path = tmp_path / "launchers" / "PythonSlicer"
        path.write_text("#!/nowhere/sh\n")
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "could not be started")

    def test_torch_missing_in_the_worker(self, host: Any, ready: Any, tmp_path: Path) -> None:
        before = scene_state()
        fake = tmp_path / "fake"
        (fake / "torch").mkdir(parents=True)
        (fake / "torch" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
        launcher(tmp_path / "launchers", f'export PYTHONPATH="{fake}:$PYTHONPATH"')
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "No module named 'torch'", "Python packages")

    def test_a_bug_of_the_worker(self, host: Any, ready: Any, tmp_path: Path) -> None:
        """An unforeseen exception: its last line is told, the log holds the traceback."""
        before = scene_state()
        fake = tmp_path / "fake"
        (fake / "torch").mkdir(parents=True)
        (fake / "torch" / "__init__.py").write_text('raise ArithmeticError("unforeseen")\n')
        launcher(tmp_path / "launchers", f'export PYTHONPATH="{fake}:$PYTHONPATH"')
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "ArithmeticError: unforeseen", "Copy diagnostics")
        assert "Traceback" in ready.ui.logView.toPlainText()


QUIT_SCRIPT = """
import sys, os, time
sys.path[:0] = [{testing!r}, {testing!r} + "/support"]
from pathlib import Path
from slicer_host import boot
host = boot(settings_dir=Path({folder!r}))
host.install_python_slicer({launchers!r})
host.add_module_path({module!r})
host.load_module("MAESIL")
panel = host.open_module("MAESIL").panel
import slicer
slicer.app.temporaryPath = {temporary!r}
from gui_factory import ct_node
panel.input.add_checkpoint({checkpoint!r})
panel.parameters.inputVolume = ct_node((96, 128, 128))
panel.ui.applyButton.click()
host.process_events(until=lambda: panel.reconstruct.task.job.worker_pid, timeout=60)
print(panel.reconstruct.task.job.worker_pid, flush=True)
{how}
"""


class TestSlicerEnds:
    @pytest.mark.parametrize(
        ("how", "cleans_up"),
        [
            ("host.close(); print('closed', flush=True); os._exit(0)", True),
            ("os.kill(os.getpid(), 9)", False),
        ],
        ids=["closed", "killed"],
    )
    def test_no_orphan(self, tmp_path: Path, checkpoint: Path, how: str, cleans_up: bool) -> None:
        """Slicer in a process of its own: closed, or killed, while the worker runs."""
        for name in ("temporary", "launchers"):
            (tmp_path / name).mkdir()
        code = QUIT_SCRIPT.format(
            testing=str(REPOSITORY / "Testing"),
            folder=str(tmp_path),
            launchers=str(tmp_path / "launchers"),
            module=str(REPOSITORY / "MAESIL"),
            temporary=str(tmp_path / "temporary"),
            checkpoint=str(checkpoint),
            how=how,
        )
        slicer_process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert slicer_process.stdout is not None
        pid = int(slicer_process.stdout.readline())
        slicer_process.wait(30)
        wait_until_gone(pid, 5)
        if cleans_up:
            assert "closed" in slicer_process.stdout.read()
            assert not list((tmp_path / "temporary").iterdir())


class TestPlaces:
    def test_spaces_and_other_letters(
        self, host: Any, panel: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Temporary folder, checkpoint and volume name with spaces, umlauts, Japanese and an emoji."""
        import slicer

        folder = tmp_path / "Müller, Ärzte & Söhne 医用 🩻"
        folder.mkdir()
        slicer.app.temporaryPath = str(folder)
        mine = folder / "prüfung 1.safetensors"
        mine.write_bytes(checkpoint.read_bytes())
        use_checkpoint(panel, mine)
        panel.parameters.inputVolume = ct_node(name='Thorax nativ / Übersicht 胸部 "a\'b"')
        apply_and_wait(host, panel)
        result = result_of(panel)
        assert result.metrics["checkpoint"]["name"] == "prüfung 1.safetensors"
        assert [path.name for path in folder.iterdir()] == ["prüfung 1.safetensors"]

    def test_decimal_comma(self, host: Any, panel: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A German desktop: ratios still reach the worker as numbers."""
        import qt

        for name in ("LC_ALL", "LC_NUMERIC", "LANG"):
            monkeypatch.setenv(name, "de_DE.UTF-8")
        was = qt.QLocale()
        qt.QLocale.setDefault(qt.QLocale("de_DE"))
        try:
            use_checkpoint(panel, checkpoint)
            panel.parameters.inputVolume = ct_node()
            panel.ui.planeRatioSlider.value = 0.25
            panel.ui.axisRatioSlider.value = 0.35
            apply_and_wait(host, panel)
            mask = result_of(panel).metrics["mask"]
            assert (mask["plane_ratio"], mask["axis_ratio"]) == (0.25, 0.35)
        finally:
            qt.QLocale.setDefault(was)


def test_lines_arrive_in_pieces(host: Any, panel: Any, tmp_path: Path) -> None:
    """Events cut anywhere, also within a letter of two bytes, and lines that are none."""
    from MAESILWidgets.jobs.job import FINISHED, BackgroundJob

    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time\n"
        'line = \'{"event": "artifact", "kind": "x", "path": "/tmp/\\u00fc.nrrd"}\\nno event\\n'
        '{"event": "done", "seconds": 1}\'\n'
        "data = line.encode()\n"
        "for i in range(0, len(data), 3):\n"
        "    sys.stdout.buffer.write(data[i:i + 3]); sys.stdout.buffer.flush(); time.sleep(0.002)\n"
    )
    launcher(tmp_path / "launchers", f'exec "{sys.executable}" "{script}"')
    events: list[Any] = []
    lines: list[str] = []
    ended: list[Any] = []
    job = BackgroundJob(
        ["info"],
        tmp_path / "stop",
        on_event=events.append,
        on_log=lines.append,
        on_end=lambda state, failure: ended.append((state, failure)),
    )
    job.start()
    host.process_events(until=lambda: ended, timeout=20)
    assert ended == [(FINISHED, None)]
    assert [event["event"] for event in events] == ["artifact", "done"]
    assert events[0]["path"] == "/tmp/ü.nrrd"
    assert lines == ["no event"]
