"""What is shown beside a result: the input in a row of its own, and another result of the same input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from MAESILWidgets.panels.choices import Choice
from MAESILWidgets.panels.section import Section
from MAESILWidgets.scene.results_scene import Result


class ComparePanel(Section):
    """Chooses what a result is compared with.

    Args:
        on_change: called when another result, row or arrangement was chosen.
    """

    def __init__(self, panel: Any, on_change: Callable[[], None]) -> None:
        super().__init__(panel)
        self.on_change, ui = on_change, panel.ui
        self.other: Result | None = None
        self.choice = Choice(ui.compareSelector, {}, self._chosen)
        for check_box in (ui.sideBySideCheckBox, ui.inputRowCheckBox):
            check_box.connect("toggled(bool)", lambda _checked: on_change())
        ui.fadeSlider.connect("valueChanged(double)", panel.views.fade)

    def update(self, result: Result | None, results: list[Result]) -> None:
        """Offer the other results of this one's input."""
        source = result.node("input") if result is not None else None
        others = {
            one.id: one
            for one in results
            if source is not None and one.id != result.id and one.node("input") is source and one.is_whole()
        }
        chosen = self.parameters.compareWith if self.parameters is not None else None
        self.other = others.get(chosen.GetID()) if chosen is not None else None
        self.choice.set_items({"": _("Nothing"), **{key: one.name for key, one in others.items()}})
        self.choice.select(self.other.id if self.other is not None else "")
        self.ui.compareSelector.enabled = bool(others)
        self.ui.sideBySideCheckBox.enabled = self.other is not None
        self.ui.fadeSlider.enabled = self.other is not None and not self.is_side_by_side()
        self.ui.inputRowCheckBox.enabled = source is not None

    def is_side_by_side(self) -> bool:
        """Whether both results have rows of their own."""
        return self.other is not None and bool(self.ui.sideBySideCheckBox.checked)

    def _chosen(self, node_id: str) -> None:
        self.parameters.compareWith = self.parameters.parameterNode.GetScene().GetNodeByID(node_id)
        self.on_change()
