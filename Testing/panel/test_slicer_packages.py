"""What Slicer's own process imports, and installing on a click."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from gui_factory import REPOSITORY, ct_node

IMPORT_SCRIPT = """
import sys, time
sys.path[:0] = [{testing!r}, {testing!r} + "/support"]
from pathlib import Path
from slicer_host import boot
host = boot(settings_dir=Path({folder!r}))
host.add_module_path({module!r})
before = set(sys.modules)
host.load_module("MAESIL")
after_import = set(sys.modules) - before
panel = host.open_module("MAESIL").panel
import numpy as np, slicer
rng = np.random.default_rng(0)
node = slicer.util.addVolumeFromArray((rng.random((40, 40, 40)) * 1200 - 1000).astype(np.int16))
panel.parameters.inputVolume = node
host.process_events(0.5)
heavy = {{"torch", "safetensors", "matplotlib", "skimage", "monai"}}
print("imported", sorted(heavy & set(sys.modules)))
print("at import", sorted(name for name in after_import if name.startswith("MAESILLib.")))
print("errors", host.errors)
panel.stop_jobs()
"""


def test_torch_is_never_imported_in_slicer(tmp_path: Path) -> None:
    """Neither by the module file, nor by the panel, nor by describing a volume and a checkpoint."""
    code = IMPORT_SCRIPT.format(
        testing=str(REPOSITORY / "Testing"), folder=str(tmp_path), module=str(REPOSITORY / "MAESIL")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "imported []" in done.stdout
    assert "errors []" in done.stdout


@pytest.mark.parametrize("path", sorted((REPOSITORY / "MAESIL").rglob("*.py")), ids=lambda p: p.name)
def test_files_import_nothing_heavy_at_their_top(path: Path) -> None:
    import ast

    allowed = {"slicer", "qt", "ctk", "vtk", "numpy", "SimpleITK", "MAESILWidgets", *sys.stdlib_module_names}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_an_old_python_is_told_which_slicer_it_needs(host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module file itself must parse and run on Python 3.9, which Slicer 5.8 has."""
    import ast

    import qt

    ast.parse((REPOSITORY / "MAESIL" / "MAESIL.py").read_text(encoding="utf-8"), feature_version=(3, 9))
    import MAESIL

    monkeypatch.setattr(MAESIL, "IS_SUPPORTED", False)
    import slicer

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
    """Stands for pip and PyTorchUtils: what they were asked for, and whether they fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: str = "") -> None:
        import slicer

        self.asked: list[str] = []
        self.installed: set[str] = set()
        from MAESILWidgets.jobs import packages

        known = packages._version
        monkeypatch.setattr(packages, "_version", lambda name: "99" if name in self.installed else known(name))

        def pip_install(requirement: str) -> None:
            self.asked.append(requirement)
            if fail and fail in requirement:
                raise RuntimeError("Could not find a version that satisfies the requirement")
            self.installed.add(requirement.split(">")[0])

        class Logic:
            @staticmethod
            def installTorch(askConfirmation: bool, torchVersionRequirement: str) -> Any:  # noqa: N802
                self.asked.append(f"torch{torchVersionRequirement}")
                if fail == "torch":
                    return None
                self.installed.add("torch")
                return object()

        monkeypatch.setattr(slicer.util, "pip_install", pip_install)
        module = types.ModuleType("PyTorchUtils")
        module.PyTorchUtilsLogic = Logic  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "PyTorchUtils", module)


@pytest.fixture
def without(panel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let packages seem to be missing."""
    from MAESILWidgets.jobs import packages

    real = packages._version

    def hide(*names: str) -> None:
        known = packages._version
        monkeypatch.setattr(
            packages, "_version", lambda name: "" if name in names and known(name) == real(name) else known(name)
        )
        panel.system.refresh()

    return hide


class TestInstall:
    def test_nothing_is_missing_here(self, panel: Any) -> None:
        assert not panel.ui.installButton.enabled
        assert "torch 2." in panel.ui.packagesLabel.text

    def test_what_is_missing_is_told_and_nothing_is_installed(
        self, host: Any, panel: Any, without: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installer = FakeInstaller(monkeypatch)
        panel.parameters.inputVolume = ct_node()
        without("torch", "safetensors")
        assert "torch missing" in panel.ui.packagesLabel.text
        assert not panel.ui.applyButton.enabled
        assert "Python packages" in panel.ui.applyButton.toolTip
        assert installer.asked == []
        host.answers.append(False)
        panel.ui.installButton.click()
        assert installer.asked == []
        shown = host.messages[-1]
        assert "torch >= 2.7" in str(shown)
        assert "safetensors >= 0.4" in str(shown)
        assert "does not respond" in str(shown)

    def test_agreed(self, host: Any, panel: Any, without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        installer = FakeInstaller(monkeypatch)
        without("torch", "safetensors")
        host.answers.append(True)
        panel.ui.installButton.click()
        assert installer.asked == ["torch>=2.7", "safetensors>=0.4"]
        assert [message.kind for message in host.messages] == ["question"], host.messages
        assert not panel.ui.installButton.enabled

    def test_an_installer_that_did_nothing(
        self, host: Any, panel: Any, without: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Slicer's own installer passes over everything under test: that must not count as done."""
        import slicer

        without("safetensors")
        monkeypatch.setattr(slicer.util, "pip_install", lambda requirement: None)
        host.answers += [True, True]
        panel.ui.installButton.click()
        assert "did not provide it" in str(host.messages[-1])

    @pytest.mark.parametrize("fail", ["torch", "safetensors"])
    def test_half_failed(self, host: Any, panel: Any, without: Any, monkeypatch: pytest.MonkeyPatch, fail: str) -> None:
        """The rest is installed; what failed is told with the command to repeat it."""
        installer = FakeInstaller(monkeypatch, fail)
        without("torch", "safetensors")
        host.answers += [True, True]
        panel.ui.installButton.click()
        assert len(installer.asked) == 2
        text = str(host.messages[-1])
        assert f"{fail}:" in text
        repeat = {"torch": "PyTorch Utils module", "safetensors": 'pip install "safetensors>=0.4"'}
        assert repeat[fail] in text

    def test_the_pytorch_extension_is_missing(
        self, host: Any, panel: Any, without: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        FakeInstaller(monkeypatch)
        monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
        without("torch")
        host.answers += [True, True]
        panel.ui.installButton.click()
        assert "Extensions Manager" in str(host.messages[-1])

    def test_slicer_s_own_packages_are_never_touched(
        self, host: Any, panel: Any, without: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installer = FakeInstaller(monkeypatch)
        without("numpy", "SimpleITK", "scipy")
        host.answers += [True, True]
        panel.ui.installButton.click()
        assert installer.asked == []
        assert "belongs to Slicer" in str(host.messages[-1])

    def test_a_package_of_slicer_without_a_version_is_there(
        self, host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is built with Slicer may have no description: it must not count as missing, nor be imported for it."""
        from importlib import metadata

        from MAESILWidgets.jobs import packages

        real = metadata.version

        def version(name: str) -> str:
            if name in ("SimpleITK", "safetensors"):
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(packages.metadata, "version", version)
        found = {package.name: package for package in packages.packages()}
        assert found["SimpleITK"].is_fine
        assert not found["safetensors"].is_fine

    def test_what_is_installed_half_way_is_told(self, host: Any, panel: Any, tmp_path: Path) -> None:
        """torch has its description but does not import."""
        broken = tmp_path / "broken" / "torch"
        broken.mkdir(parents=True)
        (broken / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: file too short')\n")
        launcher = tmp_path / "launchers" / "PythonSlicer"
        launcher.write_text(f'#!/bin/sh\nexport PYTHONPATH="{broken.parent}:$PYTHONPATH"\n"{sys.executable}" "$@"\n')
        panel.system.refresh()
        host.process_events(until=lambda: panel.system.job is None, timeout=60)
        assert "torch: ImportError: libtorch_cpu.so: file too short" in panel.ui.packagesLabel.text

    def test_slicer_5_12_installs_by_its_own_installer(
        self, host: Any, panel: Any, without: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []
        module = types.ModuleType("slicer.packaging")

        def pip_ensure(requirements: list[Any], prompt_install: bool = True, requester: str | None = None) -> None:
            from MAESILWidgets.jobs import packages

            monkeypatch.setattr(packages, "_version", lambda name: "99")
            asked.append(([str(r) for r in requirements], prompt_install, requester))

        module.pip_ensure = pip_ensure  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "slicer.packaging", module)
        without("safetensors")
        host.answers.append(True)
        panel.ui.installButton.click()
        assert asked == [(["safetensors>=0.4"], False, "MAESIL")]
