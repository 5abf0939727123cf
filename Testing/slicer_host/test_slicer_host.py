"""The test host enforces what PythonQt and Slicer enforce: what passes on it is meant to work there."""

import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import slicer
import vtk

from slicer_host import Host

# 1 and 2: properties and attributes


def test_properties_have_no_parentheses(qt: Any) -> None:
    button = qt.QPushButton("Go")
    assert (button.text, button.enabled, button.checked, button.toolTip) == ("Go", True, False, "")
    button.text, button.enabled = "Stop", False
    assert (button.text, button.isEnabled()) == ("Stop", False)
    with pytest.raises(TypeError):
        button.text()
    slider = qt.QSlider()
    with pytest.raises(TypeError):
        slider.value()
    combo = qt.QComboBox()
    combo.addItem("a", 5)
    assert (combo.count, combo.currentIndex, combo.currentText, combo.itemData(0)) == (1, 0, "a", 5)
    timer = qt.QTimer()
    timer.singleShot, timer.interval = True, 7
    assert (timer.singleShot, timer.interval, timer.active, timer.isActive()) == (True, 7, False, False)
    layout = qt.QVBoxLayout()
    assert layout.count() == 0
    text = qt.QPlainTextEdit()
    text.plainText = "a\nb"
    assert text.toPlainText() == "a\nb"


def test_unknown_attributes_are_refused(qt: Any) -> None:
    import ctk

    for thing in (qt.QPushButton(), qt.QTimer(), qt.QSize(1, 2), ctk.ctkSliderWidget(), slicer.qMRMLNodeComboBox()):
        with pytest.raises(AttributeError):
            thing.enable = True
        with pytest.raises(AttributeError):
            thing.noSuchThing  # noqa: B018
    with pytest.raises(AttributeError):
        qt.QPushButton().setText = 1
    with pytest.raises(AttributeError):
        qt.QSpinBox().value = "many"

    class Own(qt.QWidget):
        pass

    own = Own()
    own.anything = 3
    assert own.anything == 3
    assert isinstance(own, qt.QWidget)


def test_classes(qt: Any) -> None:
    button = qt.QPushButton()
    assert not isinstance(button, qt.QWidget)
    assert button.inherits("QWidget")
    assert not button.inherits("QLabel")
    assert button.className() == "QPushButton"
    for name in ("QThread", "QSignalBlocker", "Signal", "Slot", "QNoSuchClass"):
        assert not hasattr(qt, name)
    with pytest.raises(TypeError):
        qt.QLabel(text="keyword")


def test_virtual_methods_reach_python(qt: Any) -> None:
    class Filter(qt.QWidget):
        seen: list[int] = []  # noqa: RUF012

        def eventFilter(self, thing: Any, event: Any) -> bool:
            self.seen.append(event.type())
            return False

    watcher, label = Filter(), qt.QLabel("x")
    label.installEventFilter(watcher)
    label.setToolTip("y")
    assert qt.QEvent.ToolTipChange in watcher.seen


def test_what_qt_returns_follows_the_same_rules(qt: Any) -> None:
    frame = qt.QWidget()
    row = qt.QHBoxLayout(frame)
    button = qt.QPushButton("x")
    row.addWidget(button)
    button.objectName = "inner"
    for found in (row.itemAt(0).widget(), frame.children()[1], frame.findChild("QPushButton"), frame.inner):
        assert found == button
        assert found.text == "x"
        with pytest.raises(AttributeError):
            found.enable = 1
    assert button.parent().layout().count() == 1


# 3 to 5: signals


def test_signatures_are_checked(host: Host, capfd: pytest.CaptureFixture[str], qt: Any) -> None:
    button = qt.QPushButton()
    assert button.connect("clicked( bool )", lambda: None) is True
    for wrong in ("clicked(int)", "click()", "checkStateChanged(Qt::CheckState)"):
        assert button.connect(wrong, lambda: None) is False
    assert len(host.errors) == 3
    assert "no signal" in capfd.readouterr().err
    host.errors.clear()


def test_surplus_arguments_are_dropped_for_functions_alone(host: Host, qt: Any) -> None:
    seen: list[Any] = []

    class Receiver:
        def nothing(self) -> None:
            seen.append("method")

        def one(self, checked: bool) -> None:
            seen.append(("method", checked))

    button = qt.QPushButton()
    button.checkable = True
    receiver = Receiver()
    button.connect("clicked(bool)", lambda: seen.append("lambda"))
    button.clicked.connect(receiver.nothing)
    button.clicked.connect(receiver.one)
    button.clicked.connect(functools.partial(lambda *args: seen.append(("partial", *args)), 7))
    button.click()
    assert seen == ["lambda", "method", ("method", True), ("partial", 7, True)]
    button.clicked.connect(lambda a, b: None)
    button.click()
    assert "TypeError" in host.errors.pop()
    seen.clear()
    assert button.disconnect("clicked(bool)", seen.append) is False
    assert button.clicked.disconnect(receiver.one) is True
    button.blockSignals(True)
    button.click()
    assert seen == []


def test_exceptions_are_collected(host: Host, qt: Any) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("wanted")

    button = qt.QPushButton()
    button.connect("clicked()", fail)
    button.click()
    qt.QTimer.singleShot(1, fail)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, fail)
    node.SetText("x")
    host.process_events(until=lambda: len(host.errors) >= 3, timeout=5)
    assert all("wanted" in error and "Traceback" in error for error in host.errors)
    host.errors.clear()


# 6 and 7: enums, values, dialogs


def test_enums_are_flat(qt: Any) -> None:
    assert qt.Qt.AlignLeft == 1
    assert qt.Qt.AlignLeft | qt.Qt.AlignTop == 0x21
    for owner, name in ((qt.Qt, "AlignmentFlag"), (qt.QProcess, "ProcessState"), (qt.QMessageBox, "StandardButton")):
        with pytest.raises(AttributeError):
            getattr(owner, name)
    label = qt.QLabel()
    label.alignment = qt.Qt.AlignRight | qt.Qt.AlignVCenter
    label.setAlignment(qt.Qt.AlignRight)
    assert label.alignment == qt.Qt.AlignRight
    process = qt.QProcess()
    assert process.state() == qt.QProcess.NotRunning == 0
    policy = qt.QSizePolicy(qt.QSizePolicy.Expanding, qt.QSizePolicy.Fixed)
    assert policy.horizontalPolicy() == qt.QSizePolicy.Expanding


def test_values(host: Host, tmp_path: Path, qt: Any) -> None:
    data = qt.QByteArray(b"ab\xff")
    assert data.data() == b"ab\xff"
    assert str(data) == str(b"ab\xff")
    with pytest.raises(TypeError):
        bytes(data)
    assert qt.QSize(3, 4).width() == 3
    assert qt.QDir(str(tmp_path)).exists()
    qt.QApplication.clipboard().setText("copied")
    assert qt.QApplication.clipboard().text() == "copied"
    settings = qt.QSettings()
    settings.setValue("Probe/key", "value")
    assert qt.QSettings().value("Probe/key") == "value"
    assert Path(settings.fileName()).is_relative_to(host.settings_dir)


def test_dialogs_take_answers(host: Host, qt: Any) -> None:
    host.answers += ["/a/b.nrrd", True, False]
    assert qt.QFileDialog.getOpenFileName(None, "Open") == "/a/b.nrrd"
    assert slicer.util.confirmOkCancelDisplay("Sure?", detailedText="list") is True
    assert slicer.util.confirmYesNoDisplay("Sure?") is False
    slicer.util.errorDisplay("bad", detailedText="trace")
    with pytest.raises(RuntimeError, match="wanted"), slicer.util.tryWithErrorDisplay("Failed"):
        raise RuntimeError("wanted")
    kinds = [message.kind for message in host.messages]
    assert kinds == ["dialog", "question", "question", "critical", "critical"]
    assert host.messages[-2][1:] == ("bad", "trace")
    assert host.errors == []
    slicer.util.confirmOkCancelDisplay("Nobody answers")
    assert "no answer" in host.errors.pop()
    for wait in (qt.QDialog().exec_, qt.QFileDialog().exec_, qt.QFileDialog.getSaveFileName, qt.QMenu().popup):
        with pytest.raises(NotImplementedError):
            wait()


def test_timers_and_stalls(host: Host, qt: Any) -> None:
    seen = []
    qt.QTimer.singleShot(0, lambda: seen.append(1))
    qt.QTimer.singleShot(120, lambda: time.sleep(0.15))
    begin = time.perf_counter()
    with host.stall_meter() as meter:
        host.process_events(0.3)
    assert seen == [1]
    # the sleep, without what went before it
    assert 120 < meter.worst_ms < 1000 * (time.perf_counter() - begin) - 50
    with pytest.raises(TypeError):
        qt.QTimer().start("soon")


# processes


def test_process_signals(host: Host, qt: Any) -> None:
    process, seen = qt.QProcess(), []
    process.finished.connect(lambda code: seen.append(("attribute", code)))
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: seen.append((code, status)))
    process.start(sys.executable, ["-c", "print('hello'); raise SystemExit(3)"])
    host.process_events(until=lambda: len(seen) == 2)
    assert sorted(seen, key=str) == [("attribute", 3), (3, qt.QProcess.NormalExit)]
    assert process.readAllStandardOutput().data() == b"hello\n"
    process.finished.connect(lambda code, status: None)
    process.start(sys.executable, ["-c", ""])
    host.process_events(until=lambda: host.errors)
    assert "TypeError" in host.errors.pop()


def test_missing_program_and_lost_reference(host: Host, tmp_path: Path, qt: Any) -> None:
    process, seen = qt.QProcess(), []
    process.connect("errorOccurred(QProcess::ProcessError)", lambda error: seen.append(error))
    process.connect("finished(int,QProcess::ExitStatus)", lambda *args: seen.append(args))
    process.start("/no/such/program", [])
    host.process_events(0.2)
    assert seen == [qt.QProcess.FailedToStart] == [0]
    lost = qt.QProcess()
    lost.start("sleep", ["60"])
    lost.waitForStarted()
    pid = int(lost.processId())
    del lost
    host.process_events(until=lambda: not Path(f"/proc/{pid}").exists(), timeout=5)


def test_python_slicer_is_a_launcher(host: Host, tmp_path: Path) -> None:
    import shutil

    launcher = host.install_python_slicer(tmp_path)
    assert shutil.which("PythonSlicer") == str(launcher)
    child = subprocess.Popen([launcher, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"],
                             stdout=subprocess.PIPE)  # fmt: skip
    worker = int(child.stdout.readline())
    assert worker != child.pid
    child.kill()
    child.wait()
    assert Path(f"/proc/{worker}").exists()
    os.kill(worker, 9)
