"""How results look: one window for all gray images, a diverging map with a legend for the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

WINDOWS = {"lung": (-600.0, 1500.0), "soft": (40.0, 400.0), "bone": (400.0, 1800.0), "wide": (0.0, 2000.0)}
"""Presets as (level, width) in HU."""
GRAY = ("masked", "reconstruction", "composite")
ERROR_RANGE_HU = 300
ERROR_COLORS = (
    (-1.0, (0.55, 0.85, 1.0)),
    (-0.5, (0.1, 0.4, 0.85)),
    (0.0, (0.06, 0.06, 0.06)),
    (0.5, (0.85, 0.3, 0.1)),
    (1.0, (1.0, 0.85, 0.45)),
)
"""Too dark is blue, too bright is red; dark where there is no error, as the background of a CT is."""
ERROR_COLOR_NODE = ("vtkMRMLProceduralColorNode", "MAESIL error")
MASK_COLOR_NODE = ("vtkMRMLColorTableNode", "MAESIL hidden patches")
MASK_COLOR = (0.25, 0.45, 0.75)


def is_ours(node: Any) -> bool:
    """Say whether a volume is part of a result, or a training's preview."""
    return bool(node.GetAttribute("MAESIL.Kind") or node.GetAttribute("MAESIL.Preview"))


def set_up(node: Any, kind: str) -> None:
    """Give a new volume of a result its display node: the wide window, or the error's or the mask's colors."""
    if kind == "mask":
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAndObserveColorNodeID(_mask_colors().GetID())
        return
    # made here and not by default: Slicer would look for a window in all of the voxels first
    shown = node.GetScene().AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    shown.SetAutoWindowLevel(False)
    if kind == "error":
        shown.SetInterpolate(False)
        shown.SetAndObserveColorNodeID(_error_colors().GetID())
        shown.SetWindowLevel(2 * ERROR_RANGE_HU, 0)
    else:
        shown.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
        level, width = WINDOWS["wide"]
        shown.SetWindowLevel(width, level)
    node.SetAndObserveDisplayNodeID(shown.GetID())


def display_nodes(results: list[Any], kinds: tuple[str, ...]) -> list[Any]:
    """Return the display nodes of volumes of these kinds, as far as they are there."""
    nodes = [result.node(kind) for result in results for kind in kinds]
    return [n.GetDisplayNode() for n in nodes if n is not None and n.GetDisplayNode() is not None]


def set_window(nodes: list[Any], level: float, width: float) -> None:
    """Show volumes with one level and window width in HU."""
    for shown in nodes:
        with slicer.util.NodeModify(shown):
            shown.SetAutoWindowLevel(False)
            shown.SetWindowLevel(width, level)


def set_error_range(nodes: list[Any], hu: float) -> None:
    """Let error maps span -hu to +hu."""
    for shown in nodes:
        with slicer.util.NodeModify(shown):
            colors = _error_colors()
            colors.SetAndObserveColorTransferFunction(_diverging(hu))
            shown.SetAndObserveColorNodeID(colors.GetID())
            shown.SetAutoWindowLevel(False)
            shown.SetWindowLevel(2 * hu, 0)


def show_legend(result: Any, view_id: str) -> None:
    """Show the error's color legend in this view alone; the layers must have been set before."""
    node, logic = result.node("error"), slicer.modules.colors.logic()
    # one that came with a scene is not shown
    if logic.GetColorLegendDisplayNode(node) is not None:
        slicer.mrmlScene.RemoveNode(logic.GetColorLegendDisplayNode(node))
    legend = logic.AddDefaultColorLegendDisplayNode(node)
    with slicer.util.NodeModify(legend):
        legend.SetTitleText(_("Error (HU)"))
        legend.SetLabelFormat("%.0f")
        legend.SetNumberOfLabels(3)
        legend.SetMaxNumberOfColors(256)
        # small and at the right edge: it lies over the anatomy
        legend.SetSize(0.1, 0.45)
        legend.SetPosition(0.98, 0.5)
        legend.GetTitleTextProperty().SetFontSize(11)
        legend.GetLabelTextProperty().SetFontSize(10)
        legend.SetVisibility(True)
        legend.RemoveAllViewNodeIDs()
        legend.AddViewNodeID(view_id)


class SharedWindow(VTKObservationMixin):
    """Keeps level and window of gray volumes alike, whichever of them the user drags, and those of error maps fixed.

    Args:
        on_change: called after a change.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.on_change = on_change
        self._nodes: list[Any] = []

    def watch(self, gray: list[Any], errors: list[Any]) -> None:
        """Watch these display nodes and no others."""
        self.removeObservers()
        self._nodes = gray
        for node in gray:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._changed)
        for node in errors:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, _keep_range)

    def _changed(self, changed: Any, event: str) -> None:
        wanted = (changed.GetWindow(), changed.GetLevel())
        for node in self._nodes:
            if (node.GetWindow(), node.GetLevel()) != wanted:
                # which comes back here, and changes nothing then
                node.SetWindowLevel(*wanted)
        self.on_change()


def _keep_range(shown: Any, event: str) -> None:
    """Undo a drag on the error map: its window is the range of its legend, unless the user gave it other colors."""
    colors = shown.GetColorNode()
    if colors is not None and colors.IsA(ERROR_COLOR_NODE[0]):
        _low, high = colors.GetColorTransferFunction().GetRange()
        if (shown.GetWindow(), shown.GetLevel()) != (2 * high, 0):
            shown.SetWindowLevel(2 * high, 0)


def _error_colors() -> Any:
    """Return the node of the error's colors, made when first asked for: one for all error maps and their legend.

    Its range is what :func:`set_error_range` set last; a new volume must not change it under the legend.
    """
    node = slicer.util.getFirstNodeByClassByName(*ERROR_COLOR_NODE)
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass(*ERROR_COLOR_NODE)
        node.SetHideFromEditors(True)
        node.SetAndObserveColorTransferFunction(_diverging(ERROR_RANGE_HU))
    return node


def restore_colors(hu: float) -> None:
    """Fill our colors in after a scene was loaded: Slicer's Save dialog writes no file for what editors hide."""
    _error_colors().SetAndObserveColorTransferFunction(_diverging(hu))
    _mask_colors()


def _diverging(hu: float) -> Any:
    """Return colors from -hu to +hu."""
    colors = vtk.vtkDiscretizableColorTransferFunction()
    colors.SetColorSpaceToRGB()
    for place, rgb in ERROR_COLORS:
        colors.AddRGBPoint(place * hu, *rgb)
    colors.Build()
    return colors


def _mask_colors() -> Any:
    node = slicer.util.getFirstNodeByClassByName(*MASK_COLOR_NODE)
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass(*MASK_COLOR_NODE)
        node.SetTypeToUser()
        node.SetHideFromEditors(True)
    # a node that came back without its file has none
    node.SetNumberOfColors(2)
    node.SetColor(0, _("visible"), 0.0, 0.0, 0.0, 0.0)
    node.SetColor(1, _("hidden"), *MASK_COLOR, 1.0)
    return node
