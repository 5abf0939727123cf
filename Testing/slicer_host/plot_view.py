"""Plot views: slicer-core has the plot nodes but no views, so the host draws them from the nodes."""

from typing import Any

import shiboken6
import vtk
from PySide6 import QtCore, QtWidgets

from .rendered_view import RenderedView
from .widget_parts import Observing


class qMRMLPlotView(Observing, RenderedView):  # noqa: N801
    """The chart that its plot view node names."""

    def __init__(self, node: Any) -> None:
        self._context = vtk.vtkContextView()
        super().__init__(self._context.GetRenderWindow())
        self._context.GetRenderer().SetBackground(1, 1, 1)
        self._node = node
        self._chart = vtk.vtkChartXY()
        self._context.GetScene().AddItem(self._chart)
        self._plots: dict[str, Any] = {}
        self._watch()

    def _stop(self) -> None:
        self._stop_observing()
        self._timer.stop()
        self._window.Finalize()

    def _series(self) -> list[Any]:
        chart = self._node.GetPlotChartNode()
        return [chart.GetNthPlotSeriesNode(i) for i in range(chart.GetNumberOfPlotSeriesNodes())] if chart else []

    def _watch(self, *_: Any) -> None:
        """Observe view, chart, series and tables; a change of any draws again."""
        if not shiboken6.isValid(self):
            return
        self._stop_observing()
        chart = self._node.GetPlotChartNode()
        things = [self._node, chart, *self._series(), *(s.GetTableNode() for s in self._series() if s is not None)]
        for thing in {id(thing): thing for thing in things if thing is not None}.values():
            self._observe(thing, vtk.vtkCommand.ModifiedEvent, self._watch)
        self._observe(self._node, self._node.PlotChartNodeChangedEvent, self._watch)
        if chart is not None:
            self._observe(chart, chart.PlotModifiedEvent, self._watch)
        self.scheduleRender()

    def _before_render(self) -> None:
        """Draw the chart; as in Slicer, plots stay while they are shown, and axes keep the range that they had."""
        node = self._node.GetPlotChartNode()
        shown = {series.GetID(): series for series in self._series() if series is not None and _columns(series)}
        for gone in self._plots.keys() - shown.keys():
            self._chart.RemovePlotInstance(self._plots.pop(gone))
        for series_id, series in shown.items():
            self._draw(series_id, series)
        self._chart.SetTitle(node.GetTitle() or "" if node is not None and node.GetTitleVisibility() else "")
        if node is None:
            return
        self._chart.SetShowLegend(node.GetLegendVisibility())
        for axis, title in ((1, node.GetXAxisTitle()), (0, node.GetYAxisTitle())):
            drawn = self._chart.GetAxis(axis)
            drawn.SetTitle(title or "")
            drawn.SetGridVisible(node.GetGridVisibility())

    def _draw(self, series_id: str, series: Any) -> None:
        if series.GetPlotType() != series.PlotTypeScatter:
            raise NotImplementedError("the host draws scatter plots alone")
        if series_id not in self._plots:
            self._plots[series_id] = self._chart.AddPlot(vtk.vtkChart.LINE)
        plot = self._plots[series_id]
        plot.SetInputData(series.GetTableNode().GetTable(), *_columns(series))
        plot.SetLabel(series.GetName())
        plot.SetColorF(*series.GetColor())
        plot.SetWidth(series.GetLineWidth())
        plot.GetPen().SetLineType(series.GetLineStyle())
        plot.SetMarkerStyle(series.GetMarkerStyle())
        plot.SetMarkerSize(series.GetMarkerSize())

    def chart(self) -> Any:
        return self._chart

    def fitToContent(self) -> None:
        """Fit the axes to what was drawn last; as in Slicer, the chart node gets their range."""
        self._chart.RecalculateBounds()
        self.forceRender()
        node = self._node.GetPlotChartNode()
        for axis, keep in ((1, node.SetXAxisRange), (0, node.SetYAxisRange)) if node is not None else ():
            keep(self._chart.GetAxis(axis).GetUnscaledMinimum(), self._chart.GetAxis(axis).GetUnscaledMaximum())


def _columns(series: Any) -> list[str]:
    """The names of its columns, x and y, or nothing where its table lacks one."""
    node = series.GetTableNode()
    table = node.GetTable() if node is not None else None
    names = [series.GetXColumnName() or "", series.GetYColumnName() or ""]
    return [] if table is None or None in map(table.GetColumnByName, names) else names


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
