"""Puts the modules that Slicer's Python has into sys.modules, and starts application, scene and window."""

import os
import sys
import types
from pathlib import Path
from typing import Any

from . import state

WINDOW_SIZE = (1600, 1000)


def prepare_environment() -> None:
    """Before Qt and VTK are imported: no display."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    os.environ.setdefault("QT_ENABLE_HIGHDPI_SCALING", "0")


def clean_slicer_namespace(slicer: types.ModuleType) -> None:
    """slicer-core puts slicer.util's functions into slicer itself, where Slicer does not have them."""
    import slicer.util as util

    for name in dir(util):
        if not name.startswith("_") and getattr(slicer, name, None) is getattr(util, name):
            delattr(slicer, name)
    slicer.util = util


def collect_vtk_errors() -> None:
    """Errors that VTK and MRML print go into state.vtk_errors too; in Slicer they are red lines of its log."""
    import vtk

    window = vtk.vtkOutputWindow.GetInstance()

    @vtk.calldata_type(vtk.VTK_STRING)
    def observer(caller: Any, event: str, text: str) -> None:
        state.vtk_errors.append(text)

    window.AddObserver(vtk.vtkCommand.ErrorEvent, observer)


def qt_message(kind: Any, context: Any, text: str) -> None:
    """Qt's own complaints; those about signals, timers and objects are faults of the code that runs here."""
    if text.startswith("This plugin does not support"):
        return
    if text.startswith(("QObject::", "QTimer", "QMetaObject::", "QLayout")):
        state.complain(text)
    else:
        print(text, file=sys.stderr)


def install(settings_dir: Path) -> Any:
    """Make and connect everything; returns the application (PySide's view of it)."""
    from PySide6 import QtCore

    QtCore.qInstallMessageHandler(qt_message)
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, str(settings_dir))
    import slicer

    clean_slicer_namespace(slicer)
    collect_vtk_errors()
    from . import application, qt_module
    from .subject_hierarchy import SubjectHierarchy
    from .wrapping import wrap

    sys.modules["qt"] = qt_module.make()
    sys.modules["ctk"] = make_ctk()
    expose_slicer_widgets(slicer)
    app = application.qSlicerApplication.instance() or application.qSlicerApplication([])
    app.setApplicationName("Slicer")
    app.setOrganizationName("slicer.org")
    scene, logic = start_mrml(slicer, settings_dir)
    slicer.mrmlScene = scene
    slicer.modules = types.SimpleNamespace()
    slicer.app = wrap(app)
    window = application.qSlicerMainWindow()
    window.resize(*WINDOW_SIZE)
    SubjectHierarchy(scene)
    app._start(logic, scene, window)
    app._modules._load_cpp(scene, logic)
    logic.SetColorLogic(slicer.modules.colors.logic())
    install_python_modules(slicer)
    return app


def make_ctk() -> types.ModuleType:
    from . import ctk_widgets
    from .wrapping import expose

    module = types.ModuleType("ctk")
    for widget in ctk_widgets.ALL:
        setattr(module, widget.__name__, expose(widget))
    return module


def expose_slicer_widgets(slicer: Any) -> None:
    from . import application, io_manager, layout_manager, module_factory, mrml_widgets, plot_view, slice_view
    from .wrapping import expose

    for source in (mrml_widgets, slice_view, plot_view, layout_manager, io_manager, application):
        for made in source.ALL:
            setattr(slicer, made.__name__, expose(made))
    for made in module_factory.ALL:
        setattr(slicer, made.__name__, expose(made, exact_isinstance=True))


def start_mrml(slicer: Any, settings_dir: Path) -> tuple[Any, Any]:
    """Scene and application logic, connected as the application does it."""
    import vtk

    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetHomeDirectory(str(settings_dir))
    logic.SetShareDirectory("share")
    (settings_dir / "share" / "ColorFiles").mkdir(parents=True, exist_ok=True)
    logic.SetTemporaryPath(str(settings_dir))
    scene = slicer.vtkMRMLScene()
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    logic.SetMRMLScene(scene)
    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.SetMRMLApplicationLogic(logic)
    data.SetMRMLApplicationLogic(logic)
    logic.SetMRMLSceneDataIO(scene, remote, data)
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    crosshair.SetName("Crosshair")
    crosshair.SetSingletonTag("default")
    scene.AddNode(crosshair)
    return scene, logic


def install_python_modules(slicer: Any) -> None:
    """slicer.i18n, slicer.ScriptedLoadableModule, slicer.parameterNodeWrapper and SampleData."""
    from . import parameter_node_wrapper, sample_data, scripted_loadable_module

    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda context, text: text)
    sys.modules["slicer.i18n"] = slicer.i18n = i18n
    sys.modules["slicer.ScriptedLoadableModule"] = scripted_loadable_module
    slicer.ScriptedLoadableModule = scripted_loadable_module
    sys.modules["slicer.parameterNodeWrapper"] = slicer.parameterNodeWrapper = parameter_node_wrapper.make()
    sys.modules["SampleData"] = sample_data.make()
