"""Combo boxes that hold a value behind each text, bound to the parameter node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

MASKS = {
    "dual": "Dual: in-plane positions, then along the axis",
    "uniform": "Uniform: anywhere",
    "product": "Product: whole slices and columns",
    "tube": "Tube: the same positions at every depth",
    "block": "Block: clusters of 2 x 2 x 2 patches",
    "none": "None: auto-encoding",
}
COVERAGES = {"single": "Single: one mask", "complete": "Complete: every patch predicted unseen"}
DATA_SOURCES = {"folder": "A folder of CTs", "scene": "Volumes in the scene"}
PRESETS = {
    "tiny": "Tiny: 0.4 M weights, to try things out",
    "small": "Small: 13 M weights, as the one that comes with MAESIL",
    "base": "Base: 35 M weights, for a GPU",
    "paper": "Paper: as the paper describes it, for a GPU",
}
TRAIN_MASKS = {
    "mix": "Mixture of dual, uniform and product",
    "dual": "Dual only",
    "uniform": "Uniform only",
    "product": "Product only",
    "tube": "Tube only",
    "block": "Block only",
}


class Choice:
    """Fills a combo box and calls ``on_change`` with the value the user chose.

    Args:
        items: text by value.
    """

    def __init__(self, combo: Any, items: dict[str, str], on_change: Callable[[str], None]) -> None:
        self.combo, self.on_change = combo, on_change
        self.set_items({value: _(text) for value, text in items.items()})
        combo.connect("currentIndexChanged(int)", self._changed)

    def set_items(self, items: dict[str, str]) -> None:
        """Replace the items, keeping the value if it is still there."""
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
