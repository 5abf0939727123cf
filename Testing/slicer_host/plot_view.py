"""Plot views: slicer-core has the plot nodes but no views, so the host draws them from the nodes."""

from __future__ import annotations

from typing import Any

import shiboken6
import vtk
from PySide6 import QtCore, QtWidgets

from .rendered_view import RenderedView


class qMRMLPlotView(RenderedView):  # noqa: N801
    """The chart that its plot view node names."""

    def __init__(self, node: Any) -> None:
        self._context = vtk.vtkContextView()
        super().__init__(self._context.GetRenderWindow())
        self._context.GetRenderer().SetBackground(1, 1, 1)
        self._node = node
        self._chart = vtk.vtkChartXY()
        self._context.GetScene().AddItem(self._chart)
        self._tags: list[tuple[Any, int]] = []
        self._watch()

    def _stop(self) -> None:
        for thing, tag in self._tags:
            thing.RemoveObserver(tag)
        self._tags = []
        self._timer.stop()
        self._window.Finalize()

    def _series(self) -> list[Any]:
        chart = self._node.GetPlotChartNode()
        return [chart.GetNthPlotSeriesNode(i) for i in range(chart.GetNumberOfPlotSeriesNodes())] if chart else []

    def _watch(self, *_: Any) -> None:
        """Observe view, chart, series and tables; a change of any draws again."""
        if not shiboken6.isValid(self):
            return
        for thing, tag in self._tags:
            thing.RemoveObserver(tag)
        chart = self._node.GetPlotChartNode()
        things = [self._node, chart, *self._series(), *(s.GetTableNode() for s in self._series() if s is not None)]
        unique = {id(thing): thing for thing in things if thing is not None}
        self._tags = [
            (thing, thing.AddObserver(vtk.vtkCommand.ModifiedEvent, self._watch)) for thing in unique.values()
        ]
        self._tags.append((self._node, self._node.AddObserver(self._node.PlotChartNodeChangedEvent, self._watch)))
        if chart is not None:
            self._tags.append((chart, chart.AddObserver(chart.PlotModifiedEvent, self._watch)))
        self.scheduleRender()

    def _before_render(self) -> None:
        self._chart.ClearPlots()
        node = self._node.GetPlotChartNode()
        if node is None:
            self._chart.SetTitle("")
            return
        self._chart.SetTitle(node.GetTitle() or "" if node.GetTitleVisibility() else "")
        self._chart.SetShowLegend(node.GetLegendVisibility())
        for axis, title in ((1, node.GetXAxisTitle()), (0, node.GetYAxisTitle())):
            drawn = self._chart.GetAxis(axis)
            drawn.SetTitle(title or "")
            drawn.SetGridVisible(node.GetGridVisibility())
        for series in self._series():
            if series is not None:
                self._draw(series)
        self._chart.RecalculateBounds()

    def _draw(self, series: Any) -> None:
        node = series.GetTableNode()
        table = node.GetTable() if node is not None else None
        columns = [name or "" for name in (series.GetXColumnName(), series.GetYColumnName())]
        if table is None or table.GetNumberOfRows() == 0 or None in map(table.GetColumnByName, columns):
            return
        if series.GetPlotType() != series.PlotTypeScatter:
            raise NotImplementedError("the host draws scatter plots alone")
        plot = self._chart.AddPlot(vtk.vtkChart.LINE)
        plot.SetInputData(table, *columns)
        plot.SetLabel(series.GetName())
        plot.SetColorF(*series.GetColor())
        plot.SetWidth(series.GetLineWidth())
        plot.GetPen().SetLineType(series.GetLineStyle())
        plot.SetMarkerStyle(series.GetMarkerStyle())
        plot.SetMarkerSize(series.GetMarkerSize())


class qMRMLPlotWidget(QtWidgets.QWidget):  # noqa: N801
    """A plot view with its bar."""

    def __init__(self, node: Any, application_logic: Any) -> None:
        super().__init__()
        self._view = qMRMLPlotView(node)
        bar = QtWidgets.QLabel(f" {node.GetLayoutLabel() or 'P'}")
        bar.setFixedHeight(22)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(bar)
        column.addWidget(self._view, 1)

    def _stop(self) -> None:
        self._view._stop()

    def plotView(self) -> qMRMLPlotView:
        return self._view


class BlankView(QtWidgets.QLabel):
    """Stands where Slicer has a 3D view."""

    def __init__(self, node: Any, application_logic: Any) -> None:
        super().__init__(f"3D view {node.GetLayoutLabel() or ''}")
        self.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self.setStyleSheet("background: #9a9ac8")
        self.setMinimumSize(20, 20)

    def _stop(self) -> None:
        pass


ALL = (qMRMLPlotView, qMRMLPlotWidget)
