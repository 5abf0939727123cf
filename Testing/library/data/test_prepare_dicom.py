"""Preparing DICOM trees: every series once, under its patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cli_factory import (
    maesil,
)
from test_prepare import SMALL, entries_of, prepare, reasons_of, stored
from volume_factory import trunk, write_dicom

from MAESILLib.data.records import hash_of_patient


class TestTrees:
    """One patient's scan under two names would lie on both sides of the split."""

    SPACING = (1.5, 1.5, 1.5)

    def test_slices_given_one_by_one(self, tmp_path: Path) -> None:
        """As ``series/*.dcm`` makes a shell do."""
        paths = write_dicom(tmp_path / "series", trunk(SMALL) + 1024, spacing_dhw=self.SPACING)
        prepare(tmp_path / "cache", *paths)
        (entry,) = entries_of(tmp_path / "cache").values()
        assert entry["patient"] == hash_of_patient("TEST")
        np.testing.assert_array_equal(stored(tmp_path / "cache", entry["name"]), trunk(SMALL))

    def test_a_disc_with_its_table_of_contents(self, tmp_path: Path) -> None:
        for number in range(2):
            write_dicom(
                tmp_path / "disc" / f"p{number}",
                trunk(SMALL, number) + 1024,
                spacing_dhw=self.SPACING,
                uid=f"1.2.{number}",
                tags={"0010|0020": f"P{number}"},
            )
        (tmp_path / "disc" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        prepare(tmp_path / "cache", tmp_path / "disc")
        entries = entries_of(tmp_path / "cache")
        assert sorted(entry["patient"] for entry in entries.values()) == sorted(map(hash_of_patient, ("P0", "P1")))
        assert reasons_of(tmp_path / "cache") == {}

    def test_series_above_another(self, tmp_path: Path) -> None:
        """The larger series lies below; read with its subfolders, the upper folder would give it twice."""
        tags = {"0008|103e": "UPPER"}
        write_dicom(tmp_path / "study", trunk(SMALL, 1)[:10] + 1024, spacing_dhw=self.SPACING, uid="1.2.1", tags=tags)
        write_dicom(tmp_path / "study" / "below", trunk(SMALL, 2) + 1024, spacing_dhw=self.SPACING, uid="1.2.2")
        prepare(tmp_path / "cache", tmp_path / "study")
        (upper,) = set(entries_of(tmp_path / "cache")) - {"below"}
        assert upper.startswith("study_"), "a file that stands for its series has its folder's name before its own"
        np.testing.assert_array_equal(stored(tmp_path / "cache", upper), trunk(SMALL, 1)[:10])
        np.testing.assert_array_equal(stored(tmp_path / "cache", "below"), trunk(SMALL, 2))

    def test_two_series_in_one_folder(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "s", trunk(SMALL, 1)[:10] + 1024, spacing_dhw=self.SPACING, uid="1.2.1", prefix="a")
        write_dicom(tmp_path / "s", trunk(SMALL, 2) + 1024, spacing_dhw=self.SPACING, uid="1.2.2", prefix="b")
        result = maesil("prepare", tmp_path / "s", "--output", tmp_path / "cache", "--progress", "json")
        assert result.status == 0
        np.testing.assert_array_equal(stored(tmp_path / "cache", "s"), trunk(SMALL, 2))
        assert any("2 CT series" in event["message"] for event in result.named("warning"))
