"""What Slicer's own process imports, and installing on a click."""

import ast
import re
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import slicer
from gui_factory import REPOSITORY, ct_node, slicer_process


def test_torch_is_never_imported_in_slicer(tmp_path: Path) -> None:
    """Neither by the module file, nor by the panel, nor by describing a volume and a checkpoint."""
    script = """
import numpy as np, slicer
array = np.random.default_rng(0).random((40, 40, 40)) * 1200 - 1000
panel.parameters.inputVolume = slicer.util.addVolumeFromArray(array.astype(np.int16))
host.process_events(0.5)
print("imported", sorted({"torch", "safetensors", "matplotlib", "skimage", "monai"} & set(sys.modules)))
print("errors", host.errors)
panel.stop_jobs()
"""
    output, _ = slicer_process(tmp_path, script).communicate(timeout=120)
    assert "imported []" in output
    assert "errors []" in output


def test_files_import_nothing_heavy_at_their_top() -> None:
    allowed = {"slicer", "qt", "ctk", "vtk", "numpy", "SimpleITK", "MAESILWidgets", *sys.stdlib_module_names}
    for path in (REPOSITORY / "MAESIL").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_an_old_python_is_told_which_slicer_it_needs(
    host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch, qt: Any
) -> None:
    """The module file itself must parse and run on Python 3.9, which Slicer 5.8 has."""
    ast.parse((REPOSITORY / "MAESIL" / "MAESIL.py").read_text(encoding="utf-8"), feature_version=(3, 9))
    import MAESIL

    monkeypatch.setattr(MAESIL, "IS_SUPPORTED", False)
    parent = slicer.qMRMLWidget()
    parent.setLayout(qt.QVBoxLayout())
    parent.setMRMLScene(slicer.mrmlScene)
    widget = MAESIL.MAESILWidget(parent)
    widget.setup()
    text = parent.layout().itemAt(0).widget().text
    assert "Slicer 5.10" in text
    widget.enter()
    widget.exit()
    widget.cleanup()


class FakeInstaller:
    """Packages that seem to be missing, and what stands for pip and PyTorchUtils: what they were asked for.

    Args:
        hidden: packages that seem to be missing until they are installed.
        fail: a package whose installation fails.
    """

    def __init__(self, panel: Any, monkeypatch: pytest.MonkeyPatch, *hidden: str, fail: str = "") -> None:
        from MAESILWidgets.jobs import packages

        self.asked: list[str] = []
        self.missing = set(hidden)
        known = packages._version
        monkeypatch.setattr(packages, "_version", lambda name: "" if name in self.missing else known(name))

        def pip_install(requirement: str) -> None:
            self.asked.append(requirement)
            if fail and fail in requirement:
                # as in Slicer, what pip says is printed, and is not in the error
                print("ERROR: Could not find a version that satisfies the requirement")
                raise RuntimeError("Command '[...]' returned non-zero exit status 1.")
            self.missing -= {requirement.split(">")[0]}

        class Logic:
            @staticmethod
            def installTorch(askConfirmation: bool, torchVersionRequirement: str) -> Any:  # noqa: N802
                self.asked.append(f"torch{torchVersionRequirement}")
                if fail == "torch":
                    return None
                self.missing -= {"torch"}
                return object()

        monkeypatch.setattr(slicer.util, "pip_install", pip_install)
        module = types.ModuleType("PyTorchUtils")
        module.PyTorchUtilsLogic = Logic
        monkeypatch.setitem(sys.modules, "PyTorchUtils", module)
        panel.system.refresh()


def test_what_pip_installs_is_declared(host: Any, panel: Any) -> None:
    from MAESILWidgets.jobs.packages import REQUIRED, SLICERS_OWN

    lines = (REPOSITORY / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    declared = {line for line in lines if not line.startswith("#")}
    assert declared == {f"{n}>={v}" for n, v in REQUIRED.items() if n not in ("torch", *SLICERS_OWN)}


def test_help_leads_to_pages_of_this_repository(host: Any, panel: Any) -> None:
    module = slicer.modules.maesil
    pages = re.findall(r'href="https://github.com/MAESIL/SlicerMAESIL/blob/main/([^"]+)"', module.helpText)
    assert len(pages) == 2
    assert all((REPOSITORY / page).is_file() for page in pages)
    paper = re.findall(r'href="([^"]+)"', module.acknowledgementText)
    assert paper == ["https://arxiv.org/abs/2604.00514"]
    # the publication is in the README's first screen
    assert paper[0] in "".join((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()[:12])


class TestInstall:
    def test_told_refused_and_agreed(self, host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not panel.ui.installButton.enabled
        assert "torch 2." in panel.ui.packagesLabel.text
        panel.parameters.inputVolume = ct_node()
        installer = FakeInstaller(panel, monkeypatch, "torch", "safetensors")
        assert "torch missing" in panel.ui.packagesLabel.text
        assert not panel.ui.applyButton.enabled
        assert "Python packages" in panel.ui.applyButton.toolTip
        # where a user looks for Apply is what has to be done first
        assert (panel.ui.applyButton.isVisible(), panel.ui.installHereButton.isVisible()) == (False, True)
        host.answers.append(False)
        panel.ui.installButton.click()
        assert installer.asked == []
        for part in ("torch >= 2.7", "safetensors >= 0.4", "does not respond"):
            assert part in str(host.messages[-1])
        host.answers.append(True)
        panel.ui.installHereButton.click()
        assert installer.asked == ["torch>=2.7", "safetensors>=0.4"]
        assert (panel.ui.applyButton.isVisible(), panel.ui.installHereButton.isVisible()) == (True, False)
        assert [message.kind for message in host.messages] == ["question"] * 2, host.messages
        assert not panel.ui.installButton.enabled

    @pytest.mark.parametrize(
        ("fail", "repeat"),
        [("torch", "PyTorch Utils module"), ("safetensors", 'pip install "safetensors>=0.4"')],
    )
    def test_half_failed(self, host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch, fail: str, repeat: str) -> None:
        """The rest is installed; what failed is told with the command to repeat it."""
        installer = FakeInstaller(panel, monkeypatch, "torch", "safetensors", fail=fail)
        host.answers += [True, True]
        panel.ui.installButton.click()
        assert len(installer.asked) == 2
        assert f"{fail}:" in str(host.messages[-1])
        assert repeat in str(host.messages[-1])
        if fail != "torch":
            assert "Could not find a version" in str(host.messages[-1])
            assert "Could not find a version" in panel.ui.logView.toPlainText()

    def test_what_cannot_be_installed(self, host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """By an installer that does nothing, as Slicer's own under test; without its extension; what is Slicer's."""
        for hidden, asked, word in (
            (("safetensors",), ["safetensors>=0.4"], "did not provide it"),
            (("torch",), [], "Extensions Manager"),
            (("numpy", "SimpleITK", "scipy"), [], "belongs to Slicer"),
        ):
            with monkeypatch.context() as patch:
                installer = FakeInstaller(panel, patch, *hidden)
                patch.setattr(slicer.util, "pip_install", installer.asked.append)
                patch.setitem(sys.modules, "PyTorchUtils", None)
                host.answers.extend([True] * len(asked))
                panel.ui.installButton.click()
                assert installer.asked == asked
                assert word in str(host.messages[-1])
                # nothing is promised that cannot be done
                assert asked or (host.messages[-1].kind, "now?" in host.messages[-1].text) == ("information", False)

    def test_a_package_of_slicer_without_a_version_is_there(
        self, host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is built with Slicer may have no description: it must not count as missing, nor be imported for it."""
        from MAESILWidgets.jobs import packages

        real = metadata.version

        def version(name: str) -> str:
            if name in ("SimpleITK", "safetensors"):
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(packages.metadata, "version", version)
        found = {package.name: package for package in packages.packages(packages.REQUIRED)}
        assert found["SimpleITK"].is_fine
        assert not found["safetensors"].is_fine

    def test_what_is_installed_half_way_is_told(self, host: Any, panel: Any, tmp_path: Path) -> None:
        """torch has its description but does not import."""
        broken = tmp_path / "broken" / "torch"
        broken.mkdir(parents=True)
        (broken / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: file too short')\n")
        host.install_python_slicer(tmp_path, f'export PYTHONPATH="{broken.parent}:$PYTHONPATH"')
        panel.system.refresh()
        host.process_events(until=lambda: panel.system.job is None, timeout=60)
        assert "torch: ImportError: libtorch_cpu.so: file too short" in panel.ui.packagesLabel.text

    def test_slicer_5_12_installs_in_the_background(
        self, host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qt: Any
    ) -> None:
        """Also what reads NIfTI, where a training folder holds such files; reconstructing does without."""
        (tmp_path / "CTs").mkdir()
        (tmp_path / "CTs" / "one.nii.gz").touch()
        installer = FakeInstaller(panel, monkeypatch, "nibabel")
        panel.parameters.inputVolume = ct_node()
        assert not panel.ui.installButton.enabled
        panel.ui.dataFolderSelector.currentPath = str(tmp_path / "CTs")
        panel.ui.runFolderSelector.currentPath = str(tmp_path / "run")
        assert panel.ui.applyButton.enabled
        assert "nibabel" in panel.ui.trainButton.toolTip
        module = types.ModuleType("slicer.packaging")

        def pip_install(requirements: str, blocking: bool, logCallback: Any, completedCallback: Any) -> None:
            def end() -> None:
                logCallback(f"Collecting {requirements}")
                installer.missing.clear()
                completedCallback(0)

            qt.QTimer.singleShot(1, end)

        module.pip_install = pip_install
        monkeypatch.setitem(sys.modules, "slicer.packaging", module)
        host.answers.append(True)
        panel.ui.installButton.click()
        assert not panel.ui.installButton.enabled
        assert not panel.ui.trainButton.enabled
        host.process_events(until=lambda: panel.ui.trainButton.enabled, timeout=5)
        assert "Collecting nibabel>=5.0" in panel.ui.logView.toPlainText()
