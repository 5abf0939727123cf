"""What the packaged Slicer extension holds: CMakeLists.txt configured, built and installed with a stand-in for Slicer.

The stand-in, Testing/packaging/cmake_stub, copies and installs what Slicer's own macro would.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cli_factory import REPOSITORY
from matplotlib.image import imread

STUB = REPOSITORY / "Testing" / "packaging" / "cmake_stub"
ICONS = REPOSITORY / "Resources" / "Icons"
MODULES = Path("lib", "Slicer-5.12", "qt-scripted-modules")


def cmake(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run cmake, of this Python's environment or of the machine."""
    beside = Path(sys.executable).parent
    program = shutil.which("cmake", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    if program is None:
        pytest.fail(f"cmake is needed: {sys.executable} -m pip install cmake")
    return subprocess.run([program, *map(str, args)], capture_output=True, text=True)


@dataclass(frozen=True)
class Build:
    """The configured extension."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    def metadata(self) -> dict[str, str]:
        """The extension's description."""
        lines = (self.folder / "metadata.txt").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """CMakeLists.txt, configured; it may have failed."""
    folder = tmp_path_factory.mktemp("extension") / "build"
    options = [f"-DSlicer_DIR={STUB}", f"-DCMAKE_TOOLCHAIN_FILE={STUB / 'no_compiler.cmake'}"]
    yield Build(folder, cmake("-S", REPOSITORY, "-B", folder, *options))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def package(build: Build) -> Iterator[Path]:
    """The folder that the package unpacks to."""
    folder = build.folder.parent / "package"
    steps = [build.done]
    if steps[-1].returncode == 0:
        steps.append(cmake("--build", build.folder))
    if steps[-1].returncode == 0:
        steps.append(cmake("--install", build.folder, "--prefix", folder))
    assert steps[-1].returncode == 0, steps[-1].stdout + steps[-1].stderr
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def files_of(folder: Path, pattern: str = "*") -> list[Path]:
    """Every file below a folder, byte code and hidden files aside."""
    return [
        path
        for path in folder.rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    ]


def needed() -> dict[str, Path]:
    """What the package has to hold, and where it lies here; pictures of documents are not packaged."""
    files = [*files_of(REPOSITORY / "MAESILLib", "*.py"), *files_of(REPOSITORY / "Resources")]
    found = {path.relative_to(REPOSITORY).as_posix(): path for path in files if "Screenshots" not in path.parts}
    module = REPOSITORY / "MAESIL"
    return found | {path.relative_to(module).as_posix(): path for path in files_of(module, "*.py")}


class TestConfiguration:
    def test_can_be_configured(self, build: Build) -> None:
        assert build.done.returncode == 0, build.done.stderr
        assert "Warning" not in build.done.stderr, build.done.stderr

    def test_the_unit_test_is_registered(self, build: Build) -> None:
        tests = (build.folder / "MAESIL" / "CTestTestfile.cmake").read_text(encoding="utf-8")
        assert set(re.findall(r"py_\w+", tests)) == {"py_MAESIL", "py_nomainwindow_MAESIL"}


class TestPackage:
    def test_holds_every_file_and_nothing_else(self, package: Path) -> None:
        found = {path.relative_to(package / MODULES).as_posix(): path for path in files_of(package / MODULES)}
        wanted = needed()
        assert found.keys() == wanted.keys()
        assert set(files_of(package)) == set(files_of(package / MODULES))
        # ScriptedLoadableModule looks for the icon in Resources/Icons beside the module
        assert {"MAESIL.py", "Resources/Icons/MAESIL.png"} <= found.keys()
        for name, path in found.items():
            assert path.read_bytes() == wanted[name].read_bytes(), name

    def test_modules_can_be_imported_and_resources_are_found(self, package: Path, tmp_path: Path) -> None:
        names = [name.removeprefix("Resources/") for name in needed() if name.startswith("Resources/")]
        code = (
            "import importlib, pkgutil, sys, MAESILLib\n"
            "for module in pkgutil.walk_packages(MAESILLib.__path__, 'MAESILLib.'):\n"
            "    if module.name == 'MAESILLib.__main__':\n"
            "        continue\n"
            "    try:\n"
            "        importlib.import_module(module.name)\n"
            "    except ModuleNotFoundError as error:\n"
            "        if (error.name or '').split('.')[0] not in {'monai', 'tensorboard', 'blosc2', 'einops'}:\n"
            "            raise\n"
            "from MAESILLib.runtime.resources import embedded_checkpoint, resource_path\n"
            "print(MAESILLib.__file__, embedded_checkpoint(), *map(resource_path, sys.argv[1:]), sep='\\n')"
        )
        done = run_packaged(package, tmp_path, "-c", code, *names)
        assert done.returncode == 0, done.stderr
        library, checkpoint, *paths = map(Path, done.stdout.splitlines())
        assert library == package / MODULES / "MAESILLib" / "__init__.py"
        assert paths == [package / MODULES / "Resources" / name for name in names]
        assert checkpoint in paths

    def test_the_command_line_runs(self, package: Path, tmp_path: Path) -> None:
        checkpoint = package / MODULES / "Resources" / "Checkpoints" / "maesil-small.safetensors"
        done = run_packaged(package, tmp_path, "-m", "MAESILLib", "info", str(checkpoint), "--progress", "json")
        assert done.returncode == 0, done.stderr
        (described,) = (e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "info")
        assert described["name"] == checkpoint.name


def run_packaged(package: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a Python that knows the package and what is installed, but not this checkout.

    Without the site module, the links that editable installations leave in site-packages are not followed.
    """
    installed = [folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join([str(package / MODULES), *installed])
    return subprocess.run([sys.executable, "-S", "-B", *args], cwd=cwd, env=environment, capture_output=True, text=True)


class TestDescription:
    """What the Extensions Index and the extensions manager read."""

    def test_every_variable_is_set(self, build: Build) -> None:
        metadata = build.metadata()
        assert metadata["NAME"] == "MAESIL"
        assert metadata["DEPENDS"] == "PyTorch"
        for name, value in metadata.items():
            assert value.strip(), name
            assert ";" not in value, f"{name}: Slicer passes it unquoted, and cuts it at ;"
        assert Path(metadata["README_FILE"]).is_file()
        assert Path(metadata["LICENSE_FILE"]) == REPOSITORY / "LICENSE"
        assert (REPOSITORY / "LICENSE").is_file()

    @pytest.mark.parametrize("name", ["ICONURL", "SCREENSHOTURLS"])
    def test_pictures_are_of_this_repository(self, build: Build, name: str) -> None:
        repository = build.metadata()["HOMEPAGE"].removeprefix("https://github.com/")
        text = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
        # the Extensions Index finds the addresses in the text, by such an expression
        (urls,) = re.findall(rf'set\s*\(EXTENSION_{name}\s*"([^"]+)"\)', text)
        for url in urls.split():
            head = f"https://raw.githubusercontent.com/{repository}/main/"
            assert url.startswith(head)
            assert (REPOSITORY / url.removeprefix(head)).is_file(), url

    def test_index_entry(self, build: Build) -> None:
        """Schema 1.0.1 of the Extensions Index; it allows no other keys."""
        metadata = build.metadata()
        assert json.loads((REPOSITORY / "MAESIL.json").read_text(encoding="utf-8")) == {
            "$schema": "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/"
            "slicer-extension-catalog-entry-schema-v1.0.1.json#",
            "build_dependencies": metadata["DEPENDS"].split(),
            "build_subdirectory": ".",
            "category": metadata["CATEGORY"],
            "scm_revision": "main",
            "scm_url": metadata["HOMEPAGE"],
            "tier": 1,
        }
        assert "slicer" in metadata["HOMEPAGE"].rsplit("/", 1)[1].lower()


class TestIcons:
    def test_all_are_as_drawn(self) -> None:
        assert imread(ICONS / "MAESIL.png").shape == (128, 128, 4)
        drawings = runpy.run_path(str(REPOSITORY / "tools" / "draw_icons.py"))["DRAWINGS"]
        assert {path.name for path in ICONS.iterdir()} == {f"{name}.png" for name in drawings}
        for name, draw in drawings.items():
            stored = np.rint(imread(ICONS / f"{name}.png") * 255).astype(int)
            drawn = draw().pixels().astype(int)
            assert stored.shape == drawn.shape, name
            assert np.abs(stored - drawn).max() <= 1, f"{name}: run tools/draw_icons.py"

    @pytest.mark.parametrize("ground", [255, 43], ids=["light", "dark"])
    def test_all_show_on_either_theme(self, ground: int) -> None:
        """Most of what is drawn differs from the ground by a fifth of the range or more."""
        for path in ICONS.glob("*.png"):
            colour, alpha = np.split(np.asarray(imread(path), float), [3], axis=2)
            shown = (alpha * np.abs(colour - ground / 255)).max(axis=2)
            drawn = alpha[..., 0] > 0.5
            assert drawn.mean() > 0.3, path.name
            assert (shown[drawn] > 0.2).mean() > 0.95, path.name


def test_the_repository_s_folders_are_no_packages() -> None:
    """Slicer's developer mode has only the module's folder on its path."""
    assert not (REPOSITORY / "__init__.py").exists()
    assert not (REPOSITORY / "MAESIL" / "__init__.py").exists()
