"""Run by `test_wrapper_distribution.py` in a process of its own: trains wrapped layers, on one device or many.

The devices have to be set up before the backend starts, so each way to distribute needs its own process.
"""

import sys

import keras
import numpy as np
from keras import ops

import opnorm

WAY, FILE = sys.argv[1:]
STEPS = 30  # enough for vectors that live, with one iteration a step and no warm-up


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def build():
    """Return a model of which two layers' vectors serve only if each step carries them on."""
    keras.utils.set_random_seed(0)
    wide, last = (
        opnorm.SpectralNormalization(layer, warmup_iterations=0, perturbation=0.0, seed=5)
        for layer in (
            keras.layers.Conv1D(16, 3, activation="tanh", kernel_initializer=start(1), name="wide"),
            keras.layers.Dense(24, kernel_initializer=start(2), name="last"),
        )
    )
    model = keras.Sequential([keras.Input((6, 4)), wide, keras.layers.Flatten(), last])
    model.compile(keras.optimizers.SGD(2e-2), "mse")
    return model


def start(seed):
    return keras.initializers.RandomNormal(stddev=0.2, seed=seed)


def fit(model):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype("float32") for shape in ((16, 6, 4), (16, 24)))
    model.fit(x, y, batch_size=16, epochs=STEPS, verbose=0, shuffle=False)


def mirrored():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = build()
    fit(model)
    return model, lambda v: [numpy(copy) for copy in strategy.experimental_local_results(v.value)]


def shards(variable):
    return [np.asarray(shard.data) for shard in variable.value.addressable_shards]


def data_parallel():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = build()
    fit(model)
    return model, shards


def model_parallel():
    mesh = keras.distribution.DeviceMesh((1, 4), ["batch", "model"], keras.distribution.list_devices("cpu"))
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*wide.*kernel.*"] = (None, None, "model")  # matches the path of the vectors too, which have two axes
    layout[".*last.*kernel.*"] = (None, "model")
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
    model = build()
    fit(model)
    return model, shards


def single():
    model = build()
    fit(model)
    return model, lambda v: [numpy(v)]


def main():
    ways = {"mirrored": mirrored, "data_parallel": data_parallel, "model_parallel": model_parallel, "single": single}
    model, copies = ways[WAY]()
    stored = {}
    for wrapper in (model.layers[0], model.layers[-1]):
        (vectors,) = wrapper.non_trainable_variables
        name = wrapper.layer.name
        for kind, variable in (("kernel", wrapper.layer.kernel), ("vectors", vectors)):
            stored[f"{name}_{kind}"] = numpy(variable)
            stored |= {f"{name}_{kind}_copy{index}": copy for index, copy in enumerate(copies(variable))}
        with wrapper.normalized():
            stored[f"{name}_applied"] = numpy(wrapper.layer.kernel.value)
    np.savez(FILE, **stored)


main()
