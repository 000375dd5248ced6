"""What a constraint costs a training step against width, depth and devices, and what its update sends between devices.

    python benchmarks/training_scale.py [--repeats 11] [--steps 10] [--quick] [--write]

Plain JAX: MLPs on 128 examples a device, Adam, parameters and state donated, with `opnorm.jax.constrain` and without,
in turn in one process; a ratio is taken within its repeat, the tables show medians and quartiles. Devices are virtual
CPUs, up to 4 that share this machine's cores. Beside the times stand the bytes of the arrays that collectives of the
compiled update produce, read from its HLO, and their ratio to 4 (rows + columns): once in each update, and once more in
each further iteration of the search, or of one that starts cold, with eight vectors.
`--write` puts the tables between the markers of `benchmarks/README.md`. `PYTHONPATH=src` is enough where opnorm is not
installed.
"""

import argparse
import os
import re
import time
from collections import defaultdict
from itertools import pairwise

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tables import write_table

import opnorm.jax

COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
BATCH, GOAL = 128, 1.05  # the batch is that of a device
HEADER = ("network", "devices", "kernels", "ms without", "with over without", "quartiles", "goal")
SENT = ("kernels", "split over", "bytes an update", "a further iteration", "one of a cold start", "collectives")
SPLITS = {"on each": (), "split by outputs": (None, "data")}
LAYOUTS = {
    "4 of inputs": ((4, 1), PartitionSpec("a", None)),
    "4 of outputs": ((4, 1), PartitionSpec(None, "a")),
    "2 x 2": ((2, 2), PartitionSpec("a", "b")),
}


def network(width, depth):
    """Return the kernels of an MLP, `depth` of them square."""
    sizes = [width] * (depth + 1) + [16]
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return [jax.random.normal(key, pair) / pair[0] ** 0.5 for key, pair in zip(keys, pairwise(sizes), strict=False)]


def loss(kernels, x):
    for kernel in kernels[:-1]:
        x = jax.nn.relu(x @ kernel)
    return optax.softmax_cross_entropy_with_integer_labels(x @ kernels[-1], jnp.arange(len(x)) % 10).mean()


def training(width, depth, devices, split, constrained):
    """Return a function that trains once, on as many devices."""
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    kernels = network(width, depth)
    places = [NamedSharding(mesh, PartitionSpec(*(split if kernel.shape[1] > 16 else ()))) for kernel in kernels]
    kernels = jax.device_put(kernels, places)
    parts = [optax.adam(1e-4), *([opnorm.jax.constrain(opnorm.jax.SpectralNorm())] if constrained else [])]
    optimizer = optax.chain(*parts)
    images = jax.random.normal(jax.random.key(1), (BATCH * devices, width))
    images = jax.device_put(images, NamedSharding(mesh, PartitionSpec(None if split else "data")))

    @jax.jit(donate_argnums=(0, 1))
    def step(kernels, state, images):
        updates, state = optimizer.update(jax.grad(loss)(kernels, images), state, kernels)
        return jax.lax.with_sharding_constraint(optax.apply_updates(kernels, updates), places), state

    held = [(kernels, jax.jit(optimizer.init)(kernels))]

    def train():
        held[0] = step(*held[0], images)
        return held[0]

    return train


def seconds(train, steps):
    start = time.perf_counter()
    for _ in range(steps):
        last = train()
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / steps


def ratios(configurations, arguments):
    """Return by configuration the times without, and the ratios with over without, a repeat each; all take turns."""
    trainings = {one: [training(*one, constrained) for constrained in (False, True)] for one in configurations}
    times = {one: [] for one in configurations}
    for repeat in range(-2, arguments.repeats):
        for one, pair in trainings.items():
            spent = [seconds(train, arguments.steps) for train in pair]
            times[one] += [spent] if repeat >= 0 else []
    return {one: (np.array(spent)[:, 0], np.divide(*np.array(spent).T[::-1])) for one, spent in times.items()}


def row(configuration, plain, ratio):
    width, depth, devices, split = configuration
    kernels = next(name for name, known in SPLITS.items() if known == split)
    return [f"{depth} x {width}", str(devices), kernels, f"{1e3 * np.median(plain):.2f}", *spread(ratio), ""]


def spread(ratio):
    low, middle, high = np.percentile(ratio, (25, 50, 75))
    return f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


def timed(arguments):
    """Return the rows of the first table."""
    widths, depths, wide = ((32, 64), (2, 4), 64) if arguments.quick else ((256, 1024, 2048), (2, 8, 24), 1024)
    rows = []
    for width in widths:
        rows += [row(one, *what) for one, what in ratios([(width, 3, 1, ())], arguments).items()]
    for depth in depths:
        rows += [row(one, *what) for one, what in ratios([(widths[0], depth, 1, ())], arguments).items()]
    found = ratios([(wide, 3, 1, ()), *((wide, 3, 4, split) for split in SPLITS.values())], arguments)
    rows += [row(one, *what) for one, what in found.items()]
    for name, split in SPLITS.items():
        both = found[wide, 3, 4, split][1] / found[wide, 3, 1, ()][1]
        judged = f"<= {GOAL}" if np.median(both) <= GOAL else f"<= {GOAL}: missed"
        rows.append([f"3 x {wide}", "4 over 1", name, "", *spread(both), judged])
    return rows


def sent(arguments):
    """Return the rows of the second table: nothing runs, updates are compiled and read."""
    shapes = ((64, 64), (128, 64)) if arguments.quick else ((256, 256), (1024, 1024), (4096, 1024))
    return [told(shape, 1, name) for shape in shapes for name in LAYOUTS] + [told(shapes[1], 4, "4 of outputs")]


def told(shape, count, name):
    sizes, spec = LAYOUTS[name]
    mesh = jax.make_mesh(sizes, ("a", "b"), (AxisType.Auto, AxisType.Auto))
    kernel = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    kernels = {f"kernel{i}": kernel for i in range(count)}
    rule = opnorm.jax.constrain(opnorm.jax.SpectralNorm())
    everywhere = NamedSharding(mesh, PartitionSpec())
    held = jax.eval_shape(rule.init, kernels)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), held)
    text = jax.jit(rule.update).lower(kernels, state, kernels).compile().as_text()
    parts, unit = collectives(text), 4 * sum(shape) * count
    sizes = [f"{size:,} ({size / unit:.2f})" for size in (sum(size for _, size in part) for part in parts)]
    kinds = " and ".join(sorted({kind for part in parts for kind, _ in part}))
    what = f"{'' if count == 1 else f'{count} of '}{shape[0]} x {shape[1]}"
    return [what, name, *sizes, f"{', '.join(str(len(part)) for part in parts)}: {kinds}"]


def collectives(text):
    """Return kind and bytes of what each collective of a compiled program produces: outside of loops, in each loop."""
    parts = computations(text)
    loops = [reached(body, parts) for body in re.findall(r"body=%?([\w.\-]+)", text)]
    outside = set(parts) - set().union(*loops)
    found = [[one for name in several for one in produced(parts[name])] for several in (outside, *loops)]
    return [found[0], *sorted(filter(None, found[1:]), key=lambda part: sum(size for _, size in part))]


def reached(name, parts):
    """Return the names of the parts of a program that one of them leads to."""
    names = {name}
    while more := {one for name in names for one in re.findall(r"%([\w.\-]+)", parts[name])} & set(parts) - names:
        names |= more
    return names


def produced(part):
    several = []
    for types, kind in COLLECTIVE.findall(part):
        dims = re.findall(r"f32\[([\d,]*)\]", types)
        several.append((kind, sum(4 * int(np.prod([int(n) for n in one.split(",") if n])) for one in dims)))
    return several


def computations(text):
    """Return the parts of a compiled program, each as its text, by name."""
    parts, name = defaultdict(str), ""
    for line in text.splitlines():
        begins = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        name = begins[1] if begins else name
        parts[name] += f"{line}\n"
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="in each timed run")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="small networks: a look, no figures")
    parser.add_argument("--write", action="store_true", help="into benchmarks/README.md")
    arguments = parser.parse_args()
    for section, header, rows in (
        ("training-scale", HEADER, timed(arguments)),
        ("training-sent", SENT, sent(arguments)),
    ):
        if arguments.write:
            write_table(section, header, rows)
        else:
            print("\n".join(" | ".join(cells) for cells in [header, *rows]))


if __name__ == "__main__":
    main()
