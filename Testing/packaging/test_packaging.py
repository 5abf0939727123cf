"""What an installed wheel holds, and that every module can be imported by itself."""

import ast
import importlib
import importlib.metadata
import re
import shutil
import sys
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from cli_factory import REPOSITORY, run_python

import MAESILLib
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.resources import resource_path

PACKAGE = REPOSITORY / "MAESILLib"
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if "__pycache__" not in path.parts
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    if name != "MAESILLib.__main__":
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            optional = {"monai", "tensorboard", "blosc2", "einops"}
            if error.name is None or error.name.split(".")[0] not in optional:
                raise
            pytest.skip(f"{error.name} is optional and not installed")


def test_version_and_script() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", MAESILLib.__version__)
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "MAESILLib.__version__"}
    assert PYPROJECT["project"]["scripts"] == {"maesil": "MAESILLib.cli:main"}
    assert callable(importlib.import_module("MAESILLib.cli").main)
    with suppress(importlib.metadata.PackageNotFoundError):
        assert importlib.metadata.version("maesil") == MAESILLib.__version__


def test_what_is_imported_is_declared() -> None:
    """At module level; what is imported in functions is optional."""
    declared = {re.split(r"[<>=\[]", text)[0].lower() for text in PYPROJECT["project"]["dependencies"]}
    imported = {name for path in PACKAGE.rglob("*.py") for name in imports_of(path)}
    outside = {name.lower() for name in imported - set(sys.stdlib_module_names) - {"MAESILLib"}}
    assert outside <= declared


def imports_of(path: Path) -> set[str]:
    """The packages a module imports at module level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


class TestLayers:
    """The library imports nothing of Slicer, and what the panel imports no torch."""

    def test_no_slicer_or_qt(self) -> None:
        for path in PACKAGE.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found = re.search(r"^\s*(?:import|from) (slicer|qt|ctk|vtk|PythonQt)\b", text, re.MULTILINE)
            assert not found, f"{path.name}: {found[0] if found else ''}"

    def test_light_modules_stay_light(self) -> None:
        light = ("config", "metrics.catalogue", "data.index", "training.log", "cli", "commands.common")
        runtime = [path.stem for path in (PACKAGE / "runtime").glob("*.py") if path.stem not in ("__init__", "device")]
        names = (*light, *(f"runtime.{name}" for name in runtime))
        code = (
            f"import importlib, sys\nfor name in {names!r}: importlib.import_module('MAESILLib.' + name)\n"
            "assert not {'torch', 'SimpleITK'} & set(sys.modules)"
        )
        done = run_python(code)
        assert done.returncode == 0, done.stderr

    def test_training_nodes_need_torch_numpy_and_safetensors_only(self, tmp_path: Path, checkpoint: Path) -> None:
        """Where nothing else is installed, a training gets as far as looking for its cache.

        And a checkpoint is loaded without torch's compiler, whose import takes as long as that of all else.
        """
        code = (
            "import sys\n"
            "class Bare:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('SimpleITK', 'scipy', 'matplotlib', 'sklearn', 'tensorboard'):\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Bare())\n"
            "import MAESILLib.training.trainer\n"
            "from MAESILLib.cli import main\n"
            "from MAESILLib.mae.checkpoint import load_checkpoint\n"
            f"load_checkpoint({str(checkpoint)!r})\n"
            "assert 'torch._dynamo' not in sys.modules\n"
            f"sys.exit(main(['pretrain', '--data', {str(tmp_path)!r}, '--output', {str(tmp_path / 'run')!r}]))"
        )
        done = run_python(code)
        assert done.returncode == 2, done.stderr
        assert "is not a cache" in done.stderr


class TestResources:
    def test_a_missing_one_is_named(self) -> None:
        with pytest.raises(InputError, match=r"Resources/none/such\.file is missing"):
            resource_path("none/such.file")

    def test_found_beside_the_package(self) -> None:
        folder = REPOSITORY / "Resources"
        for path in folder.rglob("*"):
            assert not path.is_file() or resource_path(str(path.relative_to(folder))) == path

    def test_found_inside_an_installed_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inside = tmp_path / "site-packages" / "MAESILLib" / "Resources" / "a.txt"
        inside.parent.mkdir(parents=True)
        inside.touch()
        monkeypatch.setattr("MAESILLib.runtime.resources.__file__", str(inside.parents[1] / "runtime" / "resources.py"))
        assert resource_path("a.txt") == inside


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, with empty files in place of the resources."""
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("sources")
    shutil.copytree(PACKAGE, copy / "MAESILLib", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (REPOSITORY / "Resources").rglob("*"):
        if path.is_file():
            stub = copy / path.relative_to(REPOSITORY)
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.touch()
    (copy / "Resources" / "Test").mkdir(parents=True)
    (copy / "Resources" / "Test" / "resource.txt").write_text("here")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, copy)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = run_python(code, cwd=copy)
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


class TestWheel:
    def test_holds_modules_and_resources_and_nothing_else(self, wheel: Path) -> None:
        names = set(zipfile.ZipFile(wheel).namelist())
        expected = {str(path.relative_to(REPOSITORY)) for path in (*PACKAGE.rglob("*.py"), PACKAGE / "py.typed")}
        assert expected - names == set()
        assert "MAESILLib/Resources/Test/resource.txt" in names
        for name in names:
            assert name.startswith(("MAESILLib/", "maesil-")), name
            assert not name.endswith((".pyc", ".nii.gz", ".dcm")), name

    def test_runs_from_elsewhere(self, wheel: Path, tmp_path: Path) -> None:
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
        code = (
            "import sys; sys.path.insert(0, 'site')\nimport MAESILLib\n"
            "assert MAESILLib.__file__.startswith(sys.argv[1])\n"
            "from MAESILLib.runtime.resources import resource_path\n"
            "assert resource_path('Test/resource.txt').read_text() == 'here'\n"
            "from MAESILLib.cli import main\nsys.exit(main(['info', 'nowhere', '--progress', 'off']))"
        )
        done = run_python(code, tmp_path / "site", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
