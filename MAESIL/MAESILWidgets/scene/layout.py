"""The 3x3 views: rows masked, reconstruction, error; columns axial, coronal, sagittal; with further rows for the input
and for another result. And the training's view."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import qt
import slicer

from MAESILWidgets.scene import display

LAYOUT_ID = 5820
TRAINING_LAYOUT_ID = 5821
INPUT_LAYOUT_ID = 5822
COMPARE_LAYOUT_ID = 5823
VIEW_GROUP = 58
"""One group for our views, so that linked views are ours alone."""
INPUT_ROW = ("input", "Input", "I", "#8c8c8c")
ROWS = (
    ("masked", "Masked", "M", "#4a7fc1"),
    ("reconstruction", "Reconstruction", "R", "#4aa564"),
    ("error", "Error", "E", "#c1774a"),
)
"""Kind of volume, part of the view's name, first letter of its label, color of its bar."""
OTHER_ROWS = (("other reconstruction", "ReconstructionB", "r", "#2e6b3e"), ("other error", "ErrorB", "e", "#7a4b2f"))
LAYOUTS = {
    LAYOUT_ID: ROWS,
    INPUT_LAYOUT_ID: (INPUT_ROW, *ROWS),
    COMPARE_LAYOUT_ID: (ROWS[1], OTHER_ROWS[0], ROWS[2], OTHER_ROWS[1]),
}
"""Rows of the layouts that show a result; the last one shows two."""
COLUMNS = ("Axial", "Coronal", "Sagittal")
PLOTS = ("Loss", "PSNR", "Encoder")
HIDDEN_OPACITY = 0.55


def view_name(row: str, column: str) -> str:
    """Return the singleton tag of a view, as ``MAESIL-Masked-Axial``."""
    return f"MAESIL-{row}-{column}"


def view_names(number: int = 0) -> list[str]:
    """Return the tags of a layout's slice views, row by row; by default of the layout that shows a result now."""
    if number == TRAINING_LAYOUT_ID:
        return [view_name(row, "Axial") for _kind, row, _letter, _color in ROWS]
    rows = LAYOUTS.get(number or _arrangement(), ())
    return [view_name(row, column) for _kind, row, _letter, _color in rows for column in COLUMNS]


def _slice_view(row: str, letter: str, color: str, column: str) -> str:
    return (
        f'<view class="vtkMRMLSliceNode" singletontag="{view_name(row, column)}">'
        f'<property name="orientation" action="default">{column}</property>'
        f'<property name="viewlabel">{letter}{column[0]}</property><property name="viewcolor">{color}</property>'
        f'<property name="viewgroup">{VIEW_GROUP}</property></view>'
    )


def _plot_view(name: str) -> str:
    return (
        f'<view class="vtkMRMLPlotViewNode" singletontag="MAESIL-{name}">'
        f'<property name="viewlabel" action="default">{name[0]}</property></view>'
    )


def _layout(direction: str, items: Iterable[str]) -> str:
    return f'<layout type="{direction}">{"".join(f"<item>{item}</item>" for item in items)}</layout>'


def layout_xml(number: int) -> str:
    """Return the description of a layout; the training's has the preview in axial views above, the curves below."""
    if number == TRAINING_LAYOUT_ID:
        rows = [[_slice_view(*row[1:], "Axial") for row in ROWS], map(_plot_view, PLOTS)]
    else:
        rows = [[_slice_view(*row[1:], column) for column in COLUMNS] for row in LAYOUTS[number]]
    return _layout("vertical", (_layout("horizontal", row) for row in rows))


def _layout_node() -> Any:
    """Return the layout node, or None where Slicer has no main window."""
    manager = slicer.app.layoutManager()
    return manager.layoutLogic().GetLayoutNode() if manager is not None else None


def register() -> None:
    """Make the layouts known, so that a scene saved with one can be loaded."""
    node = _layout_node()
    if node is None:
        return
    for number in (TRAINING_LAYOUT_ID, *LAYOUTS):
        if not node.IsLayoutDescription(number):
            node.AddLayoutDescription(number, layout_xml(number))


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
        for name in view_names(number):
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
        for name in {name for number in LAYOUTS for name in view_names(number)}:
            view = slicer.app.layoutManager().sliceWidget(name)
            if view is not None:
                view.mrmlSliceCompositeNode().SetDoPropagateVolumeSelection(False)

    def is_shown(self, number: int = 0) -> bool:
        """Whether a layout is up, by default one that shows a result."""
        return _arrangement() == number if number else _arrangement() in LAYOUTS

    def switch(self, number: int) -> None:
        """Show a layout of ours, remembering the user's; a view a turn of the event loop, which nine would hold up."""
        current, manager = _arrangement(), slicer.app.layoutManager()
        if current not in (*LAYOUTS, TRAINING_LAYOUT_ID):
            self.previous = current
        while self._make_part(number):
            _turn()
        manager.setLayout(number)
        views = [] if current == number else [manager.sliceWidget(name) for name in view_names(number)]
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

    def forget(self) -> None:
        """The scene was closed, and with it the views were reset."""
        self._fitted.clear()
        self.keep_apart()

    def back(self) -> None:
        """Show the layout that the user had before; 0 is none, as when Slicer has started."""
        slicer.app.layoutManager().setLayout(self.previous or slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def show(self, result: Any, number: int = LAYOUT_ID, other: Any = None, fade: float = 0.0) -> None:
        """Show a result in one of :data:`LAYOUTS`.

        Args:
            other: another result of the same input: in rows of its own where the layout has them, else with the opacity
                ``fade`` over the first one.
        """
        self.switch(number)
        self.fade(fade)
        for column, row in itertools.product(COLUMNS, LAYOUTS[number]):
            if not result.is_whole() or (other is not None and not other.is_whole()):
                # it went while the event loop ran
                return
            kind = row[0]
            shown = other.node(kind.split()[1]) if row in OTHER_ROWS else result.node(kind)
            is_over = other is not None and number != COMPARE_LAYOUT_ID and row in ROWS
            above = other.node(kind) if is_over else None
            self._fill_view({kind: shown, "mask": result.node("mask")}, column, kind, row[1], above)
            _turn()
        if result.is_whole():
            self.show_legend(result)

    def fade(self, share: float) -> None:
        """Set the opacity of the other result, 0 to 1."""
        for name in view_names():
            logic = slicer.app.layoutManager().sliceWidget(name).sliceLogic()
            logic.GetSliceCompositeNode().SetForegroundOpacity(share)

    def show_legend(self, result: Any) -> None:
        """Show the legend in one view of the error's row, which has one range: it covers part of the image."""
        display.show_legend(result, self.slice_node("Error", "Axial").GetID())

    def show_preview(self, nodes: dict[str, Any]) -> None:
        """Show the volumes of a training's preview by kind, or nothing."""
        for kind, row, _letter, _color in ROWS:
            self._fill_view(nodes, "Axial", kind, row)

    def _fill_view(self, nodes: dict[str, Any], column: str, kind: str, row: str, above: Any = None) -> None:
        """Show a volume along its own axes, fitted, and with the masked one what is hidden."""
        node = nodes.get(kind)
        logic = slicer.app.layoutManager().sliceWidget(view_name(row, column)).sliceLogic()
        composite, slice_node = logic.GetSliceCompositeNode(), logic.GetSliceNode()
        composite.SetBackgroundVolumeID(node.GetID() if node is not None else None)
        composite.SetForegroundVolumeID(above.GetID() if above is not None else None)
        hidden = nodes.get("mask") if kind == "masked" else None
        composite.SetLabelVolumeID(hidden.GetID() if hidden is not None else None)
        composite.SetLabelOpacity(HIDDEN_OPACITY)
        if node is not None and min(slice_node.GetDimensions()[:2]) > 0:
            self._fit(view_name(row, column), logic, slice_node, node)
        composite.SetLinkedControl(True)
        self.keep_apart()

    def _fit(self, name: str, logic: Any, slice_node: Any, node: Any) -> None:
        """Fit a view to a volume, unless it shows that grid already: the user may have zoomed and scrolled."""
        bounds = [0.0] * 6
        node.GetRASBounds(bounds)
        shown = (node.GetImageData().GetDimensions(), node.GetTransformNodeID(), tuple(bounds))
        if self._fitted.get(name) == shown:
            return
        self._fitted[name] = shown
        slice_node.SetOrientation(name.rsplit("-", 1)[1])
        slice_node.RotateToVolumePlane(node)
        logic.FitSliceToBackground()
        logic.SnapSliceOffsetToIJK()

    def slice_node(self, row: str, column: str) -> Any:
        """Return the slice node of a view."""
        return slicer.app.layoutManager().sliceWidget(view_name(row, column)).sliceLogic().GetSliceNode()
