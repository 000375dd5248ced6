"""Build the wheel and the sdist, and use them as strangers do: in bare environments, one for each extra.

    make release-check

1. `build` makes both from a clean checkout's files, `twine check --strict` reads their metadata.
2. For each set of extras a new virtual environment takes the wheel, and nothing else, and runs a program of a user's.
3. The sdist is unpacked elsewhere and runs its own tests with the packages of `.venv`.

It stops at the first failure. Some ten minutes, most of them downloads; the wheel and the sdist are left in `dist/`.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"

BARE = """
import numpy as np, opnorm
lower, upper = opnorm.spectral_norm(np.diag([3.0, 1.0]))
assert lower <= 3 <= upper < 3.00001
"""
KERAS = """
import keras, numpy as np, opnorm
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, kernel_constraint=opnorm.SpectralNorm())])
model.compile("sgd", "mse")
model.fit(np.ones((16, 8)), np.ones((16, 4)), epochs=3, verbose=0)
lower, upper = opnorm.spectral_norm(model.layers[0])
assert abs(upper - 1) < 1e-2, upper
"""
NO_KERAS = """
from importlib.util import find_spec
assert find_spec("keras") is None
"""
TORCH = """
import torch, opnorm, opnorm.torch
layer = torch.nn.Linear(8, 4)
optimizer = torch.optim.SGD(layer.parameters(), 0.1)
opnorm.torch.constrain(layer, optimizer, opnorm.torch.SpectralNorm())
for _ in range(3):
    layer(torch.ones(2, 8)).sum().backward()
    optimizer.step()
assert abs(opnorm.spectral_norm(layer).upper - 1) < 1e-2
"""
JAX = """
import jax.numpy as jnp, optax, opnorm, opnorm.jax
params = {"kernel": jnp.ones((8, 4))}
optimizer = optax.chain(optax.sgd(0.1), opnorm.jax.constrain(opnorm.jax.SpectralNorm()))
state = optimizer.init(params)
for _ in range(3):
    updates, state = optimizer.update(params, state, params)
    params = optax.apply_updates(params, updates)
assert abs(opnorm.spectral_norm(params["kernel"]).upper - 1) < 1e-2
"""
LEGACY = """
import os
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tensorflow as tf, opnorm
tf.compat.v1.disable_eager_execution()
x = tf.compat.v1.placeholder(tf.float32, (None, 8))
y = tf.compat.v1.layers.dense(x, 4, kernel_constraint=opnorm.tf1.SpectralNorm())
step = tf.compat.v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(y**2))
kernel = tf.compat.v1.trainable_variables()[0]
with tf.compat.v1.Session() as session:
    session.run(tf.compat.v1.global_variables_initializer())
    for _ in range(3):
        session.run(step, {x: [[1.0] * 8]})
    assert abs(opnorm.spectral_norm(session.run(kernel)).upper - 1) < 1e-2
"""
AUDIT = """
import numpy as np, opnorm, onnx, h5py, jinja2
np.savez("weights.npz", kernel=np.diag([3.0, 1.0]))
assert opnorm.audit("weights.npz").rows[0].upper < 3.00001
import subprocess, sys
from pathlib import Path
command = Path(sys.executable).with_name("opnorm")
subprocess.run([command, "audit", "weights.npz", "--html", "page.html"], check=True)
assert subprocess.run([command, "check", "weights.npz", "--max-norm", "1"]).returncode == 1
"""
CLUSTER = """
import numpy as np, opnorm
if __name__ == "__main__":
    np.savez("weights.npz", kernel=np.diag([3.0, 1.0]))
    assert opnorm.audit("weights.npz", cluster="local").rows[0].upper < 3.00001
"""
REMOTE = """
import numpy as np, opnorm
np.savez("weights.npz", kernel=np.diag([3.0, 1.0]))
import pathlib
assert opnorm.audit(pathlib.Path("weights.npz").absolute().as_uri()).rows[0].upper < 3.00001
"""
ORBAX = """
import tensorstore, ml_dtypes, opnorm
"""
DEMO = """
import subprocess, sys
from pathlib import Path
subprocess.run([Path(sys.executable).with_name("opnorm"), "demo", "--backend", "jax", "--help"], check=True)
import plotly, jinja2, mlxtend.data, keras
"""
BACKEND = "KERAS_BACKEND"
PROGRAMS = {  # by extras: the program, and Keras's backend
    "": (BARE, ""),
    "keras,jax": (KERAS, "jax"),
    "tensorflow": (KERAS, "tensorflow"),
    "keras,torch": (KERAS + TORCH, "torch"),
    "torch": (NO_KERAS + TORCH, ""),
    "jax": (NO_KERAS + JAX, ""),
    "legacy": (LEGACY, ""),
    "audit": (AUDIT, ""),
    "audit,cluster": (CLUSTER, ""),
    "audit,remote": (REMOTE, ""),
    "audit,orbax": (ORBAX, ""),
    "demo,jax": (DEMO, "jax"),
}


def run(*command: str | Path, **options: object) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def environment(folder: Path) -> Path:
    """Return the interpreter of a new virtual environment."""
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin" / "python"


def build(folder: Path) -> tuple[Path, Path]:
    """Return the wheel and the sdist in `dist/`, with metadata that an index takes."""
    python = environment(folder / "build")
    run(python, "-m", "pip", "install", "-q", "build", "twine")
    shutil.rmtree(DIST, ignore_errors=True)
    run(python, "-m", "build", "--outdir", DIST, ROOT)
    run(python, "-m", "twine", "check", "--strict", *DIST.iterdir())
    return next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))


def use(wheel: Path, extras: str, folder: Path) -> None:
    """Install the wheel with its extras in an environment of its own, and run their program there."""
    program, backend = PROGRAMS[extras]
    python = environment(folder)
    target = f"{wheel}[{extras}]" if extras else str(wheel)
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", target)
    (folder / "program.py").write_text(program)
    variables = {**os.environ, BACKEND: backend} if backend else {k: v for k, v in os.environ.items() if k != BACKEND}
    variables.pop("PYTHONPATH", None)
    run(python, folder / "program.py", cwd=folder, env=variables)


def test(sdist: Path, folder: Path) -> None:
    """Run the tests of the sdist on the sdist's own sources."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    variables = {**os.environ, "PYTHONPATH": str(unpacked / "src")}
    plain = ("-n", "2", "--dist", "loadfile", "-q", "tests", "--ignore", "tests/keras", "--ignore", "tests/tf1")
    run(ROOT / ".venv/bin/python", "-m", "pytest", *plain, cwd=unpacked, env=variables)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        for number, extras in enumerate(PROGRAMS):
            start = time.perf_counter()
            use(wheel, extras, folder / f"user-{number}")
            shutil.rmtree(folder / f"user-{number}")  # an environment is up to 2 GB
            print(f"opnorm[{extras}]: its program ran, {time.perf_counter() - start:.0f} s", flush=True)
        test(sdist, folder)
    print(f"{wheel.name} and {sdist.name} are fit for release")


if __name__ == "__main__":
    main()
