"""Training-step time of a plain optax loop with every kernel constrained over none, under jit, without Keras.

    python benchmarks/native_jax.py [--repeats 15] [--steps 20] [--quick] [--write]

An MLP with three layers of 1024 on batches of 128 MNIST-sized images, Adam, parameters and state donated. Beside
`opnorm.jax.constrain` stand equinox's and flax.nnx's SpectralNorm in the forward pass, where these are installed, each
over its own framework's plain network. All variants stand in one process and train in turn; a ratio is taken within its
repeat, the table shows the median and the quartiles. The first two rounds, which compile, are not timed. `--write` puts
the table between the markers of `benchmarks/README.md`. `PYTHONPATH=src` is enough where opnorm is not installed.
"""

import argparse
import time
from importlib.util import find_spec
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tables import write_table

import opnorm.jax

HEADER = ("framework", "variant", "ms a step", "over none", "quartiles", "goal")
CONSTRAINED, GOAL = "opnorm.jax.constrain", 1.05


def cross_entropy(outputs):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.arange(len(outputs)) % 10).mean()


def compiled(carry, loss, optimizer):
    """Return a function that trains the parameters once; `loss(params, aux)` returns its value and the next aux."""

    @jax.jit(donate_argnums=0)
    def step(carry):
        params, aux, state = carry
        gradient, aux = jax.grad(loss, has_aux=True)(params, aux)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), aux, state

    params, aux = carry
    held = [(params, aux, optimizer.init(params))]

    def train():
        held[0] = step(held[0])
        return held[0]

    return train


def bare(sizes, x):
    keys = jax.random.split(jax.random.key(0), len(sizes))
    several = [
        {"kernel": jax.random.normal(key, pair) / pair[0] ** 0.5, "bias": jnp.zeros(pair[1])}
        for key, pair in zip(keys, pairwise(sizes), strict=False)
    ]

    def loss(params, aux):
        hidden = x
        for layer in params[:-1]:
            hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"])
        return cross_entropy(hidden @ params[-1]["kernel"] + params[-1]["bias"]), aux

    return several, loss


def of_equinox(sizes, x, normalized):
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), len(sizes))
    layers = [eqx.nn.Linear(*pair, key=key) for key, pair in zip(keys, pairwise(sizes), strict=False)]
    if normalized:
        layers = [eqx.nn.SpectralNorm(layer, "weight", key=key) for key, layer in zip(keys, layers, strict=False)]
    state = eqx.nn.State(layers)
    params, static = eqx.partition(eqx.nn.delete_init_state(layers), eqx.is_inexact_array)

    def loss(params, state):
        hidden = x
        several = eqx.combine(params, static)
        for place, layer in enumerate(several):
            if normalized:
                hidden, state = jax.vmap(layer, in_axes=(0, None), out_axes=(0, None))(hidden, state)
            else:
                hidden = jax.vmap(layer)(hidden)
            hidden = jax.nn.relu(hidden) if place < len(several) - 1 else hidden
        return cross_entropy(hidden), state

    return (params, state), loss


def of_flax(sizes, x, normalized):
    """Return a function that trains a network of flax.nnx once, by its own `jit`."""
    from flax import nnx

    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(*pair, rngs=rngs) for pair in pairwise(sizes)]
    model = nnx.List([nnx.SpectralNorm(layer, rngs=rngs) if normalized else layer for layer in layers])
    optimizer = nnx.Optimizer(model, optax.adam(1e-4), wrt=nnx.Param)

    def loss(model):
        hidden = x
        for place, layer in enumerate(model):
            hidden = layer(hidden, update_stats=True) if normalized else layer(hidden)
            hidden = jax.nn.relu(hidden) if place < len(model) - 1 else hidden
        return cross_entropy(hidden)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    def train():
        step(model, optimizer)
        return nnx.state(model, nnx.Param)

    return train


def trainings(quick):
    """Return by framework and variant what trains once; the first of each framework is the plain one."""
    width = 32 if quick else 1024
    sizes, x = (784, width, width, width, 10), jax.random.normal(jax.random.key(1), (128, 784))
    adam = optax.adam(1e-4)
    params, loss = bare(sizes, x)
    rule = opnorm.jax.constrain(opnorm.jax.SpectralNorm())
    found = {
        "optax": {
            "none": compiled((params, ()), loss, adam),
            CONSTRAINED: compiled((jax.tree.map(jnp.copy, params), ()), loss, optax.chain(adam, rule)),
        }
    }
    if find_spec("equinox"):
        made = {"none": of_equinox(sizes, x, False), "equinox's SpectralNorm": of_equinox(sizes, x, True)}
        found["equinox"] = {variant: compiled(carry, loss, adam) for variant, (carry, loss) in made.items()}
    if find_spec("flax"):
        found["flax"] = {"none": of_flax(sizes, x, False), "flax.nnx's SpectralNorm": of_flax(sizes, x, True)}
    return found


def seconds(train, steps):
    start = time.perf_counter()
    for _ in range(steps):
        last = train()
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / steps


def measured(arguments):
    """Return the table's rows."""
    found = trainings(arguments.quick)
    times = {(framework, variant): [] for framework, several in found.items() for variant in several}
    for repeat in range(-2, arguments.repeats):
        for (framework, variant), kept in times.items():
            spent = seconds(found[framework][variant], arguments.steps)
            kept += [spent] if repeat >= 0 else []
    rows = []
    for (framework, variant), spent in times.items():
        low, middle, high = np.percentile(np.array(spent) / np.array(times[framework, "none"]), (25, 50, 75))
        judged = "" if variant != CONSTRAINED else f"<= {GOAL}" if middle <= GOAL else f"<= {GOAL}: missed"
        row = [f"{1e3 * np.median(spent):.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", judged]
        rows.append([f"{framework}, jax {jax.__version__}", variant, *row])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="in each timed run")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small networks: a look, no figures")
    parser.add_argument("--write", action="store_true", help="into benchmarks/README.md")
    arguments = parser.parse_args()
    rows = measured(arguments)
    if arguments.write:
        return write_table("native-jax", HEADER, rows)
    return print("\n".join(" | ".join(row) for row in [HEADER, *rows]))


if __name__ == "__main__":
    main()
