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
FIT_AFTER_MS = 100
"""A view has drawn what is new by then."""
UNFITTED = (0.0, 1.0)
"""Range of a chart node, which Slicer sets when a view is fitted, and when the user zooms or pans."""
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
"""Of each chart: table, column and color of its curves."""
MOST_POINTS = 4000
"""A chart of more is slow, and shows no more."""


TITLES = {"Loss": _("Loss"), "PSNR": _("PSNR of hidden patches (dB)"), "Encoder": _("Encoder")}


class TrainingPlots:
    """Collects metric events and shows them in the two plot views."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in TABLES}
        self.tables: dict[str, Any] = {}
        self.series: dict[str, Any] = {}
        self.charts: dict[str, Any] = {}
        self._fitted: dict[str, Any] = {}
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
        """Bring tables and charts up to date."""
        if self.is_lost():
            return
        for name, node in self.tables.items():
            node.SetAndObserveTable(_table(TABLES[name], self.rows[name]))
        for name, chart in self.charts.items():
            for table, column, _color in CURVES[name]:
                series_id = self.series[column].GetID()
                # VTK cannot draw a line of one point, and says so at every turn
                if len(self.rows[table]) > 1 and not chart.HasPlotSeriesNodeID(series_id):
                    chart.AddAndObservePlotSeriesNodeID(series_id)
        qt.QTimer.singleShot(FIT_AFTER_MS, self._fit)

    def _fit(self) -> None:
        """Fit the axes, which keep the range of their first points, unless the user has zoomed."""
        for name, chart in self.charts.items():
            widget = slicer.app.layoutManager().viewWidget(_view(name))
            ranges = (chart.GetXAxisRange(), chart.GetYAxisRange())
            if widget is not None and ranges == self._fitted[name]:
                widget.plotView().fitToContent()
                self._fitted[name] = (chart.GetXAxisRange(), chart.GetYAxisRange())

    def _make_nodes(self) -> None:
        self.tables = {name: _node("vtkMRMLTableNode", f"MAESIL {name}") for name in TABLES}
        for name, curves in CURVES.items():
            chart = _node("vtkMRMLPlotChartNode", f"MAESIL {name}")
            chart.RemoveAllPlotSeriesNodeIDs()
            chart.SetXAxisRange(UNFITTED)
            chart.SetYAxisRange(UNFITTED)
            self._fitted[name] = (UNFITTED, UNFITTED)
            chart.SetTitle(TITLES[name])
            chart.SetXAxisTitle(_("step"))
            chart.SetYAxisTitle("")
            chart.SetLegendVisibility(len(curves) > 1)
            for table, column, color in curves:
                series = _node("vtkMRMLPlotSeriesNode", f"MAESIL {column}")
                series.SetName(column)
                series.SetAndObserveTableNodeID(self.tables[table].GetID())
                series.SetXColumnName("step")
                series.SetYColumnName(column)
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle)
                series.SetMarkerSize(4)
                series.SetColor(*color)
                self.series[column] = series
            self.charts[name] = chart

    def is_lost(self) -> bool:
        """Whether the nodes went away with the scene they were in."""
        ours = (*self.tables.values(), *self.series.values(), *self.charts.values())
        return any(node.GetScene() is None for node in ours)

    def show(self) -> None:
        """Put the charts into the training layout's plot views; the layout must be up."""
        if self.is_lost():
            self._make_nodes()
            self.refresh()
        for name, chart in self.charts.items():
            _view(name).SetPlotChartNodeID(chart.GetID())


def _table(titles: tuple[str, ...], rows: list[tuple[float, ...]]) -> Any:
    """Return the rows as vtkTable, thinned out if there are many."""
    values = np.array(rows[:: 1 + len(rows) // MOST_POINTS], dtype=np.float64).reshape(-1, len(titles))
    table = vtk.vtkTable()
    for number, title in enumerate(titles):
        column = numpy_support.numpy_to_vtk(np.ascontiguousarray(values[:, number]), deep=True)
        column.SetName(title)
        table.AddColumn(column)
    return table


def _view(name: str) -> Any:
    """Return the plot view's node of a chart, or None where it was never shown."""
    return slicer.mrmlScene.GetSingletonNode(f"MAESIL-{name}", "vtkMRMLPlotViewNode")


def _node(class_name: str, name: str) -> Any:
    """Return our node of this name, made when first asked for."""
    for node in slicer.util.getNodesByClass(class_name):
        if node.GetAttribute("MAESIL.Training") == name:
            return node
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, name)
    node.SetAttribute("MAESIL.Training", name)
    return node
