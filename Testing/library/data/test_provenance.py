"""What a checkpoint says of its data: patients as hashes, no paths, and whose images it was trained on."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_factory import make_cache, tiny_config

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.provenance import describe_data, patients_trained_on, trained_on
from MAESILLib.data.records import hash_of_patient
from MAESILLib.mae.checkpoint_info import read_header, read_info
from MAESILLib.training.trainer import Trainer


def entry(patient: str, source: str = "unknown") -> CacheEntry:
    return CacheEntry("v", (8, 8, 8), patient, "", source, 1.0)


def test_a_patient_is_a_salted_hash_of_64_bits() -> None:
    expected = hashlib.sha256(b"maesil-patient:p1").hexdigest()[:16]
    assert hash_of_patient("p1") == expected
    assert expected != hashlib.sha256(b"p1").hexdigest()[:16]
    assert int(expected, 16) < 2**64


def test_data_are_described_without_patients(cache: Cache) -> None:
    data = describe_data(cache, cache.select("train"))
    assert data["volumes"] == ["v0", "v1", "v2"]
    assert data["patients_sha256"] == sorted(hash_of_patient(f"p{n}") for n in range(3))
    assert not re.search(r'"p\d"', json.dumps(data))


class TestTrainedOn:
    @pytest.mark.parametrize("depth", [0, 1, 3])
    def test_patients_in_a_chain_of_trainings(self, depth: int) -> None:
        training: dict[str, Any] = {"data": {"patients_sha256": ["p1"]}}
        for _ in range(depth):
            training = {"data": {"patients_sha256": ["0" * 16]}, "initialised_from": {"training": training}}
        assert trained_on(training, (entry("p1"), entry("p2"))) == ["v"]
        assert trained_on(training, (entry("p2"),)) == []

    def test_names_and_sources(self) -> None:
        training = {"data": {"patients_sha256": [hash_of_patient("p1")], "sources_sha256": ["abc"]}}
        assert patients_trained_on(training, ["p0", "p1"]) == ["p1"]
        assert patients_trained_on({}, ["p1"]) is None
        assert trained_on(training, (entry("p1", "abc"),)) == ["v"]
        assert trained_on(training, (entry("p1", "abd"),)) == []

    def test_copies_in_another_format(self) -> None:
        cache = Cache(Path(), 1.5, (replace(entry("p1", "abc"), voxels_sha256="v"), entry("p2", "old")))
        training = {"data": describe_data(cache, cache.entries)}
        copy, other = entry("p3", "abd"), entry("p4", "abe")
        assert trained_on(training, (replace(copy, voxels_sha256="v"),)) == ["v"]
        assert trained_on(training, (replace(copy, voxels_sha256="w"), other)) == []


def test_a_checkpoint_names_no_patient_and_no_path(tmp_path: Path) -> None:
    """Of a run that began from another: its metadata hold that one's too."""
    cache = make_cache(tmp_path / "secret", [(16, 16, 16)] * 3, ["train", "train", "val"])
    config = tiny_config(steps=1, crop_size=(16, 16, 16), cooldown_crop_size=(16, 16, 16))
    initial = None
    for name in ("first", "second"):
        trainer = Trainer(config, cache, tmp_path / name, initial=initial)
        trainer.run()
        initial = tmp_path / name / "model.safetensors"
        for path in (initial, initial.with_name("best.safetensors")):
            text = json.dumps(read_header(path)["__metadata__"])
            assert str(tmp_path) not in text
            assert not re.search(r'"(/|[A-Za-z]:\\|~)', text.replace('\\"', '"')), "an absolute path"
            assert not re.search(r'"p\d"', text.replace('\\"', '"')), "a patient"
    assert read_info(initial).training["initialised_from"]["name"] == "model.safetensors"
