"""The lower half of the Reconstruct section: metrics, windows, layout, outlines, the superpatch under the mouse."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAESILWidgets.panels import words
from MAESILWidgets.panels.choices import Choice, show_text
from MAESILWidgets.panels.compare_panel import ComparePanel
from MAESILWidgets.panels.section import Section
from MAESILWidgets.scene import display, outlines
from MAESILWidgets.scene.layout import COMPARE_LAYOUT_ID, INPUT_LAYOUT_ID, LAYOUT_ID, view_names
from MAESILWidgets.scene.picking import ViewClicks
from MAESILWidgets.scene.results_scene import Result, results


class ResultPanel(Section):
    """Shows the results of the scene, one at a time."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self.views, ui = panel.views, panel.ui
        self.result: Result | None = None
        self.compare = ComparePanel(panel, self._compared)
        self.window = display.SharedWindow(self._mark_window)
        self.clicks = ViewClicks(self.click)
        self.selected: int | None = None
        self.choice = Choice(
            ui.resultSelector, {}, lambda key: self.open(slicer.mrmlScene.GetNodeByID(key), self.views.is_shown())
        )
        self.window_buttons = {
            "lung": ui.lungWindowButton,
            "soft": ui.softWindowButton,
            "bone": ui.boneWindowButton,
            "wide": ui.wideWindowButton,
        }
        for name, button in self.window_buttons.items():
            # a default argument, because all loops share one variable
            button.connect("clicked(bool)", lambda _checked, name=name: self._window_chosen(name))
        ui.errorRangeSpinBox.connect("valueChanged(int)", lambda hu: display.set_error_range(self._errors(), hu))
        ui.layoutButton.connect("clicked(bool)", lambda _checked: self.show())
        ui.layoutBackButton.connect("clicked(bool)", lambda _checked: self.back())
        ui.outlinesCheckBox.connect("toggled(bool)", lambda _checked: self._outline())
        ui.removeResultButton.connect("clicked(bool)", lambda _checked: self.remove())

    def stop(self) -> None:
        """Let go of nodes and views."""
        self.window.removeObservers()
        self.clicks.removeObservers()
        self.result = self.compare.other = None

    def update(self) -> None:
        """Show the current result, or that there is none."""
        found = results() if self.parameters is not None else []
        self.choice.set_items({result.id: result.name for result in found})
        chosen = self.parameters.currentResult if self.parameters is not None else None
        current = next((result for result in found if chosen is not None and result.id == chosen.GetID()), None)
        if current is None and found:
            current = found[-1]
        self.compare.update(current, found)
        self._take(current)

    def open(self, text_node: Any, show: bool) -> None:
        """Choose a result, and show it in the 3x3 views if asked."""
        if self.parameters is None:
            return
        self.parameters.currentResult = text_node
        self.update()
        self._apply_display()
        if show:
            self.show()

    def show(self) -> None:
        """Show the current result, with what it is compared with, in views of ours."""
        if self.result is None or not self.result.is_whole():
            return
        number = INPUT_LAYOUT_ID if self.ui.inputRowCheckBox.checked else LAYOUT_ID
        number = COMPARE_LAYOUT_ID if self.compare.is_side_by_side() else number
        self.views.show(self.result, number, self.compare.other, self.ui.fadeSlider.value)
        self.clicks.start()
        self._outline()

    def back(self) -> None:
        """Return to the user's own layout."""
        self.clicks.removeObservers()
        self.views.back()

    def remove(self) -> None:
        """Remove the current result from the scene."""
        if self.result is None:
            return
        self.window.removeObservers()
        result, self.result = self.result, None
        result.delete()
        self.parameters.currentResult = None
        self.update()
        if self.result is not None and self.views.is_shown():
            self.show()

    def restore(self) -> None:
        """After a scene was loaded, before the module was opened or since: take up its result, and the views."""
        self.update()
        self.watch_clicks()
        if self.result is not None:
            display.restore_colors(self.parameters.errorRange)
        if self.views.is_shown() and self.result is not None and self.result.is_whole():
            self.views.show_legend(self.result)

    def watch_clicks(self) -> None:
        """Watch the views if they are up: after a scene was loaded, or the module was opened late."""
        if self.views.is_shown():
            self.clicks.start()

    def click(self, world_ras: tuple[float, float, float]) -> None:
        """Select the superpatch at a point of the world (RAS, mm)."""
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if self.result is None or interaction.GetCurrentInteractionMode() != interaction.ViewTransform:
            # the click places a point or paints
            return
        volume = self.result.node("reconstruction")
        if volume is None:
            return
        number = outlines.superpatch_at(self.result.metrics, outlines.to_own_space(volume, world_ras))
        self.selected = number
        self._outline()
        text = superpatch_text(self.result.metrics, number) if number is not None else ""
        show_text(self.ui.superpatchLabel, text)

    def _take(self, result: Result | None) -> None:
        is_new = result is None or self.result is None or result.id != self.result.id
        self.result = result
        if result is not None:
            self.choice.select(result.id)
        for widget in (self.ui.resultSelector, self.ui.removeResultButton, self.ui.metricsTable, self.ui.layoutButton,
                       self.ui.errorRangeSpinBox, self.ui.outlinesCheckBox, *self.window_buttons.values()):  # fmt: skip
            widget.enabled = result is not None
        self.window.watch(self._gray(), self._errors())
        if is_new:
            self._fill_table()
            self.selected = None
            self._outline()
            hint = _("Click into a view to see the metrics of the superpatch there.")
            show_text(self.ui.superpatchLabel, hint if result is not None else "")
        self._mark_window()

    def _fill_table(self) -> None:
        rows = self.result.rows() if self.result is not None else []
        table = self.ui.metricsTable
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate(row):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(words.explain(row[0]))
                table.setItem(number, column, item)
        table.resizeColumnToContents(0)

    def _compared(self) -> None:
        """Show what else is chosen, with the window that is shown now."""
        self.update()
        gray = self._gray()
        for shown in gray[:1]:
            display.set_window(gray, shown.GetLevel(), shown.GetWindow())
            display.set_error_range(self._errors(), self.parameters.errorRange)
        if self.views.is_shown():
            self.show()

    def _gray(self) -> list[Any]:
        kinds = (*display.GRAY, "input") if self.ui.inputRowCheckBox.checked else display.GRAY
        return display.display_nodes([*filter(None, (self.result, self.compare.other))], kinds)

    def _errors(self) -> list[Any]:
        return display.display_nodes([*filter(None, (self.result, self.compare.other))], ("error",))

    def _apply_display(self) -> None:
        if self.result is not None:
            window = display.WINDOWS.get(self.parameters.windowPreset, display.WINDOWS["wide"])
            display.set_window(self._gray(), *window)
            display.set_error_range(self._errors(), self.parameters.errorRange)

    def _window_chosen(self, name: str) -> None:
        self.parameters.windowPreset = name
        display.set_window(self._gray(), *display.WINDOWS[name])
        self._mark_window()

    def _mark_window(self) -> None:
        """Press the button of the preset that is shown, if it is one; the user may have dragged another window."""
        node = self.result.node("reconstruction") if self.result is not None else None
        shown = node.GetDisplayNode() if node is not None else None
        for name, button in self.window_buttons.items():
            button.checked = shown is not None and display.WINDOWS[name] == (shown.GetLevel(), shown.GetWindow())
            # a dark theme hardly shows what is pressed
            font = button.font
            font.setBold(button.checked)
            button.setFont(font)

    def _outline(self) -> None:
        """Outline this result's superpatches if they are asked for, and the selected one; those of no other."""
        outlines.hide()
        if self.result is None or not self.result.is_whole() or not self.views.is_shown():
            return
        manager = slicer.app.layoutManager()
        views = [manager.sliceWidget(name).sliceLogic().GetSliceNode().GetID() for name in view_names()]
        if self.ui.outlinesCheckBox.checked:
            outlines.show(self.result, "outlines", list(range(len(self.result.metrics["superpatches"]))), views)
        if self.selected is not None:
            outlines.show(self.result, "selected", [self.selected], views)


def superpatch_text(metrics: dict[str, Any], number: int) -> str:
    """Return the metrics of one superpatch."""
    from MAESILLib.metrics.catalogue import caption

    box = metrics["superpatches"][number]
    size = " x ".join(str(n) for n in box["size_dhw"][::-1])
    text = _("Superpatch {n} of {all}, {size} voxels of the model").format(
        n=number + 1, all=len(metrics["superpatches"]), size=size
    )
    # a scene of version 0.1.0 has the ratio under another key
    hidden = _("{ratio:.1%} hidden").format(ratio=box["mask_ratio"]) if "mask_ratio" in box else ""
    return f"{text}: {', '.join(filter(None, (hidden, caption(box, ', '))))}"
