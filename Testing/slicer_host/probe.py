"""A module to try the host with, and a scene to look at."""

from pathlib import Path
from typing import Any

import numpy as np

MODULE = """
from typing import Annotated
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import *
from slicer.parameterNodeWrapper import parameterNodeWrapper, WithinRange
from slicer import vtkMRMLScalarVolumeNode


class Probe(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Probe")
        self.parent.categories = ["Testing"]


@parameterNodeWrapper
class ProbeParameters:
    inputVolume: vtkMRMLScalarVolumeNode
    threshold: Annotated[float, WithinRange(-100, 200)] = 100
    count: Annotated[int, WithinRange(0, 9)] = 3
    invert: bool = False
    label: str = "start"


class ProbeWidget(ScriptedLoadableModuleWidget):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.calls = []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.uiWidget = slicer.util.loadUI(self.resourcePath("UI/Probe.ui"))
        self.layout.addWidget(self.uiWidget)
        self.ui = slicer.util.childWidgetVariables(self.uiWidget)
        self.uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ProbeLogic()
        self.parameters = ProbeParameters(self.logic.getParameterNode())
        bound = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
        self.tag = self.parameters.connectParametersToGui({name: widget for name, widget in bound.items() if name})

    def enter(self):
        self.calls.append("enter")

    def exit(self):
        self.calls.append("exit")

    def cleanup(self):
        self.calls.append("cleanup")


class ProbeLogic(ScriptedLoadableModuleLogic):
    pass
"""

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Probe</class><widget class="qMRMLWidget" name="Probe"><layout class="QVBoxLayout">
<item><widget class="ctkCollapsibleButton" name="section"><property name="text"><string>Section</string></property>
<layout class="QFormLayout">
<item row="0" column="0"><widget class="QLabel" name="label"><property name="text"><string>Volume</string></property>
</widget></item>
<item row="0" column="1"><widget class="qMRMLNodeComboBox" name="selector">
<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
<property name="showChildNodeTypes"><bool>false</bool></property>
<property name="noneEnabled"><bool>true</bool></property>
<property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property></widget></item>
<item row="1" column="1"><widget class="ctkSliderWidget" name="slider">
<property name="decimals"><number>1</number></property><property name="singleStep"><double>0.5</double></property>
<property name="SlicerParameterName" stdset="0"><string>threshold</string></property></widget></item>
<item row="2" column="1"><widget class="QSpinBox" name="spin">
<property name="SlicerParameterName" stdset="0"><string>count</string></property></widget></item>
<item row="3" column="1"><widget class="QCheckBox" name="check">
<property name="SlicerParameterName" stdset="0"><string>invert</string></property></widget></item>
<item row="5" column="1"><widget class="QLineEdit" name="edit"/></item>
<item row="6" column="1"><widget class="ctkPathLineEdit" name="path">
<property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Writable</set></property></widget></item>
<item row="7" column="1"><widget class="qMRMLNodeComboBox" name="unconnected">
<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property></widget></item>
</layout></widget></item>
<item><widget class="QPushButton" name="apply"><property name="text"><string>Apply</string></property></widget></item>
</layout></widget>
<customwidgets>
<customwidget><class>qMRMLWidget</class><extends>QWidget</extends><container>1</container></customwidget>
<customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><container>1</container></customwidget>
<customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends></customwidget>
<customwidget><class>ctkSliderWidget</class><extends>QWidget</extends></customwidget>
<customwidget><class>ctkPathLineEdit</class><extends>QWidget</extends></customwidget>
</customwidgets>
<connections><connection><sender>Probe</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>
"""

VIEW = '<item><view class="vtkMRMLSliceNode" singletontag="{tag}"><property name="orientation" action="default">{plane}\
</property><property name="viewlabel" action="default">{label}</property><property name="viewgroup" action="default">7\
</property></view></item>'
PLANES = ("Axial", "Coronal", "Sagittal")


def write_module(folder: Path, ui: str = UI) -> None:
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Probe.py").write_text(MODULE)
    (folder / "Resources" / "UI" / "Probe.ui").write_text(ui)


def add_volume(name: str = "ct", seed: int = 0) -> Any:
    """A volume whose three middle slices all differ."""
    import slicer

    k, j, i = np.meshgrid(np.arange(40), np.arange(50), np.arange(60), indexing="ij")
    array = (10 * k + 3 * j + i + 100 * ((i + j + seed) // 8 % 2)).astype(np.int16)
    return slicer.util.addVolumeFromArray(array, name=name)


def grid_layout(layout_id: int) -> None:
    """Three rows of three slice views, axial, coronal and sagittal."""
    import slicer

    rows = []
    for row in ("A", "B", "C"):
        views = [VIEW.format(tag=f"Probe-{row}-{plane}", plane=plane, label=row + plane[0]) for plane in PLANES]
        rows.append(f'<item><layout type="horizontal">{"".join(views)}</layout></item>')
    node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    if not node.IsLayoutDescription(layout_id):
        node.AddLayoutDescription(layout_id, f'<layout type="vertical">{"".join(rows)}</layout>')
    slicer.app.layoutManager().setLayout(layout_id)
    slicer.app.processEvents()
