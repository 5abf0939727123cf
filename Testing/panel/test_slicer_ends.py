"""However a job ends, the user is told, nothing is left behind, and the scene is as it was."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import slicer
from gui_factory import (
    SOON_S,
    apply_and_wait,
    ct_node,
    is_alive,
    reconstructed,
    scene_state,
    slicer_process,
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


@pytest.fixture
def ready(panel: Any, checkpoint: Path) -> Any:
    """The panel with a volume that takes a while."""
    use_checkpoint(panel, checkpoint)
    panel.parameters.inputVolume = ct_node(BIG)
    return panel


def start(host: Any, panel: Any) -> int:
    """Click Apply; return the worker's process id."""
    panel.ui.applyButton.click()
    return wait_for_worker(host, lambda: panel.reconstruct.task)


class TestCancel:
    def test_at_any_moment(self, host: Any, ready: Any) -> None:
        before = scene_state()
        for after_s in (0.0, 0.3, 1.0):
            ready.ui.applyButton.click()
            host.process_events(after_s)
            assert ready.reconstruct.task is not None, "it ended before it could be cancelled: the volume is too small"
            pid = ready.reconstruct.task.job.worker_pid
            ready.ui.cancelButton.click()
            wait_for_end(host, ready.reconstruct, SOON_S)
            if pid:
                assert not is_alive(pid)
            assert_as_it_was(ready, before, "Cancelled")
            assert ready.ui.applyButton.enabled

    def test_in_every_stage_and_then_again(self, host: Any, ready: Any) -> None:
        before = scene_state()
        for stage in ("read", "reconstruct", "measure", "write", "load"):
            seen: list[str] = []
            ready.ui.applyButton.click()
            task = ready.reconstruct.task
            told = task.on_progress

            def note(
                share: float, name: str, eta: float | None, told: Any = told, stage: str = stage, seen: Any = seen
            ) -> None:
                told(share, name, eta)
                if name == stage and not seen:
                    seen.append(name)
                    ready.ui.cancelButton.click()

            task.on_progress = note
            wait_for_end(host, ready.reconstruct, 60)
            assert seen == [stage]
            assert_as_it_was(ready, before, "Cancelled")
        assert reconstructed(host, ready).is_whole()

    def test_a_worker_that_does_not_listen_is_killed(self, host: Any, ready: Any) -> None:
        before = scene_state()
        pid = start(host, ready)
        os.kill(pid, signal.SIGSTOP)
        ready.ui.cancelButton.click()
        wait_for_end(host, ready.reconstruct, SOON_S)
        wait_until_gone(pid, 1)
        assert_as_it_was(ready, before, "Cancelled")


class TestFailures:
    def test_killed(self, host: Any, ready: Any) -> None:
        """The worker; and the launcher: the worker notices that nobody waits for it."""
        before = scene_state()
        os.kill(start(host, ready), signal.SIGKILL)
        wait_for_end(host, ready.reconstruct, 20)
        assert_as_it_was(ready, before, "signal 9", "memory", "Close other programs")
        pid = start(host, ready)
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
        host.install_python_slicer(tmp_path / "launchers", f'export PYTHONPATH="{limit}:$PYTHONPATH"')
        apply_and_wait(host, ready, 120)
        assert_as_it_was(ready, before, "memory")
        assert "bug" not in ready.ui.statusLabel.text
        assert "bug in MAESIL" not in ready.ui.statusLabel.text

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

    def test_what_goes_wrong_in_the_worker(self, host: Any, ready: Any, checkpoint: Path, tmp_path: Path) -> None:
        """Disk full, torch missing, an unforeseen exception, a checkpoint damaged after it was chosen."""
        before = scene_state()
        mine = tmp_path / "mine.safetensors"
        mine.write_bytes(checkpoint.read_bytes())
        use_checkpoint(ready, mine)
        fakes = {"missing": "ModuleNotFoundError(\"No module named 'torch'\")", "bug": 'ArithmeticError("unforeseen")'}
        for name, error in fakes.items():
            (tmp_path / name / "torch").mkdir(parents=True)
            (tmp_path / name / "torch" / "__init__.py").write_text(f"raise {error}\n")
        for line, words in (
            (f'export PYTHONPATH="{tmp_path}/bug:$PYTHONPATH"', ["ArithmeticError: unforeseen", "Copy diagnostics"]),
            ("ulimit -f 512", ["larger than the system allows"]),
            (f'export PYTHONPATH="{tmp_path}/missing:$PYTHONPATH"', ["No module named 'torch'", "Python packages"]),
            (f'truncate -s 5000 "{mine}"', ["mine.safetensors", "not a readable checkpoint"]),
        ):
            host.install_python_slicer(tmp_path / "launchers", line)
            apply_and_wait(host, ready)
            assert_as_it_was(ready, before, *words)
        assert re.search(r"Traceback[\s\S]*ArithmeticError: unforeseen", ready.ui.logView.toPlainText())

    def test_no_python_to_start(self, host: Any, ready: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = scene_state()
        (tmp_path / "launchers" / "PythonSlicer").write_text("#!/nowhere/sh\n")
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "could not be started")
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(sys, "executable", "/opt/Slicer/SlicerApp-real")
        apply_and_wait(host, ready)
        assert_as_it_was(ready, before, "PythonSlicer was not found")

    @pytest.mark.parametrize("when", ["exported", "worked on"])
    def test_volume_deleted(self, host: Any, ready: Any, when: str) -> None:
        ready.ui.applyButton.click()
        pid = wait_for_worker(host, lambda: ready.reconstruct.task) if when == "worked on" else 0
        slicer.mrmlScene.RemoveNode(ready.parameters.inputVolume)
        before = scene_state()
        wait_for_end(host, ready.reconstruct, SOON_S)
        assert not pid or not is_alive(pid)
        assert_as_it_was(ready, before, "is gone", "deleted")

    def test_scene_closed(self, host: Any, ready: Any) -> None:
        pid = start(host, ready)
        host.close_scene()
        wait_for_end(host, ready.reconstruct, 20)
        assert not is_alive(pid)
        assert_as_it_was(ready, {}, "is gone", "scene was closed")


@pytest.mark.parametrize(
    "how",
    ["host.close(); print('closed', flush=True); os._exit(0)", "os.kill(os.getpid(), 9)"],
    ids=["closed", "killed"],
)
def test_no_orphan(tmp_path: Path, checkpoint: Path, how: str) -> None:
    """Slicer in a process of its own: closed, or killed, while the worker runs."""
    (tmp_path / "temporary").mkdir()
    script = f"""
import slicer
from gui_factory import ct_node
slicer.app.temporaryPath = {str(tmp_path / "temporary")!r}
panel.input.add_checkpoint({str(checkpoint)!r})
panel.parameters.inputVolume = ct_node({BIG})
panel.ui.applyButton.click()
host.process_events(until=lambda: panel.reconstruct.task.job.worker_pid, timeout=60)
print(panel.reconstruct.task.job.worker_pid, flush=True)
{how}
"""
    process = slicer_process(tmp_path, script)
    pid = int(process.stdout.readline())
    process.wait(30)
    wait_until_gone(pid, 5)
    if "close" in how:
        assert "closed" in process.stdout.read()
        assert not list((tmp_path / "temporary").iterdir())


def test_other_letters_and_a_decimal_comma(
    host: Any, panel: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qt: Any
) -> None:
    """A German desktop; temporary folder, checkpoint and volume with spaces, umlauts, Japanese and an emoji."""
    for name in ("LC_ALL", "LC_NUMERIC", "LANG"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    qt.QLocale.setDefault(qt.QLocale("de_DE"))
    folder = tmp_path / "Müller, Ärzte & Söhne 医用 🩻"
    folder.mkdir()
    slicer.app.temporaryPath = str(folder)
    mine = folder / "prüfung 1.safetensors"
    mine.write_bytes(checkpoint.read_bytes())
    use_checkpoint(panel, mine)
    panel.parameters.inputVolume = ct_node(name='Thorax nativ / Übersicht 胸部 "a\'b"')
    panel.ui.planeRatioSlider.value = 0.25
    panel.ui.axisRatioSlider.value = 0.35
    metrics = reconstructed(host, panel).metrics
    assert metrics["checkpoint"]["name"] == "prüfung 1.safetensors"
    assert (metrics["mask"]["plane_ratio"], metrics["mask"]["axis_ratio"]) == (0.25, 0.35)
    assert [path.name for path in folder.iterdir()] == ["prüfung 1.safetensors"]


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
    host.install_python_slicer(tmp_path / "launchers", f'exec "{sys.executable}" "{script}"')
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
