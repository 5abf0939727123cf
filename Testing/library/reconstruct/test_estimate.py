"""The memory that the panel warns of before a reconstruction: plausible, and without torch."""

from pathlib import Path

import pytest
from cli_factory import maesil, run_python, write_ct

from MAESILLib.ct.reading import read_geometry
from MAESILLib.ct.volume import model_grid
from MAESILLib.reconstruct.estimate import reconstruction_memory_mib

CHEST = (512 * 512 * 150, (200, 230, 230))


def test_memory_grows_with_both_grids_and_with_complete_coverage() -> None:
    plain = reconstruction_memory_mib(*CHEST)
    assert 500 < plain < 4000
    assert reconstruction_memory_mib(10**9, (400, 460, 460)) > 2 * plain
    cover = reconstruction_memory_mib(*CHEST, is_complete=True) - plain
    assert cover == pytest.approx(10 * 200 * 230 * 230 / 1e6)


def test_a_volume_that_never_fits_is_refused_before_its_voxels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_ct(tmp_path / "scan.nii", (40, 40, 40))
    arguments = ("reconstruct", path, "--output", tmp_path / "out", "--no-figure")
    need = round(reconstruction_memory_mib(40**3, model_grid(read_geometry(path)).geometry.size_dhw) * 2**20)
    memory = "MAESILLib.reconstruct.estimate.machine_memory"
    monkeypatch.setattr(memory, lambda: (need + 2**20, need // 2))
    result = maesil(*arguments).checked()
    assert "needs about 0.6 GiB of memory, and 0.3 GiB are free" in result.err
    monkeypatch.setattr(memory, lambda: (need // 2, need // 2))
    monkeypatch.setattr("MAESILLib.ct.reading.read_volume", lambda *_, **__: pytest.fail("read in vain"))
    result = maesil(*arguments, "--progress", "off")
    assert result.status == 4
    assert "scan.nii, 40 x 40 x 40 voxels, needs about 0.6 GiB of memory, and this machine" in result.err
    assert "has 0.3 GiB. crop it" in result.err


def test_it_needs_no_torch() -> None:
    code = "import sys, MAESILLib.reconstruct.estimate; assert not {'torch', 'safetensors'} & set(sys.modules)"
    assert run_python(code).returncode == 0
