"""``maesil reconstruct`` of several inputs: a folder of results each, a table, failures, a second call."""

import json
import shutil
from pathlib import Path

import pytest
from cli_factory import (
    JSON,
    QUIET,
    Result,
    assert_refused,
    assert_refused_event,
    maesil,
    read_rows,
    reconstruct,
    write_ct,
)
from dataset_factory import SMALL, series

from MAESILLib.commands import reconstruct as command
from MAESILLib.ct import dicom
from MAESILLib.data import tree
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.reconstruct.results import measure

STUDY = "0020|000d"


def write_series(folder: Path, number: int, study: str = "1.2.3") -> Path:
    return series(folder, f"1.2.{number}", SMALL[0], seed=number, number=str(number), tags={STUDY: study})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two CTs of one name, two DICOM studies of which one has a report, a file that is none, and a label map."""
    folder = tmp_path / "scans"
    write_ct(folder / "a" / "ct.nii.gz", SMALL)
    write_ct(folder / "b" / "ct.nrrd", SMALL, seed=1)
    write_ct(folder / "b" / "ct_seg.nrrd", SMALL)
    write_series(folder / "p1" / "series", 1)
    write_series(folder / "p2" / "series", 2, "1.2.4")
    series(folder / "p2" / "report", "1.2.9", 2, modality="SR", tags={STUDY: "1.2.4"})
    (folder / "broken.nii.gz").write_text("no image")
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the results that are made, and "checkpoint" for each time that it is loaded."""
    done: list[str] = []
    one, load = command._reconstruct, "MAESILLib.reconstruct.results.load_checkpoint"

    def counted(*arguments: object, **options: object) -> object:
        done.append(Path(arguments[6]).name)
        return one(*arguments, **options)

    monkeypatch.setattr(command, "_reconstruct", counted)
    monkeypatch.setattr(load, lambda *arguments: (done.append("checkpoint"), load_checkpoint(*arguments))[1])
    return done


def several(output: Path, checkpoint: Path, *inputs: Path) -> Result:
    arguments = ("--output", output, "--checkpoint", checkpoint, "--no-figure", *QUIET)
    return maesil("reconstruct", *inputs, *arguments)


def table(folder: Path) -> dict[str, dict[str, str]]:
    return {row["result"]: row for row in read_rows(folder / "metrics.csv")}


def test_a_folder_of_results_each_and_one_failure(
    tmp_path: Path, scans: Path, checkpoint: Path, made: list[str]
) -> None:
    out = tmp_path / "out"
    result = reconstruct(scans, out, checkpoint)
    names = {"a_ct": "a/ct.nii.gz", "b_ct": "b/ct.nrrd", "p1_series": "p1/series", "p2_series": "p2/series"}
    assert result.status == 2
    failed, ended = result.err.splitlines()
    assert failed.startswith(f"maesil: {scans / 'broken.nii.gz'}")
    assert ended.startswith("maesil: 1 of 5 inputs failed")
    assert {path.name for path in out.iterdir()} == {*names, "metrics.csv"}
    rows = table(out)
    assert {name: row["input"] for name, row in rows.items()} == {n: str(scans / p) for n, p in names.items()}
    for name, row in rows.items():
        metrics = json.loads((out / name / "metrics.json").read_text())
        assert float(row["psnr_masked_db"]) == metrics["psnr_masked_db"]
        assert {*metrics["files"], "metrics.json"} == {path.name for path in (out / name).iterdir()}
        assert f"| {name} | {metrics['psnr_masked_db']:.2f} |" in result.out
    assert made.count("checkpoint") == 1


def test_headers_of_a_series_are_read_once(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "in", 1)
    looks: list[str] = []
    for module in (dicom, tree):
        look = module.slices_of
        monkeypatch.setattr(module, "slices_of", lambda path, look=look: (looks.append(path.name), look(path))[1])
    reconstruct(tmp_path / "in", tmp_path / "out", checkpoint).checked()
    maesil("info", tmp_path / "in", *QUIET).checked()
    assert sorted(looks) == sorted(2 * [path.name for path in (tmp_path / "in").iterdir()])


def test_a_result_is_that_of_its_input_alone(tmp_path: Path, scans: Path, checkpoint: Path) -> None:
    """The mask follows from the volume's own name, not from that of its folder."""
    reconstruct(scans / "b" / "ct.nrrd", tmp_path / "one", checkpoint).checked()
    two = (scans / "b" / "ct.nrrd", scans / "a" / "ct.nii.gz")
    several(tmp_path / "two", checkpoint, *two).checked()
    for name in ("mask", "reconstruction"):
        one, other = (tmp_path / folder / f"{name}.nrrd" for folder in ("one", "two/b_ct"))
        assert one.read_bytes() == other.read_bytes()


def test_a_second_call_makes_what_is_missing_or_changed(
    tmp_path: Path, scans: Path, checkpoint: Path, made: list[str]
) -> None:
    def again(*more: object) -> list[str]:
        made.clear()
        reconstruct(scans, tmp_path / "out", checkpoint, *more)
        return sorted(set(made) - {"checkpoint", "broken"})

    everything = ["a_ct", "b_ct", "p1_series", "p2_series"]
    assert again() == everything
    first = table(tmp_path / "out")
    assert again() == []
    assert table(tmp_path / "out") == first
    assert again("--seed", "1") == again("--hu-offset", "1") == again("--format", "nii.gz") == everything
    assert again("--format", "nii.gz", "--threads", "1") == []
    again()
    # half written, changed since, damaged
    (tmp_path / "out" / "a_ct" / "metrics.json").unlink()
    (tmp_path / "out" / "a_ct" / ".partial-12345678").mkdir()
    write_ct(scans / "b" / "ct.nrrd", SMALL, seed=5)
    (tmp_path / "out" / "p1_series" / "metrics.json").write_text("{")
    assert again() == everything[:3]
    assert not list(tmp_path.rglob(".partial*"))


def test_the_result_of_another_input_stays(tmp_path: Path, scans: Path, checkpoint: Path, made: list[str]) -> None:
    inputs = ("a/ct.nii.gz", "b/ct.nrrd")
    several(tmp_path / "out", checkpoint, *map(scans.joinpath, inputs)).checked()
    before = (tmp_path / "out" / "a_ct" / "metrics.json").read_bytes()
    scans.rename(tmp_path / "moved")
    for _ in range(2):
        several(tmp_path / "out", checkpoint, *map((tmp_path / "moved").joinpath, inputs)).checked()
    assert (tmp_path / "out" / "a_ct" / "metrics.json").read_bytes() == before
    assert len(list((tmp_path / "out").glob("*_ct*"))) == 4
    assert len(made) == 4 + 3
    # nor what another program wrote
    for text in ('{"request": "mine"}', '{"input": 1}'):
        (tmp_path / "out" / "a_ct" / "metrics.json").write_text(text)
        several(tmp_path / "out", checkpoint, *map((tmp_path / "moved").joinpath, inputs)).checked()
        assert (tmp_path / "out" / "a_ct" / "metrics.json").read_text() == text


def test_results_are_no_inputs(tmp_path: Path, scans: Path, checkpoint: Path, made: list[str]) -> None:
    (scans / "broken.nii.gz").unlink()
    for _ in range(2):
        reconstruct(scans, scans / "out", checkpoint).checked()
    assert len(made) == 4 + 2


def test_one_study_is_one_input(tmp_path: Path, checkpoint: Path) -> None:
    study = tmp_path / "study"
    write_series(study / "thin", 1)
    write_series(study / "thick", 2)
    assert_refused(reconstruct(study, tmp_path / "out", checkpoint), "2 CT series", "--series")
    reconstruct(study, tmp_path / "out", checkpoint, "--series", "2").checked()
    assert (tmp_path / "out" / "metrics.json").exists()
    for name in ("thin", "thick"):
        shutil.move(study / name, tmp_path / name)
    several(tmp_path / "two", checkpoint, tmp_path / "thin", tmp_path / "thick").checked()
    assert set(table(tmp_path / "two")) == {"thin", "thick"}


def test_a_missing_input_and_an_empty_folder_are_said(tmp_path: Path, scan: Path, checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = several(tmp_path / "out", checkpoint, scan, tmp_path / "gone.nrrd", tmp_path / "empty")
    lines = result.err.splitlines()
    assert ["no such file" in lines[0], "no DICOM CT series" in lines[1], "2 of 3 inputs failed" in lines[2]] == [
        True
    ] * 3
    assert set(table(tmp_path / "out")) == {"scan"}


def test_events(tmp_path: Path, scans: Path, checkpoint: Path) -> None:
    result = reconstruct(scans, tmp_path / "out", checkpoint, *JSON)
    assert "1 of 5" in assert_refused_event(result, "bad_input", 2)["message"]
    inputs = [event for event in result.named("info") if event["what"] == "input"]
    assert [(event["number"], event["inputs"]) for event in inputs] == [(n, 5) for n in range(1, 6)]
    assert [event for event in result.named("warning") if "broken" in event["message"]]
    kinds = [event["kind"] for event in result.named("artifact")]
    assert (kinds.count("metrics"), kinds[-1]) == (4, "table")


@pytest.mark.parametrize("error", ["memory", "bug"])
def test_one_that_fails_otherwise(
    tmp_path: Path, scans: Path, checkpoint: Path, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_once(*arguments: object, **options: object) -> object:
        monkeypatch.setattr("MAESILLib.reconstruct.results.measure", measure)
        raise MemoryError if error == "memory" else ZeroDivisionError("a bug")

    monkeypatch.setattr("MAESILLib.reconstruct.results.measure", fails_once)
    (scans / "broken.nii.gz").unlink()
    result = reconstruct(scans, tmp_path / "out", checkpoint)
    assert result.status == (4 if error == "memory" else 2)
    assert f"{scans}" in result.err.splitlines()[0]
    assert len(result.err.splitlines()) == 2
    assert len(table(tmp_path / "out")) == 3


def test_a_stop_between_inputs(
    tmp_path: Path, scans: Path, checkpoint: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (scans / "broken.nii.gz").unlink()
    stop = tmp_path / "stop"
    one = command._reconstruct
    with monkeypatch.context() as patch:
        patch.setattr(command, "_reconstruct", lambda *a, **options: (one(*a, **options), stop.touch()))
        result = reconstruct(scans, tmp_path / "out", checkpoint, "--stop-file", stop)
    assert_refused(result, "stop file", status=3)
    assert made == ["checkpoint", "a_ct"]
    stop.unlink()
    reconstruct(scans, tmp_path / "out", checkpoint, "--stop-file", stop).checked()
    assert len(made) == 2 + 1 + 3
