"""The Advanced section, and the module from Python."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import slicer
from cli_factory import maesil
from gui_factory import RESULT_KINDS, apply_and_wait, ct_node, load_ct, result_of, use_checkpoint

from MAESILLib import __version__


class TestAdvanced:
    def test_the_command_is_copied_as_for_a_terminal(
        self, host: Any, panel: Any, checkpoint: Path, scan: Path, tmp_path: Path, qt: Any
    ) -> None:
        """It names the volume's own file and, run as it is, in a shell, gives the same metrics."""

        def copied() -> list[str]:
            apply_and_wait(host, panel)
            panel.ui.copyCommandButton.click()
            return shlex.split(qt.QApplication.clipboard().text())

        assert not panel.ui.copyCommandButton.enabled
        use_checkpoint(panel, checkpoint)
        # made in Slicer: it has no file of its own
        panel.parameters.inputVolume = ct_node(name="a b's")
        words = copied()
        assert words[:6] == ["maesil", "reconstruct", "CT.nrrd", "--name=a b's", "--output", "result"]
        assert str(checkpoint) in words
        panel.parameters.inputVolume = load_ct(scan)
        panel.parameters.inputVolume.SetName("renamed")
        words = copied()
        assert words[2] == str(scan)
        words[words.index("result")] = str(tmp_path / "copied")
        maesil(*words[1:], "--progress", "off").checked()
        metrics = json.loads((tmp_path / "copied" / "metrics.json").read_text())
        assert metrics["psnr_masked_db"] == pytest.approx(result_of(panel).metrics["psnr_masked_db"], abs=1e-4)

    def test_versions_and_devices(self, host: Any, panel: Any, qt: Any) -> None:
        panel.system.refresh()
        host.process_events(until=lambda: panel.system.job is None, timeout=60)
        panel.ui.copyDiagnosticsButton.click()
        text = qt.QApplication.clipboard().text()
        for part in (f"MAESIL {__version__}", "Slicer 5.", "torch 2.", "GiB"):
            assert part in text
        combo = panel.ui.deviceSelector
        assert combo.findData("cpu") >= 0
        assert "GiB" in combo.itemText(combo.findData("cpu"))


class TestLogic:
    def test_from_python(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import MAESIL

        seen = []
        assert isinstance(slicer.util.getModuleLogic("MAESIL"), MAESIL.MAESILLogic)
        result = MAESIL.MAESILLogic().reconstruct(
            ct_node(),
            checkpoint=str(checkpoint),
            coverage="complete",
            waitForCompletion=True,
            onProgress=lambda share, stage, eta: seen.append((share, stage)),
        )
        assert result.metrics["mask"]["coverage"] == "complete"
        host.process_events()
        assert panel.ui.resultSelector.findData(result.id) >= 0
        assert set(RESULT_KINDS) <= {kind for kind in RESULT_KINDS if result.node(kind) is not None}
        shares = [share for share, _stage in seen]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert json.loads(result.text_node.GetText())["schema"] == "maesil-reconstruction/2"

    def test_errors_are_raised(self, panel: Any, tmp_path: Path) -> None:
        import MAESIL

        logic = MAESIL.MAESILLogic()
        with pytest.raises(ValueError, match="no volume"):
            logic.reconstruct(None)
        with pytest.raises(ValueError, match="no such checkpoint"):
            logic.reconstruct(ct_node(), checkpoint=str(tmp_path / "none.safetensors"))
        with pytest.raises(RuntimeError, match="cuda"):
            logic.reconstruct(ct_node(), device="cuda:7", waitForCompletion=True)

    def test_sample_data_is_registered(self, host: Any, panel: Any) -> None:
        import SampleData

        assert [one["sampleName"] for one in host.sample_data if one["category"] == "MAESIL"] == ["MAESILSampleCT"]
        node = SampleData.SampleDataLogic().downloadSample("MAESILSampleCT")
        assert node.GetName() == "MAESILSampleCT"
        assert node.GetImageData().GetDimensions() == (199, 138, 51)

    def test_self_test(self, host: Any, panel: Any, sample_part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The module's own test, as Slicer runs it with the embedded checkpoint, on a part of the sample."""
        import MAESIL

        monkeypatch.setattr("MAESILWidgets.scene.sample.FILE", str(sample_part))
        MAESIL.MAESILTest().runTest()

    def test_self_test_without_torch(self, host: Any, panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the machines of the Extensions Index run it: what the worker reports was recorded."""
        from MAESILWidgets.jobs import packages
        from MAESILWidgets.scene.results_scene import results

        import MAESIL

        monkeypatch.setitem(packages.REQUIRED, "torch", "999")
        for name in ("psutil", "safetensors"):
            monkeypatch.setitem(sys.modules, name, None)
        MAESIL.MAESILTest().runTest()
        assert packages.REQUIRED["torch"] == "999"
        ((name, text), *_rest) = results()[-1].rows()
        assert (name, text) == ("Hidden patches", "74.8%")
        # it stood in for that test alone
        assert panel.system.missing()
