"""Files that appear whole or not at all, and what the system's errors are called."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_factory import REPOSITORY, file_size_limit

from MAESILLib.runtime.errors import CancelledError, DiskFullError, InputError, MAESILError, OutOfMemoryError
from MAESILLib.runtime.files import (
    atomic_path,
    check_folder,
    check_name,
    csv_text,
    explain_os_error,
    inside,
    read_json,
    staged,
    write_json,
    write_text,
)


class TestAtomicPath:
    def test_appears_when_complete(self, tmp_path: Path) -> None:
        target = tmp_path / "new" / "folder" / "a.nii.gz"
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.name.endswith(".nii.gz"), "writers choose the format by suffix"
            assert temporary.name.startswith("."), "it is hidden"
            temporary.write_bytes(b"whole")
            assert not target.exists()
        assert target.read_bytes() == b"whole"
        assert [p.name for p in target.parent.iterdir()] == ["a.nii.gz"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_an_error_leaves_what_was_there(self, tmp_path: Path, error: type[BaseException]) -> None:
        target = tmp_path / "a.json"
        target.write_text("old")
        with pytest.raises(error), atomic_path(target) as temporary:  # noqa: PT012
            temporary.write_text("half")
            raise error
        assert target.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def test_a_killed_writer_leaves_no_half_file(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\nfrom MAESILLib.runtime.files import atomic_path\n"
            "with atomic_path(sys.argv[1]) as path:\n    path.write_text('half')\n"
            "    print('written', flush=True)\n    time.sleep(60)\n"
        )
        target = tmp_path / "a.txt"
        target.write_text("old")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(target)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "written\n"
        process.kill()
        process.wait(10)
        assert target.read_text() == "old"
        assert all(p == target or ".partial." in p.name for p in tmp_path.iterdir())

    def test_two_writers_do_not_meet(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        with atomic_path(target) as first, atomic_path(target) as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert target.read_text() == "first", "the outer block ends last"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_a_full_disk(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        with file_size_limit(1000), pytest.raises(DiskFullError, match=r"a\.txt"):
            write_text(target, "x" * 2000)
        assert list(tmp_path.iterdir()) == []
        if Path("/dev/full").exists():
            with pytest.raises(DiskFullError, match="disk full"), atomic_path(target), open("/dev/full", "w") as file:
                file.write("x")
            assert list(tmp_path.iterdir()) == []

    def test_places_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        (tmp_path / "folder" / "full").mkdir(parents=True)
        for target in (tmp_path / "file" / "a.txt", tmp_path / "folder", tmp_path / ("x" * 250)):
            with pytest.raises(InputError) as caught:
                write_text(target, "text")
            assert str(target) in str(caught.value)
            assert caught.value.hint
        assert (tmp_path / "file").read_text() == "mine"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]

    def test_others_may_read_it(self, tmp_path: Path) -> None:
        """As the umask says, not as a temporary file's mode."""
        before = os.umask(0o022)
        try:
            write_text(tmp_path / "a.txt", "text")
        finally:
            os.umask(before)
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


class TestStaged:
    def test_files_appear_together_the_last_one_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "new" / "results"
        moved: list[str] = []
        replace = Path.replace

        def watched(self: Path, target: Path) -> Path:
            moved.append(self.name)
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", watched)
        with staged(folder, last="a.json") as staging:
            (staging / "a.json").write_text("done")
            (staging / "figures").mkdir()
            (staging / "figures" / "b.png").write_text("picture")
            assert [p for p in folder.iterdir() if not p.name.startswith(".")] == []
        assert moved == ["b.png", "a.json"]
        assert (folder / "figures" / "b.png").read_text() == "picture"
        assert sorted(p.name for p in folder.iterdir()) == ["a.json", "figures"]

    def test_an_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("old")
        with pytest.raises(InputError) as caught, staged(tmp_path, last="a.json") as staging:  # noqa: PT012
            (staging / "a.json").write_text("half")
            raise InputError(f"{staging / 'a.json'} is wrong", "mend it")
        assert caught.value.message == f"{tmp_path / 'a.json'} is wrong"
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]

    def test_folders_made_for_nothing_are_removed_where_they_are_empty(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), staged(tmp_path / "x" / "y", last="a.json"):
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(KeyboardInterrupt), staged(tmp_path / "x" / "y" / "z", last="a.json"):  # noqa: PT012
            (tmp_path / "x" / "mine").touch()
            raise KeyboardInterrupt
        assert [p.name for p in (tmp_path / "x").iterdir()] == ["mine"]

    def test_a_failure_between_two_moves_loses_nothing_and_says_where_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.json").write_text("old")

        def failing(self: Path, target: Path) -> Path:
            raise OSError(errno.ENOSPC, "full")

        with pytest.raises(DiskFullError) as caught, staged(tmp_path, last="a.json") as staging:  # noqa: PT012
            (staging / "b.csv").write_text("new")
            monkeypatch.setattr(Path, "replace", failing)
        # the old one no longer says that what lies beside it is whole
        assert not (tmp_path / "a.json").exists()
        (kept,) = tmp_path.iterdir()
        assert str(kept) in caught.value.message
        assert (kept / "b.csv").read_text() == "new"

    def test_a_place_that_is_taken_spares_the_old_results(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("old")
        (tmp_path / "figures").write_text("a file")
        with pytest.raises(InputError), staged(tmp_path, last="a.json") as staging:  # noqa: PT012
            (staging / "a.json").write_text("new")
            (staging / "figures").mkdir()
            (staging / "figures" / "b.png").write_text("picture")
        assert (tmp_path / "a.json").read_text() == "old"
        assert (tmp_path / "figures").read_text() == "a file"
        assert [p.read_text() for p in tmp_path.glob("unplaced*/figures/b.png")] == ["picture"]

    def test_a_file_in_its_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="is a file"), staged(tmp_path / "file", last="a.json"):
            raise AssertionError

    def test_one_writer_clears_what_a_killed_one_left(self, tmp_path: Path) -> None:
        (tmp_path / ".partial-0123abcd").mkdir()
        (tmp_path / ".partial-0123abcd" / "a.json").write_text("half")
        (tmp_path / ".0123abcd.partial.a.json").write_text("half")
        with staged(tmp_path, last="a.json") as staging:
            assert list(tmp_path.glob(".*partial*")) == [staging]
            with pytest.raises(InputError, match="is in use by process"), staged(tmp_path, last="a.json"):
                raise AssertionError
            (staging / "a.json").write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        value = {"a": [1, 2.5, None, True], "name": "Müller 扫描", "odd": "caf\udce9", "nested": {"b": []}}
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value
        assert json.loads((tmp_path / "a.json").read_bytes()) == value
        # NaN is no JSON: other readers fail on it
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "b.json", {"psnr": float("nan")})
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no such file: .*none\.json"):
            read_json(tmp_path / "none.json")


class TestFolders:
    @pytest.mark.parametrize("folder", ["", "new", "new/er"])
    def test_a_good_one_is_left_as_it_was(self, tmp_path: Path, folder: str) -> None:
        check_folder(tmp_path / folder)
        assert list(tmp_path.iterdir()) == []

    def test_bad_ones(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for folder, words in (("file", "is a file"), ("file/in", "Not a directory"), ("x" * 300, "too long")):
            with pytest.raises(InputError, match=words):
                check_folder(tmp_path / folder)
        with pytest.raises(InputError, match="too long"):
            check_folder(tmp_path / "made" / ("x" * 300))
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_checks_at_the_same_time_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        """As shards of one cache do, which start together."""
        with ThreadPoolExecutor(4) as threads:
            done = [threads.submit(check_folder, tmp_path / "made" / "cache") for _ in range(2000)]
        assert [one.exception() for one in done if one.exception()] == []
        assert list(tmp_path.iterdir()) == []

    def test_names(self) -> None:
        check_name(Path("Müller/扫描.nrrd"))
        with pytest.raises(InputError, match="not UTF-8"):
            check_name(os.fsdecode(b"caf\xe9"))


class TestErrors:
    @pytest.mark.parametrize(
        ("number", "kind", "words"),
        [
            (errno.ENOSPC, DiskFullError, "disk full"),
            (errno.EDQUOT, DiskFullError, "disk full"),
            (errno.EFBIG, DiskFullError, "larger than the system allows"),
            (errno.EACCES, InputError, "no permission to write"),
            (errno.EROFS, InputError, "no permission to write"),
            (errno.ENOTDIR, InputError, "Not a directory"),
            (errno.ENAMETOOLONG, InputError, "File name too long"),
            (errno.EIO, OSError, "Input/output error"),
        ],
    )
    def test_what_the_system_says(self, number: int, kind: type[Exception], words: str) -> None:
        error = OSError(number, os.strerror(number))
        explained = explain_os_error(error, Path("out/a.nrrd"))
        assert isinstance(explained, kind)
        assert words in str(explained)
        if isinstance(explained, MAESILError):
            assert "out/a.nrrd" in str(explained)
            assert explained.hint
        else:
            assert explained is error, "anything else is a bug"

    def test_exit_statuses(self) -> None:
        """As DESIGN.md has them; they are part of the contract with scripts and with Slicer."""
        assert InputError.exit_status == 2
        assert CancelledError.exit_status == 3
        assert OutOfMemoryError.exit_status == 4
        assert DiskFullError.exit_status == 4
        kinds = {error.kind for error in (InputError, CancelledError, OutOfMemoryError, DiskFullError)}
        assert kinds == {"bad_input", "cancelled", "out_of_memory", "disk_full"}
        assert str(InputError("what, where", "what to do")) == "what, where. what to do"
        assert str(CancelledError("stopped")) == "stopped"


def test_a_write_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after the rename must not find an empty file under the final name."""
    order = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(number: int) -> None:
        order.append("fsync")
        fsync(number)

    def noted_replace(source: Path, target: Path) -> None:
        order.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "a.txt", "text")
    assert order == ["fsync", "replace"]


class TestWhatNobodyVouchesFor:
    @pytest.mark.parametrize(
        "name",
        [
            *("../a", "a/../../b", "/a", "\\a", "..\\a", "C:\\a", "C:a", "a:stream"),
            *("", ".", "..", "a//b", "a/. /b", "a\0", "\x1b"),
        ],
    )
    def test_a_name_that_leaves_its_folder(self, name: str) -> None:
        with pytest.raises(InputError, match="is not the name of a file in") as refusal:
            inside(Path("cache"), name, "")
        assert str(refusal.value).isprintable()

    @pytest.mark.parametrize("name", ["a.npy", "a/b.npy", "..a", "ä b", "a" * 300, "CON"])
    def test_a_name_that_stays(self, name: str) -> None:
        assert inside(Path("cache"), name, "") == Path("cache") / name

    @pytest.mark.parametrize(
        "text", [b"", b"{", b"\xff", b"[" * 100_000, b"1" + b"0" * 30, b"-9223372036854775809", b"1" * 5000]
    )
    def test_json_that_is_none_or_that_python_would_stumble_over(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "a.json").write_bytes(text)
        with pytest.raises(InputError, match=r"a\.json is not valid JSON"):
            read_json(tmp_path / "a.json")

    def test_a_cell_of_a_table_is_no_formula(self) -> None:
        text = csv_text([{"=a": cell, "b": 1} for cell in ("=1+1", "@x", "+x", "-x", "-1.5e3", "plain", "", -2)])
        assert [line.split(",")[0] for line in text.splitlines()] == [
            *("'=a", "'=1+1", "'@x", "'+x", "'-x", "-1.5e3", "plain", "", "-2")
        ]
