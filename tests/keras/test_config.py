"""A constraint is its JSON config: rebuilt, copied, pickled or loaded in a fresh process, it behaves the same."""

import copy
import json
import os
import pickle
import subprocess
import sys
from inspect import signature

import dense
import keras
import numpy as np
import pytest
from cases import ALL, UNTARGETED, gaussian, op_by_op
from keras import layers

import opnorm

every_constraint = pytest.mark.parametrize("constraint_name", ALL)
OPTIONS = {
    "axis": (-2, -1),
    "strides": (2, 1),
    "groups": 2,
    "power_iterations": 2,
    "warmup_iterations": 7,
    "tolerance": 1e-3,
    "perturbation": 0.01,
    "companion": False,
    "seed": 11,
}


def built(constraint_name):
    """Return the constraint of 0.9 with every option that it takes."""
    case = ALL[constraint_name]
    return case.build(0.9, **case.options(OPTIONS))


def through_json(constraint):
    return type(constraint).from_config(json.loads(json.dumps(constraint.get_config())))


COPIES = {
    "config": through_json,
    "keras": lambda c: keras.constraints.deserialize(json.loads(json.dumps(keras.constraints.serialize(c)))),
    "deepcopy": copy.deepcopy,
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
}


@every_constraint
def test_config_holds_the_arguments_of_the_constructor_and_nothing_else(constraint_name):
    constraint, options = built(constraint_name), ALL[constraint_name].options(OPTIONS)
    config = constraint.get_config()
    assert set(config) == set(signature(type(constraint)).parameters)
    assert {"axis", "groups"} <= options.keys()
    assert options.items() <= config.items()
    assert 0.9 in config.values() or constraint_name in UNTARGETED


@every_constraint
def test_config_of_numpy_arguments_is_json(constraint_name):
    options = {"axis": np.int64(-1), "groups": np.int64(2), "seed": np.int32(3), "perturbation": np.float32(0.5)}
    case = ALL[constraint_name]
    constraint = case.build(np.float32(0.5), **case.options(options))
    assert json.loads(json.dumps(constraint.get_config())) == through_json(constraint).get_config()


@every_constraint
@pytest.mark.parametrize("way", COPIES)
def test_copy_behaves_the_same(constraint_name, way):
    constraint = built(constraint_name)
    twin = COPIES[way](constraint)
    assert twin is not constraint
    assert type(twin) is type(constraint)
    kernel = gaussian(3, 4, 2, 4)
    for one, two in zip(first_update(constraint, kernel), first_update(twin, kernel), strict=True):
        assert np.array_equal(one, two)


def first_update(constraint, kernel):
    result, state = op_by_op(constraint.update)(kernel, constraint.initial_state(kernel))
    return [dense.array(x) for x in (result, state) if x is not None]


LOAD = """
model = keras.models.load_model(sys.argv[1])
constraints = [layer.kernel_constraint for layer in model.layers]
print(json.dumps([[type(c).__name__, c.get_config()] for c in constraints]))
"""
ORDERS = ("import opnorm, keras", "import keras, opnorm")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the path of a saved model with one layer for each constraint of the registry."""
    stack = [layers.Dense(8, kernel_constraint=built(name)) for name in ALL]
    model = keras.Sequential([keras.Input((8,)), *stack])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def fresh_processes(saved):
    """Return what a fresh process for each order of imports prints; they run side by side."""
    processes = {
        order: subprocess.Popen(
            [sys.executable, "-c", f"import json, sys\n{order}\n{LOAD}", str(saved)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for order in ORDERS
    }
    return {order: process.communicate()[0] for order, process in processes.items()}


@pytest.mark.parametrize("order", ORDERS)
def test_fresh_process_loads_a_saved_model_whichever_is_imported_first(fresh_processes, order):
    loaded = json.loads(fresh_processes[order])
    expected = [built(name) for name in ALL]
    assert loaded == [[type(c).__name__, json.loads(json.dumps(c.get_config()))] for c in expected]


def test_importing_opnorm_imports_no_framework():
    script = "import sys, opnorm; print(sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout
    assert printed.strip() == b"[]"
    assert "keras" in sys.modules
    assert opnorm.SpectralNorm is opnorm.keras.constraints.SpectralNorm


@pytest.mark.parametrize("name", ["KernelGeometry", "SpectralNormalization", "bake"])
def test_a_public_name_may_be_the_first_thing_that_is_used(name):
    program = f"import opnorm; assert opnorm.{name} is not None"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
