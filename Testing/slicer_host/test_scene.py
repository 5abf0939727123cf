"""The host's scene, views and modules."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk

from . import Host
from .probe import PLANES, UI, add_volume, grid_layout, write_module
from .wrapping import unwrap


def names(row: str) -> list[str]:
    return [f"Probe-{row}-{plane}" for plane in PLANES]


# modules


def test_module_life(host: Host, probe: Any) -> None:
    module = slicer.modules.probe
    assert (module.title, module.name) == ("Probe", "Probe")
    assert Path(module.path).name == "Probe.py"
    assert slicer.util.modulePath("Probe") == module.path
    assert module.widgetRepresentation().self() is probe is slicer.modules.ProbeWidget
    assert probe.calls == ["enter"]
    assert probe.parent.inherits("QWidget")
    slicer.util.reloadScriptedModule("Probe")
    assert probe.calls == ["enter", "cleanup"]
    reloaded = slicer.modules.ProbeWidget
    assert reloaded is not probe
    assert slicer.util.getModuleWidget("Probe") is reloaded
    host.unload_modules()
    assert reloaded.calls[-2:] == ["exit", "cleanup"]
    assert not hasattr(slicer.modules, "probe")


def test_slicer_has_no_more_than_slicer(host: Host) -> None:
    for name in ("loadVolume", "arrayFromVolume", "packaging"):
        assert not hasattr(slicer, name)
    with pytest.raises(ImportError):
        importlib.import_module("slicer.packaging")
    assert not hasattr(slicer.app, "pythonManager")


def test_load_ui(probe: Any, qt: Any) -> None:
    ui = probe.ui
    assert ui.slider.className() == "ctkSliderWidget"
    assert (ui.slider.decimals, ui.slider.singleStep) == (1, 0.5)
    assert (ui.slider.minimum, ui.slider.maximum) == (-100, 200)
    assert ui.path.filters == ui.path.Dirs | ui.path.Writable
    assert ui.section.text == "Section"
    assert ui.selector.property("SlicerParameterName") == "inputVolume" == ui.selector.SlicerParameterName
    assert type(ui.apply) is qt.QPushButton
    ui.section.collapsed = True
    assert not ui.edit.visible
    ui.edit.hide()
    ui.label.show()
    assert not ui.label.visible
    ui.section.collapsed = False
    assert ui.label.visible
    assert not ui.edit.visible


def test_unknown_widget_class(host: Host, tmp_path: Path) -> None:
    write_module(tmp_path / "m", UI.replace("ctkSliderWidget", "ctkNoSuchWidget"))
    widget = slicer.util.loadUI(str(tmp_path / "m" / "Resources" / "UI" / "Probe.ui"))
    slider = slicer.util.childWidgetVariables(widget).slider
    assert slider.className() == "QWidget"
    assert slider.decimals == 1
    assert "ctkNoSuchWidget" in host.errors[0]
    host.errors.clear()


# node combo boxes


def test_node_combo_box(host: Host, probe: Any) -> None:
    box, seen = probe.ui.selector, []
    assert box.enabled
    assert not probe.ui.unconnected.enabled
    box.connect("currentNodeChanged(vtkMRMLNode*)", seen.append)
    volume = add_volume()
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    hidden = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hidden")
    hidden.SetHideFromEditors(True)
    slicer.mrmlScene.RemoveNode(hidden)
    assert box.nodeCount() == 1
    assert box.currentNode() is None
    assert seen == []
    box.setCurrentNode(volume)
    assert box.currentNode() is volume
    volume.SetName("renamed")
    assert box.findChild("QComboBox").currentText == "renamed"
    slicer.mrmlScene.RemoveNode(volume)
    assert box.currentNode() is None
    assert seen == [volume, None]


# parameter nodes


def test_parameters(host: Host, probe: Any) -> None:
    parameters, ui = probe.parameters, probe.ui
    assert (parameters.threshold, parameters.count, parameters.invert, parameters.label) == (100, 3, False, "start")
    with pytest.raises(ValueError, match="within range"):
        parameters.threshold = 300
    with pytest.raises(TypeError):
        parameters.count = "many"
    with pytest.raises(TypeError):
        parameters.inputVolume = "not a node"
    parameters.treshold = 5  # a misspelled attribute is silently accepted, as in Slicer
    ui.slider.value, ui.spin.value, ui.check.checked = 12.5, 4, True
    assert (parameters.threshold, parameters.count, parameters.invert) == (12.5, 4, True)
    volume = add_volume()
    parameters.inputVolume, parameters.threshold = volume, 7.5
    assert (ui.selector.currentNode(), ui.slider.value) == (volume, 7.5)
    parameters.disconnectGui(probe.tag)
    parameters.threshold = 1
    assert ui.slider.value == 7.5
    with pytest.raises(RuntimeError):
        parameters.connectParametersToGui({"label": ui.spin})


def test_scene_round_trip(host: Host, probe: Any, tmp_path: Path) -> None:
    volume = add_volume("kept")
    expected = slicer.util.arrayFromVolume(volume).copy()
    probe.parameters.inputVolume, probe.parameters.count = volume, 7
    grid_layout(701)
    mrml = host.save_scene(tmp_path / "scene")
    host.close_scene()
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []
    host.load_scene(mrml)
    node = slicer.util.getNode("kept")
    assert np.array_equal(slicer.util.arrayFromVolume(node), expected)
    assert slicer.app.layoutManager().layout == 701
    import Probe

    parameters = Probe.ProbeParameters(Probe.ProbeLogic().getParameterNode())
    assert (parameters.inputVolume, parameters.count) == (node, 7)


def test_load_volume(host: Host, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((2, 1, 3))
    image.SetOrigin((5, 6, 7))
    path = tmp_path / "vol\u00e9.nii.gz"
    sitk.WriteImage(image, str(path))
    loaded = slicer.util.loadVolume(str(path))
    assert loaded.GetName().startswith("vol\u00e9")
    assert np.array_equal(slicer.util.arrayFromVolume(loaded), sitk.GetArrayFromImage(image))
    matrix = slicer.util.vtkMatrixFromArray(np.eye(4))
    loaded.GetIJKToRASMatrix(matrix)
    assert np.allclose(slicer.util.arrayFromVTKMatrix(matrix)[:3], [[-2, 0, 0, -5], [0, -1, 0, -6], [0, 0, 3, 7]])
    with pytest.raises(RuntimeError):
        slicer.util.loadVolume(str(tmp_path / "absent.nrrd"))


def test_subject_hierarchy(host: Host, tmp_path: Path) -> None:
    volume = add_volume("inside")
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(volume)
    assert hierarchy.GetItemName(item) == "inside"
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Results")
    hierarchy.SetItemParent(item, folder)
    mrml = host.save_scene(tmp_path / "scene")
    host.close_scene()
    assert slicer.mrmlScene.GetSubjectHierarchyNode().GetNumberOfItems() == 0
    host.load_scene(mrml)
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(slicer.util.getNode("inside"))
    folder = hierarchy.GetItemParent(item)
    assert hierarchy.GetItemName(folder) == "Results"
    hierarchy.RemoveItem(folder)
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []


def test_decimal_comma(probe: Any, qt: Any) -> None:
    qt.QLocale.setDefault(qt.QLocale(qt.QLocale.German))
    slider = qt.QDoubleSpinBox()
    slider.value = 1.5
    assert slider.text == "1,50"
    probe.ui.slider.value = 12.5
    assert probe.logic.getParameterNode().GetParameter("threshold") == "12.5"


# views


def test_nine_views(host: Host) -> None:
    volumes = {row: add_volume(row, seed) for row, seed in (("A", 0), ("B", 3), ("C", 5))}
    grid_layout(702)
    manager = slicer.app.layoutManager()
    for row, volume in volumes.items():
        for name in names(row):
            composite = manager.sliceWidget(name).mrmlSliceCompositeNode()
            composite.SetBackgroundVolumeID(volume.GetID())
    for name in manager.sliceViewNames():
        manager.sliceWidget(name).sliceLogic().FitSliceToBackground()
    host.process_events(0.2)
    pictures = {name: host.view_pixels(name) for row in volumes for name in names(row)}
    assert all(picture.mean() > 20 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == 9
    for name in pictures:
        widget = manager.sliceWidget(name)
        assert widget.mrmlSliceNode().GetOrientation() == name.split("-")[2]
        assert widget.sliceView().visible
        assert widget.mrmlSliceNode().GetViewGroup() == 7
        size = widget.sliceView().size
        assert widget.mrmlSliceNode().GetDimensions()[:2] == (size.width(), size.height())
    assert not manager.sliceWidget("Red") or not manager.sliceWidget("Red").visible
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    host.process_events(0.1)
    assert manager.sliceWidget("Red").visible
    assert not manager.sliceWidget(names("A")[0]).visible


def test_click_in_slice(host: Host) -> None:
    volume = add_volume()
    grid_layout(702)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    host.process_events(0.1)
    view = slicer.app.layoutManager().sliceWidget("Probe-A-Axial").sliceView()
    seen: list[Any] = []

    def pressed(caller: Any, event: str) -> None:
        seen.append(caller.GetEventPosition())

    tag = view.interactor().AddObserver(vtk.vtkCommand.LeftButtonPressEvent, pressed)
    ras = host.click_in_slice("Probe-A-Axial", 40, 60)
    view.interactor().RemoveObserver(tag)
    assert seen == [(40, 60)]
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    cursor = [0.0, 0.0, 0.0]
    crosshair.GetCursorPositionRAS(cursor)
    assert np.allclose(cursor, ras, atol=1e-3)


def test_color_legend(host: Host) -> None:
    volume = add_volume()
    colors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLProceduralColorNode", "diverging")
    function = vtk.vtkDiscretizableColorTransferFunction()
    for value, color in ((0, (0, 0, 1)), (300, (1, 1, 1)), (600, (1, 0, 0))):
        function.AddRGBPoint(value, *color)
    colors.SetAndObserveColorTransferFunction(function)
    volume.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    host.process_events()
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    host.process_events(0.1)
    bare = host.view_pixels("Red")
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(volume)
    legend.SetTitleText("HU")
    legend.SetLabelFormat("%.0f")
    host.process_events(0.1)
    assert np.abs(host.view_pixels("Red").astype(int) - bare).max() > 100
    assert host.view_pixels("Red").std(axis=2).max() > 50


def test_plot(host: Host) -> None:
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalPlotView)
    steps = np.arange(1, 20.0)
    nodes: dict[str, Any] = {}
    chart = slicer.util.plot(np.column_stack([steps, 1 / steps]), 0, ["step", "loss"], show=False, nodes=nodes)
    nodes["series"][0].SetColor(1, 0, 0)
    slicer.app.applicationLogic().GetSelectionNode().SetReferenceActivePlotChartID(chart.GetID())
    slicer.app.applicationLogic().PropagatePlotChartSelection()
    manager = slicer.app.layoutManager()
    (node,) = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    view = unwrap(manager.viewWidget(node).plotView())
    assert manager.viewWidget(chart) is None
    view.forceRender()
    picture = view._pixels()
    red = (picture[..., 0] > 200) & (picture[..., 1] < 100)
    assert red.sum() > 50
    slicer.util.updateTableFromArray(nodes["table"], np.column_stack([10 * steps, steps]), ["step", "loss"])
    host.process_events(0.2)
    assert not np.array_equal(view._pixels(), picture)
    assert view.chart().GetAxis(vtk.vtkAxis.BOTTOM).GetMaximum() < 50
    view.fitToContent()
    assert view.chart().GetAxis(vtk.vtkAxis.BOTTOM).GetMaximum() >= 190


def test_layout_manager_refuses_unknown_layouts_views(host: Host) -> None:
    manager = slicer.app.layoutManager()
    seen: list[int] = []
    manager.connect("layoutChanged(int)", seen.append)
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    manager.layout = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
    assert seen == [6, 3]
    manager.disconnect("layoutChanged(int)", seen.append)
    assert manager.sliceWidget("NoSuchView") is None


def test_vtk_errors_are_kept(host: Host) -> None:
    slicer.mrmlScene.AddNode(None)
    assert any("AddNode" in text for text in host.vtk_errors)


def test_close(tmp_path: Path) -> None:
    """In a process of its own: there is no way back."""
    write_module(tmp_path / "Probe")
    script = (
        "import sys\n"
        "from slicer_host import boot\n"
        "host = boot(sys.argv[1])\n"
        "host.add_module_path(sys.argv[2])\n"
        "host.load_module('Probe')\n"
        "widget = host.open_module('Probe')\n"
        "import slicer\n"
        "slicer.app.connect('aboutToQuit()', lambda: widget.calls.append('quit'))\n"
        "host.close()\n"
        "print(widget.calls, host.errors)\n"
    )
    (tmp_path / "settings").mkdir()
    command = [sys.executable, "-c", script, str(tmp_path / "settings"), str(tmp_path / "Probe")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "LC_ALL": "de_DE.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['enter', 'exit', 'cleanup', 'quit'] []"
