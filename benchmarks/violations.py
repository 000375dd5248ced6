"""Upper ends of random networks against what the networks compute: none may be below a difference quotient.

    python benchmarks/violations.py [--count 1000] [--seed 0] [--points 10]

Each network is bounded, and then looked at in two ways: `onnxruntime` computes quotients |f(x) - f(y)| / |x - y| along
the directions in which f grows fastest, for steps small and large; ONNX's reference implementation the Jacobian at
points, by central differences in float64. On balls of two radii around a point its Jacobians there may neither be above
the upper end, nor that of the point below the lower end. It needs `onnxruntime`.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx
from drawn_graphs import DOUBLE, FLOAT, drawn, model
from onnx.reference import ReferenceEvaluator
from tables import write_table

from opnorm.networks.bound import NetworkBound
from opnorm.networks.lipschitz import lipschitz_bound

HEADER = [
    "networks", "bounded", "unknown", "violations", "upper / found: median", "90 %", "median s",
    "bounded on balls", "of", "violations on balls", "upper / lower at the point: median",
]  # fmt: skip
RADII = (0.0, 0.2)
STEPS = (0.03, 0.3, 3.0)  # of quotients in float32: below, its rounding shows
SLACK = 1e-3  # of a quotient in float32
DOUBLE_STEP, DOUBLE_SLACK = 1e-5, 1e-6  # of central differences in float64
Function = Callable[[np.ndarray], np.ndarray]  # of a batch of flat inputs, all of them side by side


def function(
    run: Callable[..., list[np.ndarray]], names: list[str], shapes: list[tuple[int, ...]], real: type
) -> Function:
    """Return the network as one function of flat vectors."""
    places = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def call(batch: np.ndarray) -> np.ndarray:
        parts = np.split(batch.astype(real), places, axis=1)
        fed = {name: part.reshape(len(batch), *shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return np.concatenate([result.reshape(len(batch), -1) for result in run(None, fed)], axis=1).astype(np.float64)

    return call


def jacobian(f: Function, x: np.ndarray, step: float) -> np.ndarray:
    """Return central differences, (outputs, inputs)."""
    moves = step * np.eye(len(x))
    both = f(np.concatenate([x + moves, x - moves]))
    return (both[: len(x)] - both[len(x) :]).T / (2 * step)


def largest_quotient(f: Function, size: int, points: int, rng: np.random.Generator) -> float:
    """Return the largest quotient along the steepest directions at random points, and beside the best of them."""
    found, best = 0.0, np.zeros(size)
    for k in range(points):
        beside = k >= points // 2
        x = best + 0.3 * rng.standard_normal(size) if beside else rng.standard_normal(size) * rng.choice([0.3, 1, 3])
        direction = np.linalg.svd(jacobian(f, x, STEPS[0]))[2][0]
        ends = np.array([x, *[x + step * direction for step in STEPS], *[x - step * direction for step in STEPS]])
        ends = ends.astype(np.float32).astype(np.float64)
        values, steps = f(ends), np.linalg.norm(ends[1:] - ends[0], axis=1)
        noise = 4e-7 * np.abs(values).max() * np.sqrt(values.shape[1])
        quotients = (np.linalg.norm(values[1:] - values[0], axis=1) - noise) / steps
        if quotients.max() > found:
            found, best = float(quotients.max()), x
    return found


class Checked(NamedTuple):
    """What was found of one network."""

    upper: float | None
    found: float  # the steepest slope
    seconds: float  # for the bound
    unknown: list[str]
    balls: list[tuple[NetworkBound, float, float]]  # with the steepest slope on the ball, and that of its centre


def on_balls(path: Path, exact: Function, shapes: list[tuple[int, ...]], rng: np.random.Generator) -> Any:
    """Return the bounds on balls around a point, with the norms of Jacobians there."""
    x, found = rng.standard_normal(sum(int(np.prod(shape)) for shape in shapes)), []
    parts = np.split(x, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    centre = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    at = np.linalg.norm(jacobian(exact, x, DOUBLE_STEP), 2)
    for radius in RADII:
        bound = lipschitz_bound(path, around=centre if len(centre) > 1 else centre[0], radius=radius)
        moves = rng.standard_normal((2, len(x)))
        places = x + radius * moves / np.linalg.norm(moves, axis=1, keepdims=True)
        steepest = max(np.linalg.norm(jacobian(exact, place, DOUBLE_STEP), 2) for place in places) if radius else at
        found.append((bound, float(max(steepest, at)), float(at)))
    return found


def is_violated(bound: NetworkBound, steepest: float, at: float) -> bool:
    """Return whether a bound on a ball is not one."""
    above = bound.upper is not None and steepest * (1 - DOUBLE_SLACK) - 1e-8 > bound.upper
    return above or (bound.lower is not None and bound.lower * (1 - DOUBLE_SLACK) - 1e-8 > at)


def checked(seed: int, points: int, folder: str) -> Checked:
    """Return what is found of one network."""
    import onnxruntime

    made, inputs, outputs = drawn(seed)
    batch = "N" if seed % 4 else 1
    path = Path(folder) / "network.onnx"
    onnx.save(model(made, inputs, outputs, FLOAT, batch), path)
    begin = time.perf_counter()
    bound = lipschitz_bound(path)
    seconds = time.perf_counter() - begin
    shapes = [made.shapes[name] for name in inputs]
    size, rng = sum(int(np.prod(shape)) for shape in shapes), np.random.default_rng(seed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model(made, inputs, outputs, FLOAT).SerializeToString(), options)
    single_run = function(session.run, inputs, shapes, np.float32)
    quotient = largest_quotient(single_run, size, points, rng)
    reference = ReferenceEvaluator(model(made, inputs, outputs, DOUBLE))
    exact = function(reference.run, inputs, shapes, np.float64)
    balls: Any = []
    slope, single = 0.0, {"Erf", "Gelu"}.intersection(node.op_type for node in made.nodes)
    with suppress(Exception, AssertionError):  # what the reference implementation does otherwise, or not at all
        places = rng.standard_normal((0 if single else 2, size))  # two functions it has in float32 alone
        np.testing.assert_allclose(exact(places), single_run(places), 1e-3, 1e-3)  # its MaxPool has odd pads wrong
        slope = max((np.linalg.norm(jacobian(exact, x, DOUBLE_STEP), 2) for x in places), default=0.0)
        balls = [] if single else on_balls(path, exact, shapes, rng)
    found = max(quotient * (1 - SLACK), float(slope) * (1 - DOUBLE_SLACK) - 1e-9)
    return Checked(bound.upper, found, seconds, [f"{step.kind}: {step.rule}" for step in bound.unknown], balls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--points", type=int, default=10, help="of quotients, for each network")
    arguments = parser.parse_args()
    ratios, times, unknown, violated, refused = [], [], Counter(), [], 0
    balls, on_ball, near = [], [], []
    with TemporaryDirectory() as folder:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            try:
                upper, found, seconds, reasons, met = checked(seed, arguments.points, folder)
            except Exception as error:  # of a runtime, which does not take all that the checker does
                refused += 1
                print(f"seed {seed} was not run: {str(error)[:200]}", flush=True)
                continue
            times.append(seconds)
            balls += [bound.upper is not None for bound, *_ in met]
            near += [bound.upper / bound.lower for bound, *_ in met[:1] if bound.upper is not None and bound.lower]
            if any(is_violated(*one) for one in met):
                on_ball.append(seed)
                print(f"VIOLATED ON A BALL: seed {seed}, {met}", flush=True)
            if upper is None:
                unknown[reasons[0] if reasons else "no output is reached"] += 1
                continue
            if found > upper:
                violated.append(seed)
                print(f"VIOLATED: seed {seed}, {found} > {upper}", flush=True)
            if found > 0:
                ratios.append(upper / found)
    print(*unknown.most_common(), sep="\n")
    print("violated:", violated, "on balls:", on_ball)
    open_ones = sum(unknown.values())
    count = arguments.count - refused
    cells = [count, count - open_ones, open_ones, len(violated), f"{np.median(ratios):.3g}"]
    cells += [f"{np.quantile(ratios, 0.9):.3g}", f"{np.median(times):.3f}"]
    cells += [sum(balls), len(balls), len(on_ball), f"{np.median(near):.6f}"]
    write_table("violations", HEADER, [[str(cell) for cell in cells]])


if __name__ == "__main__":
    main()
