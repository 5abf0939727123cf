"""One writer for a folder, whatever became of the one before."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from MAESILLib.runtime import lock
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.lock import HOST, LOCK, lock_holder, only_writer

HOLD = """
import sys
from pathlib import Path
from MAESILLib.runtime.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def write(folder: Path, **changes: object) -> None:
    own = {"host": HOST, "pid": os.getppid(), "started": psutil.Process(os.getppid()).create_time(), "work": "x"}
    (folder / LOCK).write_text(json.dumps(own | changes))


def is_taken(folder: Path) -> bool:
    with suppress(InputError), only_writer(folder):
        return False
    return True


def test_a_process_that_runs_keeps_it_and_one_that_was_killed_does_not(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with pytest.raises(InputError, match=f"is in use by process {process.pid} on {HOST}"), only_writer(tmp_path):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).read_text(), "it had no time to remove it"
    with only_writer(tmp_path, work="mine"):
        assert (lock_holder(tmp_path / LOCK) or {})["work"] == "mine"
        assert is_taken(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_given_back_at_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "new"):
        raise ZeroDivisionError
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("has_system_locks", [True, False])
def test_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_system_locks: bool) -> None:
    if not has_system_locks:
        monkeypatch.setattr(lock, "_try_lock", lambda file: True)
    write(tmp_path)
    assert is_taken(tmp_path), "its process runs"
    for changes in ({"started": 1.0}, {"pid": 2**22 + 1}, {"pid": "none"}):
        write(tmp_path, **changes)
        assert not is_taken(tmp_path), "another process has the number, or none"
    for text in ("", "{", "[]", '{"host": 5}'):
        (tmp_path / LOCK).write_text(text)
        assert not is_taken(tmp_path)
    write(tmp_path, host="elsewhere", pid=2**22 + 1)
    with pytest.raises(InputError, match=r"process 4194305 on elsewhere.*delete .*\.lock"), only_writer(tmp_path):
        pass
    assert "elsewhere" in (tmp_path / LOCK).read_text()
