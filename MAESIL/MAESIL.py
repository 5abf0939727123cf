"""MAESIL: reconstruct masked CT and train superpatch masked autoencoders, in Slicer.

The work is done by MAESILLib in background processes; this file puts the parts in MAESILWidgets together.
From Python in Slicer:

    import MAESIL
    logic = MAESIL.MAESILLogic()
    result = logic.reconstruct(volumeNode, mask="dual", coverage="complete", waitForCompletion=True)
    result.metrics["psnr_complete_db"], result.node("reconstruction")
"""

import sys
import time
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

FOLDER = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 11)
IS_SUPPORTED = sys.version_info >= OLDEST_PYTHON
SAMPLE = "MAESILSampleCT"

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
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MAESIL")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Utilities")]
        parent.dependencies = []
        parent.contributors = ["the MAESIL contributors"]
        parent.helpText = _(
            "Hides part of a CT, lets a superpatch masked autoencoder reconstruct it, and shows masked input, "
            "reconstruction and error map in three anatomical views. Trains such models as well. "
            "For research; not for clinical use."
        )
        parent.acknowledgementText = _("An implementation of the method of the paper MAESIL.")
        parent.icon = qt.QIcon(resource("Icons/MAESIL.png"))
        slicer.app.connect("startupCompleted()", onStartupCompleted)


def onStartupCompleted():
    """Register the layouts and the sample when Slicer is up."""
    if not IS_SUPPORTED:
        return
    from MAESILWidgets import layout, running

    layout.register()
    slicer.app.connect("aboutToQuit()", running.abandon_all)
    registerSampleData()


def registerSampleData():
    """Offer the sample CT in the Sample Data module."""
    try:
        import SampleData
    except ImportError:
        # a user may have switched that module off
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MAESIL",
        sampleName=SAMPLE,
        # copied from Resources: needs no network
        uris=Path(samplePath()).as_uri(),
        fileNames=f"{SAMPLE}.nrrd",
        nodeNames=SAMPLE,
        thumbnailFileName=resource("Icons/MAESIL.png"),
        checksums="SHA256:cb119bc38c6ed17ca8b8f6749bcd0e62cc52d158f8f67a988d93e12d2d9cfad0",
    )


def samplePath():
    """Return the path of the sample CT."""
    return resource(f"Sample/{SAMPLE}.nrrd")


class MAESILWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.parameters = None
        self.guiTag = None
        self.panels = []
        # a reloaded module is set up while it is open, and not entered again
        entered = getattr(parent, "isEntered", False)
        self.isOpen = bool(entered() if callable(entered) else entered)

    def setup(self):
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        if not IS_SUPPORTED:
            self._explainPython()
            return
        from MAESILWidgets import layout
        from MAESILWidgets.advanced_panel import AdvancedPanel
        from MAESILWidgets.input_panel import InputPanel
        from MAESILWidgets.reconstruct_panel import ReconstructPanel
        from MAESILWidgets.result_panel import ResultPanel
        from MAESILWidgets.system import System
        from MAESILWidgets.train_panel import TrainPanel

        widget = slicer.util.loadUI(resource("UI/MAESIL.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        layout.register()
        self.logic = MAESILLogic()
        self.views = layout.Views()
        self.system = System(self.update)
        self.advanced = AdvancedPanel(self.ui, self.system, lambda: self.logic.lastArguments)
        self.input = InputPanel(self.ui, self.update, self.logic.loadSample, self.views.is_shown)
        self.results = ResultPanel(self.ui, self.views)
        self.reconstruct = ReconstructPanel(
            self.ui, self.input, self.system, self.logic.startReconstruction, self.advanced.log, self.showResult
        )
        self.train = TrainPanel(
            self.ui, self.system, self.views, self.logic.startTraining, self.advanced.log, self.input.add_checkpoint
        )
        self._setIcons()
        self.panels = [self.input, self.reconstruct, self.results, self.train]
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        slicer.app.connect("aboutToQuit()", self.stopJobs)
        self.initializeParameterNode()
        self.system.refresh()
        if self.system.missing():
            self.ui.advancedSection.collapsed = False

    def cleanup(self):
        """Stop everything: the module is reloaded, or Slicer closes."""
        if self.panels:
            self.stopJobs()
            slicer.app.disconnect("aboutToQuit()", self.stopJobs)
            self.results.stop()
            self.setParameterNode(None)
            self.panels = []
        self.removeObservers()

    def enter(self):
        """The module is opened."""
        self.isOpen = True
        if self.panels:
            self.initializeParameterNode()
            self.input.list_checkpoints()
            self.train.look_at_folders()
            self.results.watch_clicks()
            self.update()

    def exit(self):
        """Another module is opened; jobs go on."""
        self.isOpen = False

    def onReload(self):
        """Developers: load this module, its parts and the library anew."""
        name = self.moduleName
        # before its parts are gone
        self.cleanup()
        for module in list(sys.modules):
            if module.split(".")[0] in ("MAESILLib", "MAESILWidgets"):
                del sys.modules[module]
        slicer.util.reloadScriptedModule(name)

    def stopJobs(self):
        """End every background process."""
        for one in (self.reconstruct, self.train, self.system):
            one.stop()

    def initializeParameterNode(self):
        """Take up the scene's parameters, made with the first volume as input where there are none."""
        if self.parameters is None:
            self.setParameterNode(self.logic.getParameterNode())
        if not self.parameters.inputVolume:
            first = firstVolume()
            if first is not None:
                self.parameters.inputVolume = first

    def setParameterNode(self, parameters):
        """Connect the panel to a parameter node, or to none."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self.guiTag)
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.update)
        self.parameters = parameters
        if parameters is not None:
            # connectGui() does the same, but returns no tag up to Slicer 5.8, so nothing could be disconnected again
            widgets = vars(self.ui).values()
            bound = {widget.property("SlicerParameterName"): widget for widget in widgets}
            self.guiTag = parameters.connectParametersToGui({name: w for name, w in bound.items() if name})
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self.update)
        for panel in self.panels:
            panel.set_parameters(parameters)
        self.advanced.update()

    def update(self, caller=None, event=None):
        """Bring every section up to date."""
        if self.parameters is None:
            return
        self.input.update()
        self.reconstruct.update()
        self.train.update()
        self.advanced.update()

    def onSceneStartClose(self, caller, event):
        """Let go of the scene's nodes."""
        self.results.stop()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """Start anew with the empty scene."""
        if self.isOpen:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event):
        """A scene was loaded: take up its parameters, its results and its views."""
        if self.parameters is not None and self.parameters.parameterNode.GetScene() is None:
            self.setParameterNode(None)
        self.initializeParameterNode()
        self.results.restore()
        self.update()

    def showResult(self, textNode):
        """Choose a new result; show it unless the user is at work in another module."""
        self.results.open(textNode, self.isOpen)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller, event, node):
        """A node left the scene: a result may have lost a part."""
        if self.parameters is None or slicer.mrmlScene.IsClosing() or node is None:
            return
        if node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLTextNode"):
            self.results.update()
            self.update()

    def _setIcons(self):
        for button, name in (
            (self.ui.applyButton, "Run"),
            (self.ui.cancelButton, "Stop"),
            (self.ui.trainButton, "Run"),
            (self.ui.resumeTrainButton, "Run"),
            (self.ui.stopTrainButton, "Stop"),
            (self.ui.layoutButton, "Layout3x3"),
            (self.ui.layoutBackButton, "LayoutBack"),
            (self.ui.outlinesCheckBox, "Outlines"),
        ):
            button.setIcon(qt.QIcon(resource(f"Icons/{name}.png")))

    def _explainPython(self):
        needed = ".".join(str(n) for n in OLDEST_PYTHON)
        label = qt.QLabel(
            _("MAESIL needs Slicer 5.10 or later (Python {needed}); this one has Python {found}.").format(
                needed=needed, found=sys.version.split()[0]
            )
        )
        label.setWordWrap(True)
        self.layout.addWidget(label)
        self.layout.addStretch(1)


def firstVolume():
    """Return the first scalar volume of the scene that is not a result of ours, or None."""
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        is_ours = node.GetAttribute("MAESIL.Kind") or node.GetAttribute("MAESIL.Preview")
        if not is_ours and not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetHideFromEditors():
            return node
    return None


class MAESILLogic(ScriptedLoadableModuleLogic):
    """What the module does, without its panel."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.lastArguments = []

    def getParameterNode(self):
        """Return the panel's choices, as saved with the scene."""
        from MAESILWidgets.parameters import MAESILParameterNode

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
        :param waitForCompletion: return when it is done; Slicer goes on responding meanwhile.
        :param onProgress: called with the share done (0 to 1), the stage, and the seconds left or None.
        :param onEnd: called with the state (finished, failed, cancelled), the Result or None, the Failure or None.

        :return: with ``waitForCompletion`` the :class:`Result` (``metrics``, ``node(kind)`` for masked, reconstruction,
            composite, error, mask; ``delete()``); without, the running task (``cancel()``, ``is_running``).
        :raises ValueError: there is no such volume, or it is not a CT.
        :raises RuntimeError: with ``waitForCompletion``, if it failed; says why and what to do.
        """
        from MAESILWidgets import checkpoints
        from MAESILWidgets.commands import ReconstructOptions
        from MAESILWidgets.results_scene import Result
        from MAESILWidgets.volume_info import describe

        if volumeNode is None:
            raise ValueError("there is no volume to reconstruct: give a scalar volume node")
        model = checkpoints.describe(str(checkpoint))
        problem = model.problem or describe(volumeNode, model.info).refusal
        if problem:
            raise ValueError(problem)
        options = ReconstructOptions(
            str(checkpoint), mask, planeRatio, axisRatio, coverage, overlap, seed, device, completion
        )

        def ended(state, textNode, failure):
            if onEnd is not None:
                onEnd(state, Result(textNode) if textNode is not None else None, failure)

        task = self.startReconstruction(volumeNode, options, on_progress=onProgress or (lambda *_: None), on_end=ended)
        if not waitForCompletion:
            return task
        self._wait(task)
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
        :param resume: go on with the training in ``runFolder``; data need not be given then.
        :param waitForCompletion: return when it is done; Slicer goes on responding meanwhile.
        :param onEvent: called with every event of the worker (a dictionary; see MAESILLib/events.py).
        :param onEnd: called with the state, the checkpoint's path, and the Failure or None.

        :return: with ``waitForCompletion`` the path of the checkpoint; without, the running task.
        :raises ValueError: there is nothing to train on.
        :raises RuntimeError: with ``waitForCompletion``, if it failed; says why and what to do.
        """
        from MAESILWidgets.commands import TrainOptions

        if not resume and not folders and not volumeNodes:
            raise ValueError("there is nothing to train on: give folders or volumeNodes")
        options = TrainOptions(str(runFolder), preset, steps, mask, device, seed, resume)
        task = self.startTraining(
            options,
            [str(folder) for folder in folders],
            list(volumeNodes),
            on_event=onEvent or (lambda _: None),
            on_end=onEnd or (lambda *_: None),
        )
        if not waitForCompletion:
            return task
        self._wait(task)
        return task.checkpoint

    def loadSample(self):
        """Load the sample CT, an abdomen, and return its volume node.

        :raises RuntimeError: it could not be loaded.
        """
        node = slicer.util.loadVolume(samplePath(), {"name": SAMPLE})
        # saving the scene then writes the volume as any new one, not into the extension
        slicer.mrmlScene.RemoveNode(node.GetStorageNode())
        return node

    def startReconstruction(self, volumeNode, options, **callbacks):
        """Start a reconstruction as MAESILWidgets asks for it; return the running task."""
        from MAESILWidgets.reconstruction_task import ReconstructionTask

        task = ReconstructionTask(volumeNode, options, **callbacks)
        self._told(task)
        task.start()
        return task

    def startTraining(self, options, inputs, nodes, **callbacks):
        """Start a training as MAESILWidgets asks for it; return the running task."""
        from MAESILWidgets.training_task import TrainingTask

        task = TrainingTask(options, inputs, nodes, **callbacks)
        self._told(task)
        task.start()
        return task

    def _told(self, task):
        from MAESILWidgets import running
        from MAESILWidgets.commands import for_terminal

        running.add(task)
        self.lastArguments = task.shareable_arguments
        task.on_log(f"$ {for_terminal(task.arguments)}")

    @staticmethod
    def _wait(task):
        while task.is_running:
            slicer.app.processEvents()
            time.sleep(0.01)
        if task.state != "finished":
            raise RuntimeError(task.failure.text() if task.failure is not None else "it was cancelled")


class MAESILTest(ScriptedLoadableModuleTest):
    """Self test: the sample, reconstructed with the embedded checkpoint. Runs in a real Slicer."""

    def setUp(self):
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run what MAESILWidgets/self_test.py holds."""
        from MAESILWidgets import self_test

        self_test.run(self, MAESILLogic())
