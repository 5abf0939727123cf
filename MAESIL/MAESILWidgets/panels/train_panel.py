"""The Train section: data, model, start, stop, resume, and what is to be seen meanwhile."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MAESILWidgets.jobs.commands import TrainOptions
from MAESILWidgets.jobs.job import CANCELLED, FINISHED, ask
from MAESILWidgets.jobs.training_task import TrainingTask, is_resumable
from MAESILWidgets.messages import Failure
from MAESILWidgets.panels.choices import DATA_SOURCES, PRESETS, TRAIN_MASKS, Choice, show_text
from MAESILWidgets.panels.section import JobSection
from MAESILWidgets.scene import outlines, training_preview
from MAESILWidgets.scene.layout import TRAINING_LAYOUT_ID
from MAESILWidgets.scene.training_plots import TrainingPlots

DICOM = ("", ".dcm", ".ima")
NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
MOST_NAMES = 2000
STAGES = {"export": _("Writing the volumes"), "prepare": _("Preparing the data"), "pretrain": _("Training")}


class TrainPanel(JobSection):
    """Starts, shows, stops and resumes trainings."""

    def __init__(self, panel: Any) -> None:
        ui = panel.ui
        super().__init__(panel, ui.trainProgressBar, ui.trainStatusLabel)
        self.system, self.views = panel.system, panel.views
        self._looked: tuple[str, str] | None = None
        self.has_data = self.has_nifti = self.is_resumable = False
        self.series_job: Any = None
        self._listed = self.series = ""
        self.plots = TrainingPlots()
        self.source = Choice(ui.dataSourceSelector, DATA_SOURCES, lambda value: self.set("dataSource", value))
        self.preset = Choice(ui.presetSelector, PRESETS, lambda value: self.set("preset", value))
        self.mask = Choice(ui.trainMaskSelector, TRAIN_MASKS, lambda value: self.set("trainMask", value))
        ui.dataFolderSelector.connect("currentPathChanged(QString)", lambda path: self.set("dataFolder", path))
        ui.runFolderSelector.connect("currentPathChanged(QString)", lambda path: self.set("runFolder", path))
        ui.sceneVolumesSelector.connect("checkedNodesChanged()", lambda: self.update())
        ui.trainButton.connect("clicked(bool)", lambda _checked: self.start())
        ui.resumeTrainButton.connect("clicked(bool)", lambda _checked: self.start(resume=True))
        ui.stopTrainButton.connect("clicked(bool)", lambda _checked: self.cancel())
        ui.curvesButton.connect("clicked(bool)", lambda _checked: self.show())
        ui.trainFiguresLabel.setVisible(False)

    def update(self) -> None:
        if self.parameters is None:
            return
        p, ui = self.parameters, self.ui
        self.source.select(p.dataSource)
        self.preset.select(p.preset)
        self.mask.select(p.trainMask)
        for widget, path in ((ui.dataFolderSelector, p.dataFolder), (ui.runFolderSelector, p.runFolder)):
            if widget.currentPath != path:
                widget.currentPath = path
        for is_shown, widgets in (
            (p.dataSource == "folder", (ui.dataFolderLabel, ui.dataFolderSelector)),
            (p.dataSource == "scene", (ui.sceneVolumesLabel, ui.sceneVolumesSelector)),
        ):
            for widget in widgets:
                widget.setVisible(is_shown)
        self._look()
        self.system.look_for_nifti(p.dataSource == "folder" and self.has_nifti)
        is_running = self.task is not None
        problem, no_resume = self.problem(), self.resume_problem()
        ui.trainButton.enabled = not is_running and not problem
        ui.trainButton.toolTip = problem or _("Train a new model.")
        ui.resumeTrainButton.enabled = not is_running and not no_resume
        ui.resumeTrainButton.toolTip = no_resume or _("Resume the training in the output folder.")
        ui.stopTrainButton.enabled = is_running
        told = () if is_running else (problem if no_resume else "", self.series)
        show_text(ui.trainInfoLabel, "\n".join(filter(None, told)))

    def problem(self) -> str:
        """Return why Start is disabled; empty if it is not."""
        p = self.parameters
        if self.system.wanted():
            names = ", ".join(package.name for package in self.system.wanted())
            return _("Install the Python packages in the Advanced section: {names}").format(names=names)
        if p.dataSource == "folder" and not self.has_data:
            return _("Choose the folder of CTs to learn from")
        if p.dataSource == "scene" and not self._scene_nodes():
            return _("Check at least one volume of the scene")
        if not p.runFolder:
            return _("Choose an output folder")
        if self.is_resumable:
            return _("The output folder already holds a training: resume it, or choose another folder")
        return ""

    def resume_problem(self) -> str:
        """Return why Resume is disabled; empty if it is not."""
        no_training = "" if self.is_resumable else _("The output folder holds no training to resume")
        return self.missing_packages() or no_training

    def look_at_folders(self) -> None:
        """Look anew at what the chosen folders hold; they may lie on a slow share, so not at every turn."""
        self._looked = None
        self.update()

    def _look(self) -> None:
        """See what the chosen folders (data, run) hold, unless that was seen already."""
        chosen = (self.parameters.dataFolder, self.parameters.runFolder)
        if self._looked != chosen:
            self._looked = chosen
            data, run = (Path(folder) if folder else None for folder in chosen)
            # a name among so many tells: a large tree would hold Slicer up
            names = list(itertools.islice(data.rglob("*"), MOST_NAMES)) if data is not None else []
            self.has_data = data is not None and data.is_dir()
            self.has_nifti = any(path.name.lower().endswith(NIFTI) for path in names)
            self.is_resumable = run is not None and is_resumable(run)
            self._list_series(chosen[0], any(path.suffix.lower() in DICOM and path.is_file() for path in names))

    def _list_series(self, folder: str, is_dicom: bool) -> None:
        """List the CT series of a DICOM folder in the background, as the command line does where they are several."""
        if folder == self._listed:
            return
        self._listed, self.series = folder, ""
        if self.series_job is not None:
            self.series_job.kill()
        if is_dicom:
            with suppress(FileNotFoundError):
                self.series_job = ask(["info", folder], self._on_series)

    def _on_series(self, event: dict[str, Any]) -> None:
        if event["event"] in ("error", "warning") and " CT series " in event["message"]:
            self.series = event["message"].replace(": ", ":\n", 1).replace("; ", "\n")
            self.update()

    def start(self, resume: bool = False) -> None:
        """Start or resume."""
        self.run(lambda: self._task(resume), _("The training could not be started."))

    def _task(self, resume: bool) -> TrainingTask:
        p = self.parameters
        self._steps, self._run = int(p.steps), p.runFolder
        self.plots.begin(read_rows(Path(p.runFolder)) if resume else None)
        self.show()
        show_text(self.ui.trainFiguresLabel, "")
        return TrainingTask(
            TrainOptions(p.runFolder, p.preset, self._steps, p.trainMask, p.device, int(p.seed), resume),
            [p.dataFolder] if p.dataSource == "folder" else [],
            self._scene_nodes() if p.dataSource == "scene" and not resume else [],
            on_event=self._on_event,
            on_stage=self._on_stage,
            on_log=self.panel.log,
            on_end=self._ended,
        )

    def cancel(self) -> None:
        """Stop; the state is saved."""
        self.bar.setFormat(_("Saving the state..."))
        self.ui.stopTrainButton.enabled = False
        super().cancel()

    def show(self) -> None:
        """Show curves and preview in the views."""
        from MAESILLib.training.run_folder import PREVIEW_VOLUME

        self.views.switch(TRAINING_LAYOUT_ID)
        outlines.hide()
        self.plots.show()
        latest = Path(self._run if self.task is not None else self.parameters.runFolder or "?") / PREVIEW_VOLUME
        if latest.is_file():
            self._show_preview(latest)
        else:
            # what an earlier training left there
            self.views.show_preview({})

    def stop(self) -> None:
        """Let the worker save its state and end: Slicer or the module is closing."""
        if self.series_job is not None:
            self.series_job.kill()
        super().stop()

    def _scene_nodes(self) -> list[Any]:
        return list(self.ui.sceneVolumesSelector.checkedNodes())

    def _on_stage(self, stage: str) -> None:
        # a resumed training has steps behind it
        rows = self.plots.rows["training"] if stage == "pretrain" else []
        self.bar.value = int(1000 * rows[-1][0] / self._steps) if rows else 0
        self._stage = STAGES[stage]
        self.bar.setFormat(f"{self._stage} (%p%)")

    def _on_event(self, event: dict[str, Any]) -> None:
        from MAESILLib.runtime.events import clock

        kind = event["event"]
        if kind == "progress" and not self.task.job.is_cancelling:
            self.bar.value = int(1000 * event["fraction"])
            left = "" if event["eta_s"] is None else _(", {t} left").format(t=clock(event["eta_s"]))
            self.bar.setFormat(f"{self._stage} (%p%){left}")
            self.panel.tell(f"{self._stage} ({event['fraction']:.0%}){left}")
        elif kind == "metric":
            self.plots.add(event)
            show_text(self.ui.trainFiguresLabel, self._figures(event))
        elif kind == "artifact" and event["kind"] == "preview_volume":
            self._show_preview(Path(event["path"]))
        elif kind == "warning":
            show_text(self.status, f"⚠ {event['message']}")

    def _figures(self, event: dict[str, Any]) -> str:
        parts = [_("Step {n:,} of {all:,}").format(n=int(event["step"]), all=self._steps)]
        for key, form in (
            ("loss", _("loss {v:.4f}")),
            ("psnr_masked_db", _("PSNR {v:.2f} dB")),
            ("val_psnr_masked_db", _("validation {v:.2f} dB")),
            ("samples_per_s", _("{v:.2g} samples/s")),
        ):
            if event.get(key) is not None:
                parts.append(form.format(v=event[key]))
        return ", ".join(parts)

    def _show_preview(self, path: Path) -> None:
        if self.task is not None and self.plots.is_lost():
            # another scene than the one it was begun in: that one's user did not ask for it
            return
        try:
            nodes = training_preview.load(path)
        except (OSError, ValueError, KeyError) as error:
            self.panel.log(f"preview {path}: {error}")
            return
        if self.views.is_shown(TRAINING_LAYOUT_ID):
            self.views.show_preview(nodes)

    def _ended(self, state: str, checkpoint: str, failure: Failure | None) -> None:
        self.plots.end()
        # look anew at the folders
        self._looked = None
        if state == FINISHED:
            text = _("Done. The checkpoint is selected above: {path}").format(path=checkpoint)
            self.finish(text, _("the training is done"))
        elif state == CANCELLED and is_resumable(Path(self._run)):
            self.finish(_("Stopped. Click Resume to continue."))
        elif state == CANCELLED:
            self.finish(_("Stopped; no state was saved, so there is nothing to resume."))
        elif failure is not None:
            self.finish(f"⚠ {failure.text()}", failure.text())
        if checkpoint and state in (FINISHED, CANCELLED):
            # a stopped training is not done: its checkpoint is offered, not chosen
            self.panel.input.add_checkpoint(checkpoint, state == FINISHED)


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log.csv as metric events."""
    from MAESILLib.training.log import read_log

    path = run / "log.csv"
    if not path.is_file():
        return []
    return [row for row in read_log(path) if row.get("step") is not None]
