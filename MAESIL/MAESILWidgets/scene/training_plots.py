"""Live curves of a training: table, series and chart nodes, refreshed at most twice a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

REFRESH_MS = 500
TABLES = {
    "training": ("step", "loss", "training"),
    "validation": ("step", "validation"),
    "encoder": ("step", "least attention share", "patch R2"),
    "probe": ("step", "probe AUROC"),
}
"""Several tables, because validations are rare, probes rarer, and a chart draws no missing values."""
CURVES = {
    "Loss": (("training", "loss", (0.85, 0.35, 0.2)),),
    "PSNR": (("training", "training", (0.3, 0.5, 0.8)), ("validation", "validation", (0.2, 0.6, 0.3))),
    "Encoder": (
        ("encoder", "least attention share", (0.3, 0.5, 0.8)),
        ("encoder", "patch R2", (0.2, 0.6, 0.3)),
        ("probe", "probe AUROC", (0.85, 0.35, 0.2)),
    ),
}
"""Of each chart: table, column and colour of its curves."""
MOST_POINTS = 4000
"""A chart of more is slow, and shows no more."""


TITLES = {"Loss": _("Loss"), "PSNR": _("PSNR of hidden patches (dB)"), "Encoder": _("Encoder")}


class TrainingPlots:
    """Collects metric events and shows them in the two plot views."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in TABLES}
        self.tables: dict[str, Any] = {}
        self.charts: dict[str, Any] = {}
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self.refresh)

    def begin(self, rows: list[dict[str, Any]] | None = None) -> None:
        """Start with empty curves, or with those of a log that is gone on with."""
        self.rows = {name: [] for name in TABLES}
        for row in rows or []:
            self._append(row)
        self._make_nodes()
        self.refresh()

    def add(self, event: dict[str, Any]) -> None:
        """Take a metric event."""
        self._append(event)
        if not self._timer.isActive():
            self._timer.start(REFRESH_MS)

    def end(self) -> None:
        """Show what is not shown yet."""
        self._timer.stop()
        self.refresh()

    def _append(self, event: dict[str, Any]) -> None:
        step = float(event["step"])
        self._put("training", step, event.get("loss"), event.get("psnr_masked_db"))
        self._put("validation", step, event.get("val_psnr_masked_db"))
        shares = [event[key] for key in event if key.startswith("val_attention_share_") and event[key] is not None]
        self._put("encoder", step, min(shares, default=None), event.get("val_patch_r2"))
        self._put("probe", step, event.get("val_probe_auroc"))

    def _put(self, table: str, step: float, *values: float | None) -> None:
        if any(value is None for value in values):
            return
        rows = self.rows[table]
        while rows and rows[-1][0] >= step:
            # a resumed run repeats the steps after its last state
            rows.pop()
        rows.append((step, *(float(value) for value in values if value is not None)))

    def refresh(self) -> None:
        """Bring the tables up to date; the charts follow them."""
        for name, node in self.tables.items():
            if node.GetScene() is None:
                continue
            node.SetAndObserveTable(_table(TABLES[name], self.rows[name]))

    def _make_nodes(self) -> None:
        self.tables = {name: _node("vtkMRMLTableNode", f"MAESIL {name}") for name in TABLES}
        for name, curves in CURVES.items():
            chart = _node("vtkMRMLPlotChartNode", f"MAESIL {name}")
            chart.RemoveAllPlotSeriesNodeIDs()
            chart.SetTitle(TITLES[name])
            chart.SetXAxisTitle(_("step"))
            chart.SetYAxisTitle("")
            chart.SetLegendVisibility(len(curves) > 1)
            for table, column, colour in curves:
                series = _node("vtkMRMLPlotSeriesNode", f"MAESIL {column}")
                series.SetName(column)
                series.SetAndObserveTableNodeID(self.tables[table].GetID())
                series.SetXColumnName("step")
                series.SetYColumnName(column)
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                # a curve of one point would show nothing
                series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle)
                series.SetMarkerSize(4)
                series.SetColor(*colour)
                chart.AddAndObservePlotSeriesNodeID(series.GetID())
            self.charts[name] = chart

    def is_lost(self) -> bool:
        """Whether the nodes went away with the scene they were in."""
        return any(node.GetScene() is None for node in (*self.tables.values(), *self.charts.values()))

    def show(self) -> None:
        """Put the charts into the training layout's plot views; the layout must be up."""
        if self.is_lost():
            self._make_nodes()
            self.refresh()
        for name, chart in self.charts.items():
            view = slicer.mrmlScene.GetSingletonNode(f"MAESIL-{name}", "vtkMRMLPlotViewNode")
            if view is not None and chart.GetScene() is not None:
                view.SetPlotChartNodeID(chart.GetID())


def _table(titles: tuple[str, ...], rows: list[tuple[float, ...]]) -> Any:
    """Return the rows as vtkTable, thinned out if there are many."""
    # VTK cannot draw a line of one point, and says so at every turn
    shown = rows[:: 1 + len(rows) // MOST_POINTS] if len(rows) > 1 else []
    values = np.array(shown, dtype=np.float64).reshape(-1, len(titles))
    table = vtk.vtkTable()
    for number, title in enumerate(titles):
        column = numpy_support.numpy_to_vtk(np.ascontiguousarray(values[:, number]), deep=True)
        column.SetName(title)
        table.AddColumn(column)
    return table


def _node(class_name: str, name: str) -> Any:
    """Return our node of this name, made when first asked for."""
    for node in slicer.util.getNodesByClass(class_name):
        if node.GetAttribute("MAESIL.Training") == name:
            return node
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, name)
    node.SetAttribute("MAESIL.Training", name)
    return node
