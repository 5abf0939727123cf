"""The 3x3 views: rows masked, reconstruction, error; columns axial, coronal, sagittal. And the training's view."""

from __future__ import annotations

import itertools
from typing import Any

import qt
import slicer

from MAESILWidgets.scene import display

LAYOUT_ID = 5820
TRAINING_LAYOUT_ID = 5821
VIEW_GROUP = 58
"""One group for our views, so that linked views are ours alone."""
ROWS = (
    ("masked", "Masked", "M", "#4a7fc1"),
    ("reconstruction", "Reconstruction", "R", "#4aa564"),
    ("error", "Error", "E", "#c1774a"),
)
"""Kind of volume, part of the view's name, first letter of its label, colour of its bar."""
COLUMNS = ("Axial", "Coronal", "Sagittal")
PLOTS = ("Loss", "PSNR", "Encoder")
HIDDEN_OPACITY = 0.55


def view_name(row: str, column: str) -> str:
    """Return the singleton tag of a view, as ``MAESIL-Masked-Axial``."""
    return f"MAESIL-{row}-{column}"


def view_names(columns: tuple[str, ...] = COLUMNS) -> list[str]:
    """Return the tags of the views in these columns, row by row."""
    return [view_name(row, column) for _kind, row, _letter, _colour in ROWS for column in columns]


def _slice_view(row: str, letter: str, colour: str, column: str) -> str:
    return (
        f'<item><view class="vtkMRMLSliceNode" singletontag="{view_name(row, column)}">'
        f'<property name="orientation" action="default">{column}</property>'
        f'<property name="viewlabel">{letter}{column[0]}</property><property name="viewcolor">{colour}</property>'
        f'<property name="viewgroup">{VIEW_GROUP}</property></view></item>'
    )


def _plot_view(name: str) -> str:
    return (
        f'<item><view class="vtkMRMLPlotViewNode" singletontag="MAESIL-{name}">'
        f'<property name="viewlabel" action="default">{name[0]}</property></view></item>'
    )


def layout_xml() -> str:
    """Return the 3x3 layout's description."""
    rows = "".join(
        '<item><layout type="horizontal">'
        + "".join(_slice_view(row, letter, colour, column) for column in COLUMNS)
        + "</layout></item>"
        for _kind, row, letter, colour in ROWS
    )
    return f'<layout type="vertical">{rows}</layout>'


def training_layout_xml() -> str:
    """Return the training's description: the preview in axial views above, the curves below."""
    previews = "".join(_slice_view(row, letter, colour, "Axial") for _kind, row, letter, colour in ROWS)
    plots = "".join(_plot_view(name) for name in PLOTS)
    return (
        f'<layout type="vertical"><item><layout type="horizontal">{previews}</layout></item>'
        f'<item><layout type="horizontal">{plots}</layout></item></layout>'
    )


def _layout_node() -> Any:
    """Return the layout node, or None where Slicer has no main window."""
    manager = slicer.app.layoutManager()
    return manager.layoutLogic().GetLayoutNode() if manager is not None else None


def register() -> None:
    """Make the layouts known, so that a scene saved with one can be loaded."""
    node = _layout_node()
    if node is None:
        return
    for number, xml in ((LAYOUT_ID, layout_xml()), (TRAINING_LAYOUT_ID, training_layout_xml())):
        if not node.IsLayoutDescription(number):
            node.AddLayoutDescription(number, xml)


def _arrangement() -> int:
    node = _layout_node()
    return int(node.GetViewArrangement()) if node is not None else 0


def _turn() -> None:
    """Let the event loop turn, but for what the user does: Slicer draws, and jobs go on."""
    slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents)


class Views:
    """Switches between the layouts and fills them."""

    def __init__(self) -> None:
        self.previous = 0
        self._fitted: dict[str, Any] = {}
        self._drawable: set[str] = set()

    def make(self) -> None:
        """Make the nine views ahead of the layout, a part a turn of the event loop: all take a second."""
        if self._make_part(LAYOUT_ID):
            qt.QTimer.singleShot(0, self.make)

    def _make_part(self, number: int) -> bool:
        """Make a view of a layout, or what it needs to draw; say whether something was left to do."""
        for name in view_names(COLUMNS if number == LAYOUT_ID else ("Axial",)):
            widget = slicer.app.layoutManager().sliceWidget(name)
            if widget is None:
                node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSliceNode")
                node.UnRegister(None)
                node.SetLayoutName(name)
                node.SetName(name)
                node.SetOrientation(name.rsplit("-", 1)[1])
                slicer.mrmlScene.AddNode(node)
                self.keep_apart()
                return True
            if name not in self._drawable:
                self._drawable.add(name)
                if not widget.isVisible():
                    # between two paint events nobody sees it
                    widget.show()
                    widget.hide()
                    return True
        return False

    @staticmethod
    def keep_apart() -> None:
        """Let a volume that the user loads go into the other views alone; a closed scene forgets that it does."""
        for view in map(slicer.app.layoutManager().sliceWidget, view_names()):
            if view is not None:
                view.mrmlSliceCompositeNode().SetDoPropagateVolumeSelection(False)

    def is_shown(self, number: int = LAYOUT_ID) -> bool:
        """Whether the 3x3 views, or another layout, are up."""
        return _arrangement() == number

    def switch(self, number: int) -> None:
        """Show a layout of ours, remembering the user's; a view a turn of the event loop, which nine would hold up."""
        current, manager = _arrangement(), slicer.app.layoutManager()
        if current not in (LAYOUT_ID, TRAINING_LAYOUT_ID):
            self.previous = current
        while self._make_part(number):
            _turn()
        manager.setLayout(number)
        views = [] if current == number else [manager.sliceWidget(name) for name in view_names()]
        views = [view for view in views if view is not None and view.isVisible()]
        for view in views:
            policy = view.sizePolicy
            policy.setRetainSizeWhenHidden(True)
            view.setSizePolicy(policy)
            view.hide()
        for view in views:
            _turn()
            view.show()
        # new views have no size, and nothing can be fitted to them, before the event loop has laid them out
        _turn()

    def back(self) -> None:
        """Show the layout that the user had before; 0 is none, as when Slicer has started."""
        slicer.app.layoutManager().setLayout(self.previous or slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def show(self, result: Any) -> None:
        """Show a result in the 3x3 views."""
        self.switch(LAYOUT_ID)
        for column, row in itertools.product(COLUMNS, ROWS):
            if not result.is_whole():
                # it went while the event loop ran
                return
            self._fill_view({kind: result.node(kind) for kind in (row[0], "mask")}, column, *row[:2])
            _turn()
        if result.is_whole():
            self.show_legend(result)

    def show_legend(self, result: Any) -> None:
        """Show the legend in one view of the error's row, which has one range: it covers part of the image."""
        display.show_legend(result, [self.slice_node("Error", "Axial").GetID()])

    def fill(self, nodes: dict[str, Any], columns: tuple[str, ...]) -> None:
        """Show volumes by kind in the rows of these columns, along the volume's own axes, fitted."""
        for column, (kind, row, _letter, _colour) in itertools.product(columns, ROWS):
            self._fill_view(nodes, column, kind, row)

    def _fill_view(self, nodes: dict[str, Any], column: str, kind: str, row: str) -> None:
        node = nodes[kind]
        logic = slicer.app.layoutManager().sliceWidget(view_name(row, column)).sliceLogic()
        composite, slice_node = logic.GetSliceCompositeNode(), logic.GetSliceNode()
        shown_before = composite.GetBackgroundVolumeID()
        composite.SetBackgroundVolumeID(node.GetID() if node is not None else None)
        composite.SetForegroundVolumeID(None)
        hidden = nodes.get("mask") if kind == "masked" else None
        composite.SetLabelVolumeID(hidden.GetID() if hidden is not None else None)
        composite.SetLabelOpacity(HIDDEN_OPACITY)
        if node is not None and min(slice_node.GetDimensions()[:2]) > 0:
            self._fit(view_name(row, column), logic, slice_node, node, shown_before)
        composite.SetLinkedControl(True)
        self.keep_apart()

    def _fit(self, name: str, logic: Any, slice_node: Any, node: Any, shown_before: str | None) -> None:
        """Fit a view to a volume, unless it shows that grid already: the user may have zoomed and scrolled.

        A view that showed nothing was reset with the scene, whatever it was fitted to before.
        """
        bounds = [0.0] * 6
        node.GetRASBounds(bounds)
        shown = (node.GetImageData().GetDimensions(), node.GetTransformNodeID(), tuple(bounds))
        if shown_before and self._fitted.get(name) == shown:
            return
        self._fitted[name] = shown
        slice_node.SetOrientation(name.rsplit("-", 1)[1])
        slice_node.RotateToVolumePlane(node)
        logic.FitSliceToBackground()
        logic.SnapSliceOffsetToIJK()

    def slice_node(self, row: str, column: str) -> Any:
        """Return the slice node of a view."""
        return slicer.app.layoutManager().sliceWidget(view_name(row, column)).sliceLogic().GetSliceNode()
