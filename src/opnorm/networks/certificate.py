"""What `certify` returns: for each example how far it may move before the network's answer can change."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opnorm.checks import Array
from opnorm.tables import aligned, html_lines, html_table, number, printable

_ROWS = 9  # of the table of accuracy against radius
_POINTS = 400  # of the plot
_HEADINGS = ("radius", "certified")


class Certificate(NamedTuple):
    """Radii in the 2-norm: of every example moved by less than its radius, the prediction stays as it is."""

    radius: Array  # (examples,); 0: a tie, or not the label; inf: nothing that the network reads could change it
    predictions: NDArray[np.int64]  # (examples,)
    constants: Array  # (classes, classes): proved Lipschitz constants of the differences of two logits
    lipschitz: float  # proved, of all logits together
    has_labels: bool  # with labels the radius is 0 where the prediction is wrong
    notes: tuple[str, ...] = ()  # what is assumed, and not proved

    def certified_accuracy(self, radius: float = 0.0) -> float:
        """Return the share of the examples that are certified to more than `radius`: with labels, and right."""
        return float(np.mean(self.radius > radius))

    def to_text(self) -> str:
        """Return the summary, and a table of the certified accuracy against the radius."""
        notes = [f"note: {printable(note)}\n" for note in self.notes]
        return "".join([aligned(_HEADINGS, self._rows(), _HEADINGS), f"\n{self._summary()}\n", *notes])

    def plot(self) -> Any:
        """Return a plotly figure: certified accuracy against radius. It needs plotly."""
        from plotly.graph_objects import Figure

        radii = np.linspace(0, 1.05 * self._largest(), _POINTS)
        axes = {"xaxis": {"title": "radius (2-norm)"}, "yaxis": {"title": self._what(), "range": [0, 1]}}
        figure = Figure(layout=axes)
        figure.add_scatter(x=radii, y=[self.certified_accuracy(r) for r in radii], line_shape="hv")
        return figure

    def __repr__(self) -> str:
        return f"Certificate({self._summary()}: .to_text(), .plot())"

    def _repr_html_(self) -> str:
        table = html_table(_HEADINGS, self._rows(), _HEADINGS)
        return html_lines([self._summary()]) + table + html_lines(self.notes)

    def _what(self) -> str:
        return "certified accuracy" if self.has_labels else "certified share"

    def _largest(self) -> float:
        return float(np.max(self.radius, initial=0.0, where=np.isfinite(self.radius)))

    def _rows(self) -> list[list[str]]:
        radii = np.linspace(0, self._largest(), _ROWS)[: _ROWS if self._largest() else 1]
        return [[number(r, 3), number(self.certified_accuracy(r), 4)] for r in radii]

    def _summary(self) -> str:
        median = f"median radius {number(float(np.median(self.radius)), 4)}"
        return f"{len(self.radius)} examples: {self._what()} {self.certified_accuracy():.4g}, {median}"
