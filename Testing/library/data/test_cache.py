"""A cache: its split, and what happens when it is damaged."""

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_factory import QUIET, assert_refused, maesil
from training_factory import make_cache

from MAESILLib.data.cache import Cache, CacheEntry, read_cache
from MAESILLib.runtime.errors import InputError


def cache_of_patients(patients: list[str]) -> Cache:
    entries = tuple(
        CacheEntry(f"{patient}_{scan}", (8, 8, 8), patient, "", "", 0.5) for patient in patients for scan in (0, 1)
    )
    return Cache(Path("nowhere"), 1.5, entries)


class TestSplit:
    def test_whole_patients_whatever_the_order(self) -> None:
        patients = [f"patient {n}" for n in range(30)]
        cache, turned = cache_of_patients(patients), cache_of_patients(patients[::-1])
        held_out = {e.patient for e in cache.select("val")}
        assert len(held_out) == 3
        assert held_out == {e.patient for e in turned.select("val")}
        assert held_out.isdisjoint(e.patient for e in cache.select("train"))
        assert len(cache.select("val")) + len(cache.select("train")) == 60

    def test_a_larger_share_holds_out_the_same_and_more(self) -> None:
        cache = cache_of_patients([f"patient {n}" for n in range(30)])
        small, large = ({e.patient for e in cache.select("val", share)} for share in (0.1, 0.3))
        assert small < large
        assert len(large) == 9
        assert large.isdisjoint(e.patient for e in cache.select("train", 0.3))
        assert cache.select("val", 0.0) == ()

    def test_one_patient_is_for_training(self) -> None:
        cache = cache_of_patients(["only"])
        assert len(cache.select("train")) == 2
        assert cache.select("val") == ()


class TestFingerprint:
    def test_the_order_does_not_matter(self) -> None:
        entries = tuple(CacheEntry(f"v{n}", (8, 8, 8), f"p{n}", "", f"{n}", 0.5) for n in range(5))
        assert Cache(Path("a"), 1.5, entries).fingerprint() == Cache(Path("b"), 1.5, entries[::-1]).fingerprint()

    def test_what_was_trained_on_matters(self) -> None:
        entry = CacheEntry("v", (8, 8, 8), "p", "", "0", 0.5)
        others = [replace(entry, name="w"), replace(entry, split="val"), replace(entry, source_sha256="1")]
        prints = {Cache(Path("a"), 1.5, (one,)).fingerprint() for one in (entry, *others)}
        assert len(prints | {Cache(Path("a"), 2.0, (entry,)).fingerprint()}) == 5
        assert Cache(Path("a"), 1.5, (replace(entry, labels=("liver",)),)).fingerprint() in prints


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("v1.npy", "hello")


class TestDamage:
    @pytest.fixture
    def damaged(self, tmp_path: Path) -> Path:
        make_cache(tmp_path / "cache", [(16, 16, 16), (16, 16, 24)], ["train", "val"])
        return tmp_path / "cache" / "volumes" / "v1.npy"

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (Path.unlink, ["missing"]),
            *((lambda p, n=n: p.write_bytes(p.read_bytes()[:n]), ["damaged"]) for n in (0, 5, 60, 130, 6000)),
            (lambda p: p.write_bytes(p.read_bytes() + b"\0"), ["damaged", "bytes"]),
            (lambda p: np.save(p, np.zeros((16, 16, 23), np.int16)), ["(16, 16, 23)", "(16, 16, 24)"]),
            (lambda p: np.save(p, np.zeros((16, 16, 24), np.float32)), ["float32"]),
            # a pickle, which is not run, and an archive
            (lambda p: np.save(p, np.array([{"a": 1}], dtype=object), allow_pickle=True), ["damaged"]),
            (write_zip, ["damaged"]),
        ],
    )
    def test_a_volume(self, damaged: Path, damage: Callable[[Path], object], words: list[str]) -> None:
        damage(damaged)
        cache = read_cache(damaged.parent.parent)
        with pytest.raises(InputError) as caught:
            cache.open(cache.entries[1])
        for word in (str(damaged), "prepare again", *words):
            assert word in str(caught.value)

    @pytest.mark.parametrize("kept", [None, 0, 5, 130])
    def test_the_foreground_table(self, damaged: Path, kept: int | None) -> None:
        path = damaged.with_name("v1.foreground.npy")
        cache = read_cache(damaged.parent.parent)
        assert cache.foreground(cache.entries[1]).shape == (2, 2, 3)
        data = path.read_bytes()
        path.unlink()
        if kept is not None:
            path.write_bytes(data[:kept])
        with pytest.raises(InputError, match=re.escape(str(path))):
            cache.foreground(cache.entries[1])
        with pytest.raises(InputError, match=re.escape(str(path))):
            cache.verify(cache.entries[1])

    def test_verify(self, damaged: Path) -> None:
        cache = read_cache(damaged.parent.parent)
        for entry in cache.entries:
            cache.verify(entry)
        data = bytearray(damaged.read_bytes())
        data[-5000] ^= 4
        damaged.write_bytes(data)
        cache.open(cache.entries[1])
        with pytest.raises(InputError, match=r"v1\.npy is damaged.*--verify"):
            cache.verify(cache.entries[1])

    def test_verify_finds_a_table_of_another_volume(self, damaged: Path) -> None:
        cache = read_cache(damaged.parent.parent)
        np.save(damaged.with_name("v1.foreground.npy"), np.zeros((2, 2, 3), np.uint16))
        with pytest.raises(InputError, match=r"v1\.foreground\.npy is damaged"):
            cache.verify(cache.entries[1])

    def test_any_damage_of_the_header(self, damaged: Path) -> None:
        """Whatever bytes change, it is refused by name or reads as what the index says."""
        good, rng = damaged.read_bytes(), np.random.default_rng(0)
        cache = read_cache(damaged.parent.parent)
        refused = 0
        # numpy itself fails in several ways here: ValueError, TokenError, OverflowError
        for _ in range(300):
            data = bytearray(good)
            for place in rng.integers(0, 128, 2):
                data[place] = rng.integers(0, 256)
            damaged.write_bytes(data)
            try:
                volume = cache.open(cache.entries[1])
            except InputError as error:
                refused += str(damaged) in str(error)
                continue
            assert (volume.shape, volume.dtype) == ((16, 16, 24), np.int16)
        assert refused > 200

    def test_the_command_line_names_it(self, damaged: Path, tmp_path: Path, checkpoint: Path) -> None:
        damaged.write_bytes(b"")
        arguments = ("--data", tmp_path / "cache", "--checkpoint", checkpoint, "--output", tmp_path / "out", *QUIET)
        assert_refused(maesil("evaluate", *arguments), "v1.npy is damaged", "prepare again")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("number", "change"),
        [
            *((1, {"schema": schema}) for schema in ("maesil-cache/99", "maesil-cache/3", None)),
            *((1, {"shard": shard}) for shard in (5, {"number": 1})),
            (1, {"spacing_mm": "wide"}),
            (1, {"inputs": None, "number": None}),
            *((2, {"entry": entry}) for entry in ({}, 5, {"name": "v"})),
            *(
                (2, {key: value})
                for key, value in (("order", "first"), ("name", "../v0"), ("stamp", None), ("reason", 5))
            ),
            (3, {"unknown": 1}),
            # a line of its own
            *((3, line) for line in ("", "not json", "[]", "5", '{"source": "a"}', '{"schema": ')),
        ],
    )
    def test_index(self, damaged: Path, number: int, change: dict[str, object] | str) -> None:
        path = damaged.parent.parent / "index.jsonl"
        lines = path.read_text().splitlines()
        if isinstance(change, str):
            lines.insert(number - 1, change)
        else:
            lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | change)
        path.write_text("\n".join([*lines, ""]))
        where = "has schema" if number == 1 and "schema" in change else f", line {number} is damaged.*delete the line"
        with pytest.raises(InputError, match=re.escape(f"{path}") + ".*" + where):
            read_cache(path.parent)

    def test_an_index_without_its_first_line(self, damaged: Path) -> None:
        path = damaged.parent.parent / "index.jsonl"
        path.write_text("\n".join([*path.read_text().splitlines()[1:], ""]))
        with pytest.raises(InputError, match=r"index\.jsonl has schema None"):
            read_cache(path.parent)
