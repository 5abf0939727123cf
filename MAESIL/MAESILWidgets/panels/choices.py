"""Combo boxes that hold a value behind each text, bound to the parameter node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

MASKS = {
    "dual": _("Dual: in-plane positions, then along the axis"),
    "uniform": _("Uniform: anywhere"),
    "product": _("Product: whole slices and columns"),
    "tube": _("Tube: the same positions at every depth"),
    "group": _("Group: cubes of 2 x 2 x 2 patches"),
    "block": _("Block: cubes of 4 x 4 x 4 patches"),
    "none": _("None: auto-encoding"),
}
COVERAGES = {
    "single": _("Single: one mask"),
    "complete": _("Complete: every patch predicted unseen"),
}
DATA_SOURCES = {
    "folder": _("A folder of CTs"),
    "scene": _("Volumes in the scene"),
}
PRESETS = {
    "tiny": _("Tiny: 0.6 M weights, to try things out"),
    "small": _("Small: 4 M weights"),
    "base": _("Base: 95 M weights, for a GPU"),
    "paper": _("Paper: 49 M weights, as the paper describes it, for a GPU"),
}
TRAIN_MASKS = {
    "mix": _("Mixture of dual, uniform and group"),
    **{name: title for name, title in MASKS.items() if name != "none"},
}


def show_text(label: Any, text: str) -> None:
    """Show a label with this text; hide it if there is none."""
    label.text = text
    label.setVisible(bool(text))


class WholeHeight(qt.QObject):
    """Gives the panel the height that its wrapped texts need.

    Slicer goes by the smallest height, which counts one line a text, and lets the sections overlap.
    """

    def eventFilter(self, panel: Any, event: Any) -> bool:  # noqa: N802 (Qt's name)
        """Set the height when texts or the width change."""
        if event.type() in (qt.QEvent.LayoutRequest, qt.QEvent.Resize):
            height = panel.layout().heightForWidth(panel.width)
            if panel.minimumHeight != height:
                panel.setMinimumHeight(height)
        return False


class Choice:
    """Fills a combo box and calls ``on_change`` with the value the user chose.

    Args:
        items: text by value.
    """

    def __init__(self, combo: Any, items: dict[str, str], on_change: Callable[[str], None]) -> None:
        self.combo, self.on_change = combo, on_change
        self.items: dict[str, str] = {}
        self.set_items(items)
        combo.connect("currentIndexChanged(int)", self._changed)

    def set_items(self, items: dict[str, str]) -> None:
        """Replace the items, keeping the value if it is still there."""
        if items == self.items:
            # filling it anew would close the list under the user's mouse
            return
        self.items = dict(items)
        value = self.value()
        was = self.combo.blockSignals(True)
        self.combo.clear()
        for one, text in items.items():
            self.combo.addItem(text, one)
        self.combo.blockSignals(was)
        self.select(value)

    def value(self) -> str:
        """Return the chosen value; empty if there are no items."""
        index = self.combo.currentIndex
        return str(self.combo.itemData(index)) if index >= 0 else ""

    def select(self, value: str) -> bool:
        """Choose a value without calling ``on_change``; say whether it was there."""
        index = self.combo.findData(value)
        if index < 0:
            return False
        was = self.combo.blockSignals(True)
        self.combo.setCurrentIndex(index)
        self.combo.blockSignals(was)
        return True

    def _changed(self, index: int) -> None:
        if index >= 0:
            self.on_change(self.value())
