"""A reader that crashes is one line; what it read in a process of its own is the same."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from cli_factory import maesil, write_ct
from volume_factory import trunk, write_dicom

from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.scan import Given
from MAESILLib.data.apart import read_apart
from MAESILLib.runtime.errors import CancelledError, InputError
from MAESILLib.runtime.stopping import NEVER, StopRequest


class Crashing(Given):
    """Ends the process that reads, as a fault in native code does."""

    def __getattribute__(self, name: str) -> object:
        return os.abort() if name == "hu_offset" else super().__getattribute__(name)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_the_volume_is_the_same(tmp_path: Path, name: str) -> None:
    path = write_ct(tmp_path / name, (12, 40, 48), packed=True)
    apart, here = read_apart(path, NEVER), read_volume(path)
    np.testing.assert_array_equal(apart.hu, here.hu)
    assert (apart.hu.dtype, apart.geometry, apart.name) == (here.hu.dtype, here.geometry, here.name)


def test_what_is_damaged_is_refused_in_the_same_words(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "scan.nrrd", (12, 40, 48), packed=True)
    path.write_bytes(path.read_bytes()[:-100])
    result = maesil("info", path)
    assert result.status == 2
    with pytest.raises(InputError) as refusal:
        read_volume(path)
    assert result.err == f"maesil: {refusal.value}\n"


def test_a_series_of_which_one_slice_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, last = write_dicom(tmp_path, trunk() + 1024)
    with monkeypatch.context() as patch:
        patch.setattr("MAESILLib.data.apart.run_in_workers", None)
        read_apart(tmp_path, NEVER)
    data = pydicom.dcmread(last)
    data.compress(pydicom.uid.RLELossless)
    data.save_as(last)
    with pytest.raises(InputError, match="the reader died"):
        read_apart(tmp_path, NEVER, given=Crashing())


def test_a_crash_is_one_line_and_a_stop_does_not_wait(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "scan.nrrd", (12, 40, 48), packed=True)
    with pytest.raises(InputError, match=r"scan\.nrrd cannot be read: the reader died \(signal 6\)"):
        read_apart(path, NEVER, given=Crashing())
    stop = StopRequest()
    stop.ask("test")
    with pytest.raises(CancelledError):
        read_apart(path, stop)
