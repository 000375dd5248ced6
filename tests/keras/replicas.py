"""Run by `test_distribution.py` in a process of its own: trains and stores kernels and vectors, one device or many.

The devices have to be set up before the backend starts, so each way to distribute needs its own process.
"""

import sys

import keras
import numpy as np
from keras import ops

import opnorm
from opnorm.keras.slots import state_of

WAY, FOLDER = sys.argv[1:]
STEPS = 30  # enough for a vector that lives, with one iteration a step and no warm-up
MIXED = "scaled" in WAY
CONVOLUTIONAL = "convolutional" in WAY
REPLICAS = 4 if "four" in WAY else 2
# What a kernel's axes are split over, and the devices along each name.
SPLIT = {"input": ("model", None), "both": ("other", "model")}.get(WAY.removeprefix("model_parallel_"), (None, "model"))
MESH = (1, 2, 2) if "other" in SPLIT else (1, 1, 4)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def build():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(
            width,
            activation,
            kernel_initializer=keras.initializers.RandomNormal(stddev=1.0, seed=1),
            kernel_constraint=opnorm.SpectralNorm(warmup_iterations=0, seed=5),
            name=name,
        )
        for name, width, activation in (("wide", 16, "tanh"), ("last", 4, None))
    ]
    return compiled(keras.Sequential([keras.Input((12,)), *layers]))


def build_convolutional():
    keras.utils.set_random_seed(0)
    start = keras.initializers.RandomNormal(stddev=1.0, seed=1)
    layers = [
        keras.layers.Conv1D(width, 3, kernel_initializer=start.clone(), kernel_constraint=constraint, name=name)
        for name, width, constraint in (
            ("wide", 16, opnorm.SpectralNorm(operator="convolution", seed=5)),
            ("last", 4, opnorm.SpectralClip(operator="convolution")),
        )
    ]
    return compiled(keras.Sequential([keras.Input((6, 2)), *layers]))


def compiled(model):
    optimizer = keras.optimizers.SGD(1e-2)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0) if MIXED else optimizer, "mse")
    return model, optimizer


def fit(model):
    rng = np.random.default_rng(0)
    shapes = [(16, *shape[1:]) for shape in (model.input_shape, model.output_shape)]
    x, y = (rng.standard_normal(shape).astype("float32") for shape in shapes)
    model.fit(x, y, batch_size=16, epochs=STEPS, verbose=0, shuffle=False)


def mirrored():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
    with strategy.scope():
        model, optimizer = build()
    fit(model)
    return model, lambda v: [numpy(copy) for copy in strategy.experimental_local_results(v.value)], optimizer


def shards(variable):
    return [np.asarray(shard.data) for shard in variable.value.addressable_shards]


def data_parallel():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model, optimizer = build()
    fit(model)
    return model, shards, optimizer


def model_parallel():
    devices = keras.distribution.list_devices("cpu")
    layout = keras.distribution.LayoutMap(keras.distribution.DeviceMesh(MESH, ["batch", "other", "model"], devices))
    kernel = (None, *SPLIT) if CONVOLUTIONAL else SPLIT
    layout[".*wide.*kernel.*"] = kernel  # matches the path of the vector too, whose own layout must win
    layout[".*wide.*bias"] = SPLIT[1:]
    if CONVOLUTIONAL:
        layout[".*last.*kernel.*"] = kernel
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
    model, optimizer = build_convolutional() if CONVOLUTIONAL else build()
    fit(model)
    return model, shards, optimizer


def single():
    model, optimizer = build_convolutional() if CONVOLUTIONAL else build()
    fit(model)
    return model, lambda v: [numpy(v)], optimizer


def main():
    ways = {"mirrored": mirrored, "data_parallel": data_parallel, "model_parallel": model_parallel, "single": single}
    model, copies, optimizer = next(way for name, way in ways.items() if WAY.startswith(name))()
    stored = {}
    for name, kernel in (("wide", model.layers[0].kernel), ("last", model.layers[1].kernel)):
        for kind, variable in (("kernel", kernel), ("u", state_of(optimizer, kernel))):
            stored[f"{name}_{kind}"] = numpy(variable)
            for index, copy in enumerate(copies(variable)):
                stored[f"{name}_{kind}_copy{index}"] = copy
    np.savez(FOLDER, **stored)


main()
