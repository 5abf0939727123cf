"""Events and results as a command says them, whatever files are called."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_factory import (
    JSON,
    assert_refused_event,
    maesil,
    maesil_process,
    reconstruct,
    reconstruction,
    run_process,
    write_ct,
)
from volume_factory import forget_orientation

from MAESILLib import __version__
from MAESILLib.runtime.events import EVENTS, Reporter, parse_event
from MAESILLib.runtime.stopping import StopRequest


class TestEvents:
    def test_a_run_in_json(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        result = run_process(*reconstruction(scan, tmp_path / "out", checkpoint, *JSON)).checked()
        assert result.err == ""
        events = result.events
        started = {"event": "started", "pid": events[0]["pid"], "version": __version__, "command": "reconstruct"}
        assert events[0] == started
        assert events[-1]["event"] == "done"
        assert 0 < events[-1]["seconds"] < 60
        assert [e["event"] for e in events].count("started") == 1
        assert [e["event"] for e in events].count("done") == 1
        artifacts = {e["kind"]: Path(e["path"]) for e in result.named("artifact")}
        assert set(artifacts) == {"masked", "reconstruction", "composite", "error", "mask", "metrics"}
        assert {path.name for path in artifacts.values()} == {p.name for p in (tmp_path / "out").iterdir()}
        fractions = [e["fraction"] for e in result.named("progress") if e["stage"] == "reconstruct"]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert all(0 <= e["fraction"] <= 1 for e in result.named("progress"))

    def test_artifacts_exist_when_they_are_announced(
        self, tmp_path: Path, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def artifact(self: Reporter, kind: str, path: Path) -> None:
            seen.append(kind)
            assert path.is_file()
            assert json.loads((tmp_path / "out" / "metrics.json").read_text())["schema"] == "maesil-reconstruction/2"

        monkeypatch.setattr(Reporter, "artifact", artifact)
        reconstruct(scan, tmp_path / "out", checkpoint).checked()
        assert len(seen) == 6

    def test_results_for_people(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        for mode in ("bar", "off"):
            result = reconstruct(scan, tmp_path / "out", checkpoint, "--progress", mode).checked()
            metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
            rows = dict(line.split("  ", 1) for line in map(str.rstrip, result.out.strip().splitlines()))
            assert "40 x 48 x 44 voxels (D x H x W)" in rows["input"]
            assert rows["PSNR of hidden patches"].strip() == f"{metrics['psnr_masked_db']:.2f} dB"
            assert rows["MAE of hidden patches"].strip() == f"{metrics['mae_masked_hu']:.1f} HU"
            assert "{" not in result.out
        assert result.err == ""

    def test_warnings_are_events(self, tmp_path: Path, checkpoint: Path) -> None:
        path = forget_orientation(write_ct(tmp_path / "scan.nii"))
        result = reconstruct(path, tmp_path / "o", checkpoint, *JSON).checked()
        assert "left and right are a guess" in result.named("warning")[0]["message"]

    def test_parse_event(self) -> None:
        assert parse_event("not json") is None
        assert parse_event("[1]") is None
        assert parse_event('{"event": "unknown"}') is None
        assert parse_event('{"event": "done"}') is None, "an event without its keys"
        assert parse_event('{"event": "done", "seconds": 1}') == {"event": "done", "seconds": 1}

    def test_the_schema_holds_what_the_design_names(self) -> None:
        assert set(EVENTS) >= {"started", "progress", "metric", "artifact", "error", "done"}
        assert set(EVENTS["error"]) == {"kind", "message", "hint"}

    def test_events_do_not_wait_in_a_buffer(self) -> None:
        class Pipe(io.StringIO):
            arrived = ""

            def flush(self) -> None:
                self.arrived = self.getvalue()

        out = Pipe()
        Reporter("json", out, io.StringIO()).started("info")
        assert parse_event(out.arrived) is not None

    def test_texts_that_are_awkward(self) -> None:
        out, log = io.StringIO(), io.StringIO()
        reporter = Reporter("json", out, log)
        reporter.error("bad_input", "no such file: a\nb\udce9", "check\nit")
        assert log.getvalue().count("\n") == 1
        out.getvalue().encode("ascii")
        event = parse_event(out.getvalue())
        assert event["message"] == "no such file: a b\udce9"

    def test_progress_is_not_reported_too_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(np.arange(0, 100, 0.01))
        monkeypatch.setattr("MAESILLib.runtime.events.time.monotonic", lambda: float(next(clock)))
        out = io.StringIO()
        reporter = Reporter("json", out, io.StringIO())
        for number in range(101):
            reporter.progress("work", number / 100)
        events = [json.loads(line) for line in out.getvalue().splitlines()]
        assert 10 <= len(events) <= 13
        assert events[-1]["fraction"] == 1
        assert events[5]["eta_s"] == pytest.approx(1 - events[5]["fraction"], abs=0.06)


class TestNames:
    """File names a user may have."""

    @pytest.mark.parametrize("name", ["scan of Müller", "扫描", "a b'c\"d$(e)", "-n", "x.y.z"])
    def test_unusual_names(self, tmp_path: Path, checkpoint: Path, name: str) -> None:
        path = write_ct(tmp_path / "plain.nii.gz", (16, 24, 24)).rename(tmp_path / f"{name}.nii.gz")
        result = reconstruct(path, tmp_path / name, checkpoint, *JSON).checked()
        assert {Path(e["path"]).parent for e in result.named("artifact")} == {tmp_path / name}
        metrics = json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["input"]["name"] == name
        assert metrics["input"]["path"] == str(path)

    def test_a_name_never_commands_the_terminal(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "scan.nrrd", (16, 24, 24)).rename(tmp_path / "\x1b[31m\t\x07\x9b|.nrrd")
        for result in (maesil("info", path), maesil("info", path / "none")):
            assert r"\x1b[31m\t\x07\x9b|" in result.out + result.err
            assert (result.out + result.err).replace("\n", "").isprintable()

    def test_name_that_is_not_utf8(self, tmp_path: Path, checkpoint: Path) -> None:
        folder = os.fsencode(tmp_path) + b"/caf\xe9"
        try:
            os.mkdir(folder)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        path = write_ct(tmp_path / "scan.nrrd", (16, 24, 24)).rename(Path(os.fsdecode(folder + b"/t\xeate.nrrd")))
        # ITK ends the process for such a name
        for result in (
            run_process(*reconstruction(path, tmp_path / "out", checkpoint, *JSON)),
            reconstruct(path, tmp_path / "out", checkpoint, *JSON),
            maesil("info", path.parent, *JSON),
        ):
            assert "not UTF-8" in assert_refused_event(result, "bad_input", 2)["message"]
        assert not (tmp_path / "out").exists()

    def test_closed_output(self, scan: Path) -> None:
        """As in ``maesil info scan | head -0``."""
        process = maesil_process("info", scan)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 3


def test_a_reader_that_goes_away_ends_the_work_cleanly() -> None:
    """The work is asked to stop, not torn down: a training has a state to save."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stop = StopRequest()
    reporter = Reporter("json", out=Gone(), log=io.StringIO())
    reporter.on_reader_gone = lambda: stop.ask("output pipe closed")
    reporter.progress("pretrain", 0.5)
    reporter.artifact("checkpoint", "model.safetensors")
    assert stop.requested()
    assert stop.reason == "output pipe closed"
    with pytest.raises(BrokenPipeError):
        Reporter("json", out=Gone(), log=io.StringIO()).progress("pretrain", 0.5)
