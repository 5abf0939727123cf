"""MAESIL: reconstruct masked CT and train superpatch masked autoencoders, in Slicer.

The work is done by MAESILLib in background processes, the panel by MAESILWidgets. :class:`MAESILLogic` is for scripts.
"""

import sys
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

FOLDER = Path(__file__).resolve().parent
IS_SUPPORTED = sys.version_info >= (3, 11)

for _folder in (FOLDER, FOLDER.parent):
    # developers add this file's folder alone to the module paths; a package has everything in one folder
    if (_folder / "MAESILLib" / "__init__.py").is_file() and str(_folder) not in sys.path:
        sys.path.append(str(_folder))
if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))


def resource(relative):
    """Return the path of a file in Resources: beside this file in a package, one folder up in a checkout."""
    found = [folder / "Resources" / relative for folder in (FOLDER, FOLDER.parent)]
    return str(next((path for path in found if path.is_file()), found[0]))


class MAESIL(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        from MAESILWidgets.panels import words

        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MAESIL")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Utilities")]
        parent.contributors = ["MAESIL contributors (MAESIL)"]
        parent.helpText, parent.acknowledgementText = words.HELP, words.ACKNOWLEDGEMENT
        parent.icon = qt.QIcon(resource("Icons/MAESIL.png"))
        slicer.app.connect("startupCompleted()", onStartupCompleted)


def onStartupCompleted():
    """Register the layouts and the sample when Slicer is up."""
    if IS_SUPPORTED:
        from MAESILWidgets.jobs import running
        from MAESILWidgets.scene import layout, sample

        layout.register()
        slicer.app.connect("aboutToQuit()", running.abandon_all)
        sample.register(resource)


class MAESILWidget(ScriptedLoadableModuleWidget):
    """The panel; what it does is in MAESILWidgets/panels/module_panel.py."""

    panel = None

    def setup(self):
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        if not IS_SUPPORTED:
            self.explainPython()
            return
        from MAESILWidgets.panels.module_panel import ModulePanel

        widget = slicer.util.loadUI(resource("UI/MAESIL.ui"))
        self.layout.addWidget(widget)
        # a reloaded module is set up while it is open, and not entered again
        entered = getattr(self.parent, "isEntered", False)
        self.logic = MAESILLogic()  # where slicer.util.getModuleLogic looks for it
        self.panel = ModulePanel(widget, self.logic, resource, bool(entered() if callable(entered) else entered))

    def cleanup(self):
        """Stop everything: the module is reloaded, or Slicer closes."""
        if self.panel is not None:
            self.panel.close()
        self.panel = None

    def enter(self):
        """The module is opened."""
        if self.panel is not None:
            self.panel.enter()

    def exit(self):
        """Another module is opened."""
        if self.panel is not None:
            self.panel.exit()

    def onReload(self):
        """Developers: load this module, its parts and the library anew."""
        name = self.moduleName
        # before its parts are gone
        self.cleanup()
        for module in list(sys.modules):
            if module.split(".")[0] in ("MAESILLib", "MAESILWidgets"):
                del sys.modules[module]
        slicer.util.reloadScriptedModule(name)

    def explainPython(self):
        """Say which Slicer is needed."""
        text = _("MAESIL needs Slicer 5.10 or later (Python 3.11); this one has Python {found}.")
        label = qt.QLabel(text.format(found=sys.version.split()[0]))
        label.setWordWrap(True)
        self.layout.addWidget(label)
        self.layout.addStretch(1)


class MAESILLogic(ScriptedLoadableModuleLogic):
    """What the module does, without its panel."""

    def getParameterNode(self):
        """Return the panel's choices, as saved with the scene."""
        from MAESILWidgets.panels.parameters import MAESILParameterNode

        return MAESILParameterNode(super().getParameterNode())

    def reconstruct(
        self,
        volumeNode,
        checkpoint="",
        mask="dual",
        planeRatio=0.5,
        axisRatio=0.5,
        coverage="single",
        overlap=0.0,
        seed=0,
        device="auto",
        completion=True,
        paintedNode=None,
        segment="",
        waitForCompletion=False,
        onProgress=None,
        onEnd=None,
    ):
        """Reconstruct a CT in the background.

        :param volumeNode: scalar volume in Hounsfield units.
        :param checkpoint: path of a MAESIL checkpoint; the embedded one if empty.
        :param mask: dual, uniform, product, tube, group, block or none.
        :param planeRatio, axisRatio: shares that are hidden, 0 to 0.95.
        :param coverage: single, or complete (every patch predicted from passes that hid it).
        :param overlap: share of its length by which a superpatch overlaps the next, 0 to 0.75.
        :param seed: the same seed gives the same masks.
        :param device: auto, cpu, cuda, cuda:n or mps.
        :param completion: let the completion predict hidden patches, if the checkpoint has one; else the decoder.
        :param paintedNode: segmentation or label map node; patches that hold a painted voxel are hidden as well.
        :param segment: name of the one segment of it that counts; all of them if empty.
        :param waitForCompletion: return when it is done; Slicer stays responsive.
        :param onProgress: called with the share done (0 to 1), the stage, and the seconds left or None.
        :param onEnd: called with the state (finished, failed, cancelled), the Result or None, the Failure or None.

        :return: with ``waitForCompletion`` the :class:`Result` (``metrics``, ``node(kind)`` for masked, reconstruction,
            composite, error, mask; ``delete()``); without, the running task (``cancel()``, ``is_running``).
        :raises ValueError: there is no such volume, it is not a CT, or nothing is painted.
        :raises RuntimeError: with ``waitForCompletion``, if it failed; says why and what to do.
        """
        from MAESILWidgets.jobs import running
        from MAESILWidgets.jobs.commands import ReconstructOptions
        from MAESILWidgets.scene.results_scene import Result

        ratios = (planeRatio, axisRatio)
        options = ReconstructOptions(str(checkpoint), mask, *ratios, coverage, overlap, seed, device, completion)
        task = running.reconstruct_checked(volumeNode, options, onProgress, onEnd, paintedNode, segment)
        if not waitForCompletion:
            return task
        running.wait(task)
        return Result(task.result)

    def train(
        self,
        runFolder,
        folders=(),
        volumeNodes=(),
        preset="tiny",
        steps=200,
        mask="mix",
        device="auto",
        seed=0,
        resume=False,
        waitForCompletion=False,
        onEvent=None,
        onEnd=None,
    ):
        """Train a model in the background.

        :param runFolder: folder of the training: checkpoints, log, previews, prepared data.
        :param folders: files or folders of CTs to learn from.
        :param volumeNodes: volumes of the scene to learn from, instead of ``folders``.
        :param preset: tiny, small, base or paper.
        :param steps: updates of the model.
        :param mask: mix, dual, uniform, product, tube, group or block.
        :param resume: resume the training in ``runFolder``; data need not be given then.
        :param waitForCompletion: return when it is done; Slicer stays responsive.
        :param onEvent: called with every event of the worker (a dictionary; see MAESILLib/runtime/events.py).
        :param onEnd: called with the state, the checkpoint's path, and the Failure or None.

        :return: with ``waitForCompletion`` the path of the checkpoint; without, the running task.
        :raises ValueError: there is nothing to train on.
        :raises RuntimeError: with ``waitForCompletion``, if it failed; says why and what to do.
        """
        from MAESILWidgets.jobs import running
        from MAESILWidgets.jobs.commands import TrainOptions
        from MAESILWidgets.jobs.training_task import TrainingTask

        if not resume and not folders and not volumeNodes:
            raise ValueError("there is nothing to train on: give folders or volumeNodes")
        options = TrainOptions(str(runFolder), preset, steps, mask, device, seed, resume)
        task = TrainingTask(
            options,
            [str(folder) for folder in folders],
            list(volumeNodes),
            on_event=onEvent or (lambda _: None),
            on_end=onEnd or (lambda *_: None),
        )
        running.start(task)
        if not waitForCompletion:
            return task
        running.wait(task)
        return task.checkpoint

    def loadSample(self):
        """Load the sample CT, an abdomen, and return its volume node; a RuntimeError if it cannot be loaded."""
        from MAESILWidgets.scene import sample

        return sample.load(resource)


class MAESILTest(ScriptedLoadableModuleTest):
    """Self test: from a click on Apply to nine views. Runs in a real Slicer."""

    def setUp(self):
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run what MAESILWidgets/self_test.py holds."""
        from MAESILWidgets import self_test

        self_test.run(self, MAESILLogic(), resource)
