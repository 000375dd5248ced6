"""Show the demo's measurements: a table in the terminal, and one self-contained HTML page with plots."""

from collections.abc import Iterable
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich import box
from rich.console import Console
from rich.table import Table

from opnorm.demo.training import (
    BATCH_SIZE,
    LEARNING_RATE,
    LOGIT_SCALE,
    NOISE,
    TARGET,
    TEST_SIZE,
    WIDTHS,
    Outcome,
    Results,
)

PAGE_NAME = "report.html"
# Told apart on white and on black, and by readers who do not see red and green; the dashes keep equal curves apart.
STYLES = (
    ("#d9542b", "solid"),
    ("#2f80d8", "7px,3px"),
    ("#1f9d75", "solid"),
    ("#b05fc6", "5px,9px"),
    ("#b98a00", "2px,5px"),
)
START_COLOUR = "#8a8f98"
# What one power iteration a step may leave above the target and still count as keeping it.
SLACK = 0.01


def headings() -> list[str]:
    """Return the table's headings, one a column of `cells`."""
    layers = [f"norm {depth}" for depth in range(1, len(WIDTHS) + 1)]
    return ["network", "accuracy", "noisy", *layers, "product", "ms/step"]


def cells(outcome: Outcome) -> list[str]:
    """Return one row of the table, as text."""
    norms = [f"{norm:.3f}" for norm in outcome.layer_norms]
    shares = [f"{share:.1%}" for share in (outcome.accuracy, outcome.noisy_accuracy)]
    return [outcome.variant.name, *shares, *norms, f"{outcome.product:.3f}", f"{outcome.milliseconds:.2f}"]


def finding(outcome: Outcome) -> str:
    """Return in a sentence what the norms of `outcome` say."""
    name, worst = outcome.variant.name, max(outcome.layer_norms)
    gain = f"the logits move at most {LOGIT_SCALE * outcome.product:.1f} times as far as the input does"
    if not outcome.variant.controlled:
        return f"{name}: nothing holds the norms; {gain}."
    if worst <= TARGET * (1 + SLACK):
        verdict = f"keeps its target of {TARGET:g}: no layer's norm in predict is above {worst:.4f}"
    else:
        verdict = f"misses its target of {TARGET:g}: a layer has norm {worst:.3f} in predict"
    return f"{name}: {verdict} (the highest recorded in training: {outcome.peak:.3f}); {gain}."


def notes() -> str:
    """Return the lines that say how to read the table."""
    return (
        f"accuracy: on {TEST_SIZE} digits kept for the test; noisy: the same with Gaussian noise, standard deviation "
        f"{NOISE:g} of the pixel range. norm: of each layer as predict uses it, by float64 SVD. product: of these. "
        "ms/step: mean training step."
    )


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the measurements on stdout, coloured only on a terminal."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)  # 80 columns wide, what a pipe gets
    for index, heading in enumerate(headings()):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for outcome in results.outcomes:
        table.add_row(*cells(outcome))
    console.print(table)
    console.print(f"\n{notes()}\n", highlight=False)
    for outcome in results.outcomes:
        console.print(f"- {finding(outcome)}", highlight=False)


def write_page(results: Results, folder: Path) -> Path:
    """Write the page into `folder` and return its absolute path; it is whole or not there.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder.resolve() / PAGE_NAME
    unfinished = path.with_name(f".{PAGE_NAME}.part")
    unfinished.write_text(render(results), encoding="utf-8")
    return unfinished.replace(path)


def render(results: Results) -> str:
    """Return the page, one HTML document that loads nothing."""
    loader = jinja2.PackageLoader("opnorm.demo")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("demo.html.j2").render(
        results=results,
        headings=headings(),
        rows=[cells(outcome) for outcome in results.outcomes],
        findings=[finding(outcome) for outcome in results.outcomes],
        notes=notes(),
        setting=_setting(),
        legend=[(outcome.variant, *style) for outcome, style in _styled(results)],
        start_colour=START_COLOUR,
        norm_plots=[_html(_norms_over_steps(results, layer), f"norms-{layer}") for layer in range(len(WIDTHS))],
        spectrum_plots=[_html(_spectra(results, layer), f"spectrum-{layer}") for layer in range(len(WIDTHS))],
        plotly=Markup(get_plotlyjs()),  # a script of the plotly package itself, to be written as it is
    )


def _setting() -> dict[str, object]:
    return {
        "widths": "-".join(str(width) for width in WIDTHS),
        "logit_scale": f"{LOGIT_SCALE:g}",
        "batch_size": BATCH_SIZE,
        "learning_rate": f"{LEARNING_RATE:g}",
        "target": f"{TARGET:g}",
    }


def _styled(results: Results) -> Iterable[tuple[Outcome, tuple[str, str]]]:
    return [(outcome, STYLES[index % len(STYLES)]) for index, outcome in enumerate(results.outcomes)]


def _norms_over_steps(results: Results, layer: int) -> go.Figure:
    figure = go.Figure()
    for outcome, (colour, dash) in _styled(results):
        _add_line(figure, outcome.steps, outcome.norms[:, layer], outcome.variant.name, colour, dash)
    figure.update_xaxes(title="training step")
    figure.update_yaxes(title="spectral norm", type="log")
    return figure


def _spectra(results: Results, layer: int) -> go.Figure:
    figure = go.Figure()
    start = results.outcomes[0].before[layer]
    _add_line(figure, list(range(1, len(start) + 1)), start, "before training", START_COLOUR, "solid")
    for outcome, (colour, dash) in _styled(results):
        values = outcome.after[layer]
        _add_line(figure, list(range(1, len(values) + 1)), values, outcome.variant.name, colour, dash)
    figure.update_xaxes(title="index")
    figure.update_yaxes(title="singular value", rangemode="tozero")
    return figure


def _add_line(figure: go.Figure, x: Iterable[float], y: Iterable[float], name: str, colour: str, dash: str) -> None:
    figure.add_scatter(x=list(x), y=list(y), name=name, mode="lines", line={"color": colour, "dash": dash, "width": 2})


def _html(figure: go.Figure, name: str) -> Markup:
    # Colours that depend on the theme are set by the page's script.
    figure.update_layout(
        template="none",
        height=300,
        margin={"l": 56, "r": 12, "t": 12, "b": 44},
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified",
    )
    config = {"responsive": True, "displayModeBar": False}
    # Plotly's own markup, made from numbers and our variant names.
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config))
