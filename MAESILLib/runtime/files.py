"""Files that appear whole or not at all.

A result is written to a temporary name in its own folder and renamed when complete, so a reader
never meets half a file under a final name, whatever ends the writer. A full disk is DiskFullError.
"""

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from MAESILLib.runtime.errors import DiskFullError, InputError, MAESILError
from MAESILLib.runtime.lock import only_writer

BAD_PATH = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
"""System errors of a path that cannot be used."""


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; rename it to ``path`` if the block succeeds.

    The temporary name keeps the suffixes of ``path``, because writers choose a format by suffix.

    Raises:
        DiskFullError: the disk or the quota is full.
        InputError: the folder cannot be written to, or the path cannot exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        # where the folder itself could not be made there is nothing to remove
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def staged(folder: Path, last: str) -> Iterator[Path]:
    """Yield a hidden folder inside ``folder``, locked meanwhile; move its files into place if the block succeeds.

    What a writer that was killed has left in ``folder`` goes first. Folders made for it, parents included, are removed
    again if the block fails, where they are empty.

    Args:
        last: the file that says that the others are complete: an old one goes first, the new one comes last.

    Raises:
        DiskFullError: the disk or the quota is full.
        InputError: the folder is a file, cannot be written to, or another process writes into it.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file", "choose another output folder")
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    staging = folder / f".partial-{uuid.uuid4().hex[:8]}"
    try:
        with only_writer(folder):
            remove_partial(folder)
            staging.mkdir()
            try:
                yield staging
                _publish(staging, folder, last)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    except MAESILError as error:
        # a user knows nothing of the hidden folder
        error.message = error.message.replace(str(staging), str(folder))
        raise
    finally:
        for made in missing:
            with suppress(OSError):
                made.rmdir()


def _publish(staging: Path, folder: Path, last: str) -> None:
    made = sorted((path for path in staging.rglob("*") if path.is_file()), key=lambda p: (p == staging / last, p))
    try:
        for path in made:
            flush_to_disk(path)
            (folder / path.relative_to(staging)).parent.mkdir(parents=True, exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        for path in made:
            path.replace(folder / path.relative_to(staging))
    except OSError as error:
        # the work of hours is whole: only its place is taken
        kept = folder / f"unplaced{staging.name.removeprefix('.partial')}"
        os.rename(staging, kept)
        found = explain_os_error(error, folder)
        if isinstance(found, MAESILError):
            found.message += f"; what was to be written is in {kept}"
        raise found from error


def remove_partial(folder: Path) -> None:
    """Remove what writers that were killed have left in ``folder``; nobody else may be writing into it."""
    for left in folder.glob(".*.partial.*"):
        left.unlink(missing_ok=True)
    for left in folder.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def check_folder(folder: Path | str) -> None:
    """Refuse an output folder that cannot be made or written to, before the work that it is for.

    Raises:
        InputError: it is a file, lies in one, or there is no permission.
        DiskFullError: the disk or the quota is full.
    """
    folder = Path(folder)
    probe = None
    try:
        if folder.is_file():
            raise InputError(f"{folder} is a file", "choose another output folder")
        existing = next(f for f in (folder, *folder.parents) if f.exists())
        # beside, and not in its place: another process may be about to use it
        probe = existing / f".{uuid.uuid4().hex[:8]}.partial"
        (probe / folder.relative_to(existing)).mkdir(parents=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        if probe is not None:
            shutil.rmtree(probe, ignore_errors=True)


def check_name(path: Path | str) -> None:
    """Refuse a path that is not text: ITK ends the whole process when it is given one.

    Raises:
        InputError: the path holds bytes that are not UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{path} has a name that is not UTF-8", "rename it") from None


def flush_to_disk(path: Path) -> None:
    """Ask the system to store the file's bytes before it is renamed over an older one."""
    # opened for writing, because Windows flushes nothing else
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def explain_os_error(
    error: OSError, path: Path | str, doing: str = "write", hint: str = "choose another output folder"
) -> Exception:
    """Return the :class:`MAESILError` that says what ``error`` means for ``path``, or ``error`` if none does."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"disk full while writing {path}", "free space or choose another folder, then repeat")
    if error.errno == errno.EFBIG:  # ulimit -f, or a file system with small files only
        return DiskFullError(f"{path} is larger than the system allows", "choose another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"no permission to {doing} {path}", hint)
    if error.errno in BAD_PATH:
        return InputError(f"cannot {doing} {path}: {error.strerror}", hint)
    return error


def inside(folder: Path, name: str, hint: str) -> Path:
    """Join a trusted folder with a name from a file that nobody vouches for: a cache's index, an archive.

    Nothing that any system takes for another folder, a drive or a stream passes.

    Raises:
        InputError: the name would leave the folder.
    """
    parts = re.split(r"[/\\]", name)
    if not name.isprintable() or ":" in name or any(not part.strip(". ") for part in parts):
        raise InputError(f"{name!r} is not the name of a file in {folder}", hint)
    return folder / name


def write_bytes(path: Path | str, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all."""
    # escaped, because a file name may hold bytes that are no characters
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read the JSON file ``path``.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return parsed_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "check the path") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}", "create it again") from None


def parsed_json(text: str | bytes) -> Any:
    """Parse JSON that nobody vouches for.

    Raises:
        ValueError: it is none, is nested too deeply, or holds a whole number of more than 64 bits.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole_number(text: str) -> int:
    if not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError("it holds a whole number of more than 64 bits")
    return number


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of the file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV under the names of all their columns; no cell is a formula to a spreadsheet."""
    packed = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(packed)
    for cells in (columns, *([row.get(key, "") for key in columns] for row in rows)):
        writer.writerow([_no_formula(cell) for cell in cells])
    # a file name may hold bytes that are no characters
    return packed.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
