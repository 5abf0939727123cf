"""The choice of what a user painted, to be hidden from the model."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from MAESILWidgets.panels.choices import Choice
from MAESILWidgets.panels.section import Section
from MAESILWidgets.scene import painted


class PaintPanel(Section):
    """Chooses a segmentation, with all of its segments or one of them, or a label map."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self.segment = Choice(self.ui.segmentSelector, {}, lambda segment: self.set("paintedSegment", segment))
        self.ui.paintedSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._chosen)

    def update(self) -> None:
        """Show what is chosen."""
        if self.parameters is None:
            return
        node, segment = self.parameters.painted, self.parameters.paintedSegment
        self.ui.paintedSelector.setCurrentNode(node)
        names = painted.segments(node)
        items = {"": _("All segments"), **names}
        if segment not in items:
            items[segment] = _("(no longer there)")
        self.segment.set_items(items)
        self.segment.select(segment)
        self.ui.segmentSelector.setVisible(len(items) > 2)

    def label_map(self) -> Any:
        """Return what is chosen as a label map in the space of the input, or None where nothing is.

        Raises:
            ValueError: it cannot be hidden.
        """
        p = self.parameters
        return None if p.painted is None else painted.label_map(p.painted, p.paintedSegment, p.inputVolume)

    def _chosen(self, node: Any) -> None:
        if self.parameters is not None and node is not self.parameters.painted:
            self.parameters.paintedSegment = ""
            self.parameters.painted = node
