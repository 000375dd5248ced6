"""Draw `norms.svg`: the largest norm of a network's layers while it trains, as `opnorm demo` measures it.

A float64 SVD of what each layer applies in `predict`, 20 steps apart; the digits, network and seed are the demo's.

Run: KERAS_BACKEND=jax python docs/figures/norms.py        (a minute or two)
"""

from pathlib import Path

import matplotlib

from opnorm.demo.training import LEARNING_RATE, VARIANTS, run

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "norms", "font.size": 11})
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)

FIGURE = Path(__file__).with_name("norms.svg")
SHOWN = {  # the demo's names, and this figure's
    "unconstrained": ("no constraint", "#777777"),
    "Keras SpectralNormalization": ("keras.layers.SpectralNormalization", "#d55e00"),
    "opnorm SpectralNorm": ("kernel_constraint=opnorm.SpectralNorm()", "#0072b2"),
}


def draw(results):
    """Write FIGURE."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained", facecolor="white")
    for one in results.outcomes:
        if one.variant.name in SHOWN:
            name, colour = SHOWN[one.variant.name]
            axes.plot(one.steps, one.norms.max(axis=1), color=colour, linewidth=2, label=name)
    axes.set(xlabel=f"step of Adam, rate {LEARNING_RATE:g}, MNIST digits, Keras on {results.backend}", ylim=(0, None))
    axes.set(ylabel="largest norm of a layer", xlim=(0, None))
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.66))  # between the lines
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    assert {variant.name for variant in VARIANTS} >= set(SHOWN)
    draw(run(epochs=10, seed=0))
