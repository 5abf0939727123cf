"""The index of a cache: files of JSON lines that only grow, one of each shard.

    CACHE/index.jsonl, CACHE/index.shard-2-of-8.jsonl

A run appends a line on itself when it begins and when it has ended, and between them one for each source whose record
is new or has changed. The last line on a source counts; runs are numbered, so that it does where several files have
the source. A shard writes its own file alone.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from MAESILLib import __version__
from MAESILLib.data.records import Record, record_of
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import explain_os_error, parsed_json

SCHEMA = "maesil-cache/5"
INDEX = "index.jsonl"
# version 0.1.0 wrote .json
INDEX_NAME = re.compile(r"index(\.shard-\d+-of-\d+)?\.jsonl?")
PREPARE_ANEW = "prepare the data again in another folder"


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``of`` parts of a list of sources; 1 of 1 is everything."""

    number: int = 1
    of: int = 1

    def file_name(self, stem: str, suffix: str) -> str:
        """Return the name of its index or report."""
        return f"{stem}.shard-{self.number}-of-{self.of}{suffix}" if self.of > 1 else f"{stem}{suffix}"


WHOLE = Shard()


def parse_shard(text: str) -> Shard:
    """Return the shard that ``i/n`` names.

    Raises:
        InputError: it names none.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {text}", "write i/n with i from 1 to n, as 2/8")
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Run:
    """One run of ``maesil prepare``.

    Attributes:
        number: larger than those of all runs that it read.
        inputs: hash of the whole list of sources.
        is_complete: it came to the end of its shard.
    """

    number: int
    shard: Shard
    inputs: str
    spacing_mm: float
    is_complete: bool = False


def index_paths(folder: Path) -> list[Path]:
    """Return the index files of a folder, those of version 0.1.0 too; none if it is no cache."""
    return sorted(path for path in folder.glob("index*.json*") if INDEX_NAME.fullmatch(path.name))


def read_index(folder: Path) -> tuple[dict[str, Record], list[Run]]:
    """Read and join all index files of a folder.

    Returns:
        records by source, and of each file the last run of each list of sources; nothing if there are none.

    Raises:
        InputError: one is damaged or of another version, or they were prepared with different spacings.
    """
    runs: list[Run] = []
    found: list[tuple[int, Record]] = []
    for path in index_paths(folder):
        of_file, records = _read_file(path)
        runs += of_file
        if of_file and of_file[-1].spacing_mm != runs[0].spacing_mm:
            raise InputError(
                f"{path} was prepared at {of_file[-1].spacing_mm} mm, others at {runs[0].spacing_mm} mm",
                "prepare each in a folder of its own",
            )
        found += records
    return {record.source: record for _, record in sorted(found, key=lambda one: one[0])}, runs


def _read_file(path: Path) -> tuple[list[Run], list[tuple[int, Record]]]:
    """Return the last run of each list in a file, and its records, each with the number of its run."""
    if path.suffix == ".json":
        raise InputError(f"{path} is not of schema {SCHEMA!r}", PREPARE_ANEW)
    runs: dict[str, Run] = {}
    run, records = None, []
    # after the last end of a line lies what is being written, or was torn by a crash: that source is prepared again
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            values = parsed_json(line)
            if run is None or "schema" in values:
                run = _run_of(values, path)
                # the last one comes last
                runs.pop(run.inputs, None)
                runs[run.inputs] = run
            else:
                records.append((run.number, record_of(values)))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path}, line {number} is damaged: {error}", "delete the line, then run maesil prepare again"
            ) from None
    return list(runs.values()), records


def _run_of(values: dict[str, Any], path: Path) -> Run:
    schema = values.get("schema")
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema!r}, this version reads {SCHEMA!r}", PREPARE_ANEW)
    shard = Shard(int(values["shard"]["number"]), int(values["shard"]["of"]))
    number, spacing_mm = int(values["number"]), float(values["spacing_mm"])
    return Run(number, shard, str(values["inputs"]), spacing_mm, bool(values["is_complete"]))


def append(folder: Path, shard: Shard, value: Run | Record) -> None:
    """Append a line to a shard's index; it survives the end of this process.

    Raises:
        DiskFullError: the disk is full.
        InputError: the folder cannot be written to.
    """
    path = folder / shard.file_name("index", ".jsonl")
    try:
        if isinstance(value, Run) and path.exists():
            # what a crash tore must not become the start of the next line
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        head = {"schema": SCHEMA, "library_version": __version__} if isinstance(value, Run) else {}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(head | asdict(value), allow_nan=False) + "\n")
    except OSError as error:
        raise explain_os_error(error, path) from error


def unfinished(runs: Iterable[Run]) -> tuple[str, ...]:
    """Return what is missing of a cache: a line for each list of sources that is a shard's last and not complete."""
    done: dict[tuple[str, int], set[int]] = {}
    last: dict[Shard, str] = {}
    for run in runs:
        last[run.shard] = run.inputs
        done.setdefault((run.inputs, run.shard.of), set()).update([run.shard.number] if run.is_complete else [])
    # the same list may have been prepared in other parts, or at once
    whole = {inputs for (inputs, of), complete in done.items() if len(complete) == of}
    current = sorted({(inputs, shard.of) for shard, inputs in last.items()})
    return tuple(_missing(of, done[inputs, of]) for inputs, of in current if inputs not in whole)


def _missing(of: int, complete: set[int]) -> str:
    if of == 1:
        return "its preparation was not finished; run maesil prepare again"
    missing = [str(number) for number in range(1, of + 1) if number not in complete]
    numbers = ", ".join([*missing[:9], *(["..."] if len(missing) > 9 else [])])
    return f"{len(missing)} of {of} shards are missing or not finished ({numbers}); run maesil prepare for them"
