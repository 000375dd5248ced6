"""On 4 virtual devices: data parallel and sharded kernels against one device, and what the compiled step gathers.

Prints one line of JSON; run by `test_jax_sharding.py` in a process of its own, with the devices in `XLA_FLAGS`.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import opnorm.jax as oj

jax.config.update("jax_disable_most_optimizations", True)  # compiling is all of the time
ROWS, COLUMNS, STEPS = 64, 48, 20
LAYOUTS = {
    "data": (PartitionSpec(), PartitionSpec("a")),
    "input": (PartitionSpec("a", None), PartitionSpec()),
    "output": (PartitionSpec(None, "a"), PartitionSpec()),
    "both": (PartitionSpec("a", "b"), PartitionSpec()),
}


def optimizer():
    return optax.chain(optax.adam(1e-2), oj.constrain(oj.SpectralNorm()))


def step(params, state, x):
    gradient = jax.grad(lambda p: jnp.mean((jnp.tanh(x @ p["one"]) @ p["two"] - 1) ** 2))(params)
    updates, state = optimizer().update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def start():
    one, two = jax.random.split(jax.random.key(0))
    return {"one": jax.random.normal(one, (ROWS, COLUMNS)), "two": jax.random.normal(two, (COLUMNS, ROWS))}


def trained(kernel_spec, data_spec, shape):
    mesh = jax.make_mesh(shape, ("a", "b"), (AxisType.Auto, AxisType.Auto))
    place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))  # noqa: E731
    params = place(start(), kernel_spec)
    state = jax.tree.map(
        lambda leaf: place(leaf, kernel_spec if leaf.ndim == 2 and leaf.shape[0] > 8 else PartitionSpec()),
        optimizer().init(params),
    )
    x = place(jax.random.normal(jax.random.key(1), (16, ROWS)), data_spec)
    compiled = jax.jit(step, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, (params, state)))
    compiled = compiled.lower(params, state, x).compile()
    for _ in range(STEPS):
        params, state = compiled(params, state, x)
    return jax.tree.map(np.asarray, params), state, moved_by_the_rule(params, state) if any(kernel_spec) else {}


def moved_by_the_rule(params, state):
    """Return the entries of the largest array that each kind of collective of the constraint alone produces."""
    update = jax.jit(oj.constrain(oj.SpectralNorm()).update)
    return gathered(update.lower(params, state[-1], params).compile().as_text())


def gathered(text):
    largest = {}
    pattern = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(")
    for types, kind in pattern.findall(text):
        sizes = [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", types)]
        largest[kind] = max(largest.get(kind, 0), *sizes)
    return largest


def replicas_agree(tree):
    return all(
        np.array_equal(leaf.addressable_data(0), leaf.addressable_data(i))
        for leaf in jax.tree.leaves(tree)
        for i in range(len(leaf.addressable_shards))
        if leaf.sharding.is_fully_replicated
    )


def explicit():
    """Return the norms after an update on a mesh whose axes are part of the types, as `jax.make_mesh` makes it."""
    placed = NamedSharding(jax.make_mesh((4,), ("a",), (AxisType.Explicit,)), PartitionSpec("a", None))
    params = jax.device_put(start(), placed)
    rule = oj.constrain(oj.SpectralNorm())
    updates, _ = jax.jit(rule.update)(params, rule.init(params), params)
    new = optax.apply_updates(params, updates)
    assert all(kernel.sharding == placed for kernel in new.values())
    return [np.linalg.svd(np.float64(kernel), compute_uv=False)[0] for kernel in new.values()]


def normalized():
    """Return the norm of a kernel that is normalized in the forward pass, on such a mesh."""
    placed = NamedSharding(jax.make_mesh((4,), ("a",), (AxisType.Explicit,)), PartitionSpec("a", None))
    kernel, _ = jax.jit(oj.normalized)(jax.device_put(start()["one"], placed))
    assert kernel.sharding == placed
    return np.linalg.svd(np.float64(kernel), compute_uv=False)[0]


def mapped():
    """Return the norms after an update inside `jax.shard_map`, where each device has whole kernels."""
    mesh = jax.make_mesh((4,), ("a",), (AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("a")
    params = start()
    x = jax.random.normal(jax.random.key(1), (16, ROWS))
    inside = jax.shard_map(step, mesh=mesh, in_specs=(whole, whole, split), out_specs=(whole, whole))
    new, _ = jax.jit(inside)(params, optimizer().init(params), x)
    return [np.linalg.svd(np.float64(kernel), compute_uv=False)[0] for kernel in new.values()]


def report():
    alone, its, _ = trained(PartitionSpec(), PartitionSpec(), (1, 1))
    said = {"explicit": explicit(), "normalized": normalized(), "mapped": mapped()}
    for name, specs in LAYOUTS.items():
        params, state, collectives = trained(*specs, (2, 2) if name == "both" else (4, 1))
        norms = [np.linalg.svd(np.float64(kernel), compute_uv=False)[0] for kernel in params.values()]
        away = max(np.abs(params[key] - alone[key]).max() for key in params)
        pairs = [(state[-1].vectors[key][0], its[-1].vectors[key][0]) for key in its[-1].vectors]  # the leading ones
        said[name] = {
            "away": float(away),
            "turned": float(max(np.abs(np.asarray(one) - np.asarray(two)).max() for one, two in pairs)),
            "norms": norms,
            "collectives": collectives,
            "agree": bool(replicas_agree(state)),
        }
    return said


if __name__ == "__main__":
    print(json.dumps(report()))
