"""Label maps for a probe: as a cache holds them, points drawn in them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from cli_factory import read_array
from prepare_factory import prepare, write_cts
from probe_factory import phantom, write_phantoms, write_rows

from MAESILLib.ct.body import body_mask
from MAESILLib.probe.labels import find_labelled, points_of
from MAESILLib.runtime.errors import InputError


def test_points_lie_where_a_structure_fills_half_of_a_token(tmp_path: Path) -> None:
    volumes = find_labelled(write_phantoms(tmp_path) / "cache")
    points = points_of(volumes)
    assert {point.patient for point in points if point.split == "val"} == {"p3"}
    true = {}
    for number in range(4):
        hu, labels = phantom(number)
        true[f"p{number}"] = np.where(body_mask(hu) | (labels > 0), labels, -1)
    structures = ("background", "bright", "dark")
    counts = dict.fromkeys(itertools.product(true, structures), 0)
    for point in points:
        d, h, w = (slice(max(0, n - 4), n + 4) for n in point.kji)
        assert (true[point.patient][d, h, w] == structures.index(point.structure)).sum() >= 256
        counts[point.patient, point.structure] += 1
    assert len(counts) == 12
    assert set(counts.values()) == {10}
    drawn = [[point.kji.tolist() for point in points_of(volumes, seed)] for seed in (0, 1)]
    assert drawn[0] == [point.kji.tolist() for point in points] != drawn[1]


def test_real_tumour_contours(real_ct: Path, tmp_path: Path) -> None:
    path = real_ct / "val" / "sts__sts_029.nii.gz"
    prepare(tmp_path / "cache", write_rows(tmp_path / "m.csv", ("file", "labels"), [(path, "1=tumour")]))
    (volume,) = find_labelled(tmp_path / "cache")
    _, codes, names = volume.read()
    assert names == ["background", "tumour"]
    stored = read_array(path.with_name("sts__sts_029_seg.nii.gz")) == 1
    # same spacing: flips alone, so the profile along some axis is the stored one's, either way round
    assert (codes == 1).sum() == stored.sum()
    profile, expected = (codes == 1).sum((1, 2)).tolist(), stored.sum((1, 2)).tolist()
    assert profile in (expected, expected[::-1])


def test_what_cannot_be_probed(tmp_path: Path) -> None:
    for name, arguments, words in (("a", (), "has no label map"), ("b", ("--spacing", 2), "2.0 mm voxels")):
        prepare(tmp_path / name, write_cts(tmp_path / "in", 1), *arguments)
        with pytest.raises(InputError, match=words):
            find_labelled(tmp_path / name)
