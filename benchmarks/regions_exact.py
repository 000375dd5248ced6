"""Small ReLU networks of two inputs: their exact constants, region by region, beside LipSDP's optimum and opnorm.

    python benchmarks/regions_exact.py

It wants `clarabel`, a solver of semidefinite programs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from networks import lipsdp, ours, package, product, random
from tables import write_table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from regions import lipschitz_constant

HEADER = ["network", "regions", "exact", "opnorm", "LipSDP", "product", "opnorm / LipSDP", "opnorm / exact"]
WIDTHS = ((2, 8, 1), (2, 16, 1), (2, 32, 2), (2, 8, 8, 1), (2, 12, 12, 2), (2, 6, 6, 6, 1), (2, 8, 8, 8, 8, 2))


def rows() -> Iterator[list[str]]:
    clarabel = package("clarabel")
    for widths in WIDTHS:
        for seed in range(3):
            network = random(widths, seed=seed)
            biases = [np.random.default_rng(seed).standard_normal(len(W)) for W in network.matrices]
            exact, count = lipschitz_constant(network.matrices, biases)
            upper, whole = ours(network), product(network)
            optimum = None if clarabel is None else lipsdp(network, clarabel)
            assert upper is not None
            assert exact <= upper, f"VIOLATED: {widths}, seed {seed}: {exact} > {upper}"
            shown = "" if optimum is None else f"{optimum:.6g}"
            ratio = "" if optimum is None else f"{upper / optimum:.6f}"
            numbers = [f"{exact:.6g}", f"{upper:.6g}", shown, f"{whole:.6g}", ratio, f"{upper / exact:.4f}"]
            yield [f"{network.name}, seed {seed}", str(count), *numbers]


if __name__ == "__main__":
    write_table("regions_exact", HEADER, rows())
