"""Shards: parts of one list of sources that several machines prepare at the same time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from MAESILLib.errors import InputError

INDEX = "index.json"
INDEX_NAME = re.compile(r"index(?:\.shard-(\d+)-of-(\d+))?\.json")


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``of`` parts; 1 of 1 is everything."""

    number: int = 1
    of: int = 1

    @property
    def suffix(self) -> str:
        """What its files' names have and others' have not."""
        return f".shard-{self.number}-of-{self.of}" if self.of > 1 else ""

    @property
    def index_name(self) -> str:
        """Name of its index."""
        return f"index{self.suffix}.json"

    @property
    def journal_name(self) -> str:
        """Name of its journal: what was done since the index was written."""
        return f"journal{self.suffix}.jsonl"

    @property
    def report_name(self) -> str:
        """Name of the report of its last run."""
        return f"report{self.suffix}.json"

    def takes(self, position: int) -> bool:
        """Say whether the source at ``position`` of the list is its own; neighbours go to different shards."""
        return position % self.of == self.number - 1


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


def shard_of_index(name: str) -> Shard | None:
    """Return the shard whose index has this file name; None if it is no index's."""
    match = INDEX_NAME.fullmatch(name)
    if match is None:
        return None
    return Shard(int(match[1]), int(match[2])) if match[1] else WHOLE


@dataclass(frozen=True)
class Progress:
    """How far a shard is: whether it is done, and a hash of the list of sources that it is a part of."""

    shard: Shard
    is_complete: bool
    inputs: str


def unfinished(shards: list[Progress]) -> tuple[str, ...]:
    """Say what is missing of a cache, one line for each set of shards that is not whole; nothing if all is there."""
    groups: dict[tuple[str, int], dict[int, Progress]] = {}
    for one in shards:
        groups.setdefault((one.inputs, one.shard.of), {})[one.shard.number] = one
    whole = {inputs for (inputs, of), found in groups.items() if not _missing(found, of)}
    lines = []
    for (inputs, of), found in sorted(groups.items(), key=lambda group: (group[0][1], min(group[1]))):
        # the same list may have been prepared in other parts, or at once
        if inputs not in whole:
            lines.append(_line(_missing(found, of), found, of))
    return tuple(lines)


def _missing(found: dict[int, Progress], of: int) -> list[int]:
    return [number for number in range(1, of + 1) if number not in found or not found[number].is_complete]


def _line(missing: list[int], found: dict[int, Progress], of: int) -> str:
    if of == 1:
        return "its preparation was not finished; run maesil prepare again"
    begun = [number for number in missing if number in found]
    absent = [number for number in missing if number not in found]
    parts = [f"{_numbers(absent)} missing"] if absent else []
    parts += [f"{_numbers(begun)} not finished"] if begun else []
    there = _numbers(sorted(found))
    return (
        f"of {of} shards ({there} of the same list of inputs there), {' and '.join(parts)}; run maesil prepare for them"
    )


def _numbers(numbers: list[int]) -> str:
    """Return numbers as text, neighbours joined: 1, 3-5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
