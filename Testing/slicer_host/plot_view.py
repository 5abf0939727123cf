"""Plot and table views. slicer-core has the plot nodes but no views, so the host draws them from the nodes."""

from __future__ import annotations

from typing import Any

import shiboken6
import vtk
from PySide6 import QtCore, QtWidgets

from .mrml_widgets import qMRMLTableView
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

    def mrmlPlotViewNode(self) -> Any:
        return self._node

    def chart(self) -> Any:
        return self._chart

    def fitToContent(self) -> None:
        self._chart.RecalculateBounds()
        self.scheduleRender()

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
        for thing, event in ((self._node, self._node.PlotChartNodeChangedEvent),):
            self._tags.append((thing, thing.AddObserver(event, self._watch)))
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
        for axis, title, shown, automatic, bounds in (
            (1, node.GetXAxisTitle(), node.GetXAxisTitleVisibility(), node.GetXAxisRangeAuto(), node.GetXAxisRange()),
            (0, node.GetYAxisTitle(), node.GetYAxisTitleVisibility(), node.GetYAxisRangeAuto(), node.GetYAxisRange()),
        ):
            drawn = self._chart.GetAxis(axis)
            drawn.SetTitle(title or "" if shown else "")
            drawn.SetGridVisible(node.GetGridVisibility())
            drawn.SetBehavior(vtk.vtkAxis.AUTO if automatic else vtk.vtkAxis.FIXED)
            if not automatic:
                drawn.SetRange(*bounds)
        self._chart.GetAxis(1).SetLogScale(bool(node.GetXAxisLogScale()))
        self._chart.GetAxis(0).SetLogScale(bool(node.GetYAxisLogScale()))
        for series in self._series():
            if series is not None:
                self._draw(series)
        self._chart.RecalculateBounds()

    def _draw(self, series: Any) -> None:
        node = series.GetTableNode()
        table = node.GetTable() if node is not None else None
        if (
            table is None
            or table.GetNumberOfRows() == 0
            or table.GetColumnByName(series.GetYColumnName() or "") is None
        ):
            return
        bars = series.GetPlotType() in (series.PlotTypeBar, series.PlotTypeScatterBar)
        scatter = series.GetPlotType() == series.PlotTypeScatter
        plot = self._chart.AddPlot(vtk.vtkChart.BAR if bars else vtk.vtkChart.LINE)
        if series.IsXColumnRequired() or series.GetXColumnName():
            if table.GetColumnByName(series.GetXColumnName() or "") is None:
                return
            plot.SetInputData(table, series.GetXColumnName(), series.GetYColumnName())
        else:
            plot.SetInputData(table, series.GetYColumnName(), series.GetYColumnName())
            plot.SetUseIndexForXSeries(True)
        plot.SetLabel(series.GetName())
        plot.SetColorF(*series.GetColor())
        plot.SetWidth(series.GetLineWidth())
        if not bars:
            plot.GetPen().SetLineType(series.GetLineStyle())
            plot.SetMarkerStyle(series.GetMarkerStyle())
            plot.SetMarkerSize(series.GetMarkerSize())
            if scatter and series.GetLineStyle() == series.LineStyleNone:
                plot.GetPen().SetLineType(vtk.vtkPen.NO_PEN)


class qMRMLPlotWidget(QtWidgets.QWidget):  # noqa: N801
    """A plot view with its bar."""

    def __init__(self, node: Any, application_logic: Any) -> None:
        super().__init__()
        self._view = qMRMLPlotView(node)
        self._bar = QtWidgets.QLabel(f" {node.GetLayoutLabel() or 'P'}")
        self._bar.setFixedHeight(22)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._bar)
        column.addWidget(self._view, 1)

    def _stop(self) -> None:
        self._view._stop()

    def plotView(self) -> qMRMLPlotView:
        return self._view

    def plotController(self) -> QtWidgets.QLabel:
        return self._bar

    def mrmlPlotViewNode(self) -> Any:
        return self._view._node


class qMRMLTableWidget(QtWidgets.QWidget):  # noqa: N801
    """A table view with its bar."""

    def __init__(self, node: Any, application_logic: Any) -> None:
        super().__init__()
        self._node = node
        self._view = qMRMLTableView()
        self._bar = QtWidgets.QLabel(f" {node.GetLayoutLabel() or 'T'}")
        self._bar.setFixedHeight(22)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._bar)
        column.addWidget(self._view, 1)
        self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._show)
        self._show()

    def _show(self, *_: Any) -> None:
        if shiboken6.isValid(self):
            self._view.setMRMLTableNode(self._node.GetTableNode())

    def _stop(self) -> None:
        self._node.RemoveObserver(self._tag)
        self._view.setMRMLTableNode(None)

    def tableView(self) -> qMRMLTableView:
        return self._view

    def tableController(self) -> QtWidgets.QLabel:
        return self._bar

    def mrmlTableViewNode(self) -> Any:
        return self._node


class BlankView(QtWidgets.QLabel):
    """Stands where Slicer has a 3D view."""

    def __init__(self, node: Any, application_logic: Any) -> None:
        super().__init__(f"3D view {node.GetLayoutLabel() or ''}")
        self.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self.setStyleSheet("background: #9a9ac8")
        self.setMinimumSize(20, 20)

    def _stop(self) -> None:
        pass


ALL = (qMRMLPlotView, qMRMLPlotWidget, qMRMLTableWidget)
