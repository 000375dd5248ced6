"""All kernels of one update are constrained together: each as it would be alone, whatever stands beside it."""

import dense
import keras
import numpy as np
import pytest
from cases import ALL, EVERY, built_optimizer, gaussian, take_steps
from keras import layers, ops

import opnorm
from opnorm.keras.slots import state_of

BACKEND = keras.backend.backend()
C = 0.9
EXACT = 1e-3  # C2


def variable(kernel, constraint, dtype="float32"):
    result = keras.Variable(kernel, dtype=dtype, name="kernel")
    result.constraint = constraint
    return result


def float32(kernel):
    return dense.array(ops.cast(kernel, "float32"))


SHAPES = [(12, 8), (3, 3, 4, 8), (9,), (16, 16)]


def of_every_kind(dtype="float32"):
    """Return kernels of several shapes under every constraint, far outside the ball."""
    return [variable(3 * gaussian(*shape), case.seeded(C), dtype) for case in ALL.values() for shape in SHAPES]


def pushed(optimizer, kernels, steps, seed=0):
    """Apply gradients that are the same for the same kernels, `steps` times."""
    for step in range(steps):
        rows = [gaussian(*kernel.shape, seed=seed + step) for kernel in kernels]
        optimizer.apply([ops.cast(row, kernel.dtype) for row, kernel in zip(rows, kernels, strict=True)], kernels)


def test_kernels_constrained_together_are_what_each_is_alone():
    together, apart = of_every_kind(), of_every_kind()
    joint = built_optimizer(together)
    singles = [built_optimizer([kernel]) for kernel in apart]
    for kernel, twin, single in zip(together, apart, singles, strict=True):
        state, other = state_of(joint, kernel), state_of(single, twin)
        assert (state is None) == (other is None)
        if state is not None:
            other.assign(state.value)  # the same start: each kernel of an optimizer has another one
    take_steps(joint, together, steps=3)
    for twin, single in zip(apart, singles, strict=True):
        take_steps(single, [twin], steps=3)
    for kernel, twin in zip(together, apart, strict=True):
        rounding = 1e-5 * dense.norm(twin)  # float32 sums in another order
        np.testing.assert_allclose(dense.array(kernel), dense.array(twin), rtol=1e-5, atol=rounding)


def test_kernels_of_mixed_dtypes_are_each_constrained_in_their_own():
    dtypes = ["float32", "bfloat16"]
    kernels = [
        variable(3 * gaussian(12, 8, seed=i), case.build(C), dtype)
        for case in ALL.values()
        for i, dtype in enumerate(dtypes)
    ]
    optimizer = built_optimizer(kernels)
    start = [float32(kernel).copy() for kernel in kernels]
    take_steps(optimizer, kernels, steps=2)
    for kernel, before, case in zip(kernels, start, np.repeat(list(ALL), 2), strict=True):
        truth = dense.with_values(before, lambda s, case=case: ALL[case].values(s, C))
        rounding = 1e-2 if kernel.dtype == "bfloat16" else EXACT  # entries rounded by 2**-9, relative, twice
        assert float32(kernel) == pytest.approx(truth, abs=rounding * dense.norm(truth))
    assert [kernel.dtype for kernel in kernels] == dtypes * len(ALL)
    for kernel in kernels:
        state = state_of(optimizer, kernel)
        assert state is None or state.dtype == "float32"


class Counting(keras.constraints.NonNeg):
    """Keras's own constraint, which notes that it was called."""

    calls = 0

    def __call__(self, w):
        self.calls += 1
        return super().__call__(w)


def test_a_foreign_constraint_among_ours_is_called_as_ever():
    foreign = Counting()
    kernels = [
        variable(gaussian(6, 4), opnorm.SpectralNorm(C)),
        variable(gaussian(6, 4), foreign),
        variable(gaussian(6, 4), None),
        variable(3 * gaussian(6, 4, seed=1), opnorm.SpectralClip(C)),
    ]
    optimizer = built_optimizer(kernels)
    take_steps(optimizer, kernels, steps=2)
    assert foreign.calls == 2
    assert np.array_equal(dense.array(kernels[1]), np.maximum(gaussian(6, 4), 0))
    assert np.array_equal(dense.array(kernels[2]), gaussian(6, 4))
    assert [dense.norm(kernels[i]) for i in (0, 3)] == pytest.approx([C, C], abs=EXACT)


class Halving(opnorm.SpectralNorm):
    """Post-processes what its base class returns."""

    def __call__(self, w):
        return 0.5 * super().__call__(w)


class Halved(opnorm.SpectralClip):
    """The same without a vector."""

    def __call__(self, w):
        return 0.5 * super().__call__(w)


def test_a_subclass_that_changes_the_result_gets_what_it_asks_for():
    kernels = [
        variable(gaussian(12, 8), Halving(C, seed=1)),
        variable(gaussian(12, 8), opnorm.SpectralNorm(C, seed=1)),
        variable(gaussian(12, 8), Halved(C)),
    ]
    optimizer = built_optimizer(kernels)
    before = dense.array(state_of(optimizer, kernels[0])).copy()
    for _ in range(3):
        take_steps(optimizer, kernels)
        assert dense.norm(kernels[0]) == pytest.approx(C / 2, rel=0.02)  # the first is a cold start, C5
    assert [dense.norm(kernel) for kernel in kernels[:2]] == pytest.approx([C / 2, C], abs=EXACT)
    halves = dense.with_values(gaussian(12, 8), lambda s: np.minimum(s, C) / 8)  # halved three times, clipped once
    assert dense.array(kernels[2]) == pytest.approx(halves, abs=1e-4)  # what `SpectralClip` documents
    assert np.abs(dense.array(state_of(optimizer, kernels[0])) - before).max() > 1e-3  # its vector lives


@pytest.mark.parametrize("steps", [None, 2])
def test_a_subclass_that_changes_the_result_acts_in_fit_by_real_updates_alone(steps, data):
    model = keras.Sequential([keras.Input((12,)), layers.Dense(4, kernel_constraint=Halving(C))])
    model.layers[0].kernel.assign(gaussian(12, 4))
    model.compile(keras.optimizers.Adam(1e-3, gradient_accumulation_steps=steps), "mse")
    model.fit(*data, batch_size=8, verbose=0)
    assert dense.norm(model.layers[0].kernel) == pytest.approx(C / 2, abs=EXACT)


class Borrowing(layers.Layer):
    """Applies the transpose of another layer's kernel, of which it holds the same variable."""

    def __init__(self, lender):
        super().__init__()
        self.kernel = lender.kernel

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.kernel))


def test_a_kernel_that_two_layers_share_is_constrained_once_an_update(data):
    first = layers.Dense(8, use_bias=False, kernel_constraint=opnorm.SpectralNorm(C, seed=1))
    first.build((None, 12))
    first.kernel.assign(gaussian(12, 8))
    model = keras.Sequential([keras.Input((12,)), first, Borrowing(first), layers.Dense(4)])
    assert len(model.trainable_variables) == 3  # the shared one, and the last layer's two
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(*data, batch_size=8, epochs=2, verbose=0)
    assert model.layers[1].kernel is first.kernel
    assert dense.norm(first.kernel) == pytest.approx(C, abs=EXACT)
    assert sum(v.name.endswith("_u") for v in model.optimizer.variables) == 1


@pytest.mark.parametrize("constraint_name", ALL)
def test_a_kernel_without_a_gradient_keeps_itself_and_its_vector(constraint_name):
    case = ALL[constraint_name]
    kernels = [variable(3 * gaussian(6, 4, seed=i), case.build(C)) for i in range(2)]
    optimizer = built_optimizer(kernels)
    take_steps(optimizer, kernels)
    kernels[1].assign(3 * kernels[1].value)  # so that an update would be seen
    held = [v for v in (kernels[1], state_of(optimizer, kernels[1])) if v is not None]
    before = [dense.array(v).copy() for v in held]
    for _ in range(2):
        with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
            optimizer.apply([ops.zeros((6, 4)), None], kernels)
    for v, old in zip(held, before, strict=True):
        assert np.array_equal(dense.array(v), old)
    assert dense.norm(kernels[0]) <= max(C, case.values(np.ones(1), C)[0]) * (1 + EXACT)
    take_steps(optimizer, kernels)
    assert dense.norm(kernels[1]) == pytest.approx(case.values(np.ones(1), C)[0], rel=EXACT)  # C3


def test_two_optimizers_on_one_model_hold_each_their_kernels_and_those_they_share(data):
    constraint = opnorm.SpectralNorm(C)
    kernels = [variable(gaussian(12, 8, seed=i), constraint) for i in range(3)]
    optimizers = keras.optimizers.Adam(1e-3), keras.optimizers.SGD(1e-3)
    parts = kernels[:2], kernels[1:]
    for optimizer, part in zip(optimizers, parts, strict=True):
        optimizer.build(part)
    for step in range(4):
        for optimizer, part in zip(optimizers, parts, strict=True):
            pushed(optimizer, part, 1, seed=step)
    assert [dense.norm(kernel) for kernel in kernels] == pytest.approx([C] * 3, abs=EXACT)
    assert [state_of(optimizers[0], kernels[2]), state_of(optimizers[1], kernels[0])] == [None, None]
    assert state_of(optimizers[0], kernels[1]) is not state_of(optimizers[1], kernels[1])


@pytest.mark.parametrize("constraint_name", EVERY)
def test_a_kernel_replaced_between_steps_is_warmed_up_again_beside_kernels_at_rest(constraint_name):
    case = EVERY[constraint_name]
    kernels = [variable(3 * gaussian(16, 16, seed=i), case.build(C)) for i in range(3)]
    optimizer = built_optimizer(kernels)
    take_steps(optimizer, kernels, steps=3)
    at_rest = [dense.array(kernels[i]).copy() for i in (0, 2)]
    for seed in (10, 11):
        kernels[1].assign(5 * gaussian(16, 16, seed=seed))
        take_steps(optimizer, kernels)
        assert dense.norm(kernels[1]) == pytest.approx(C, rel=0.02)  # C11
    for i, kernel in zip((0, 2), at_rest, strict=True):
        np.testing.assert_allclose(dense.array(kernels[i]), kernel, rtol=EXACT, atol=1e-7)  # sigma is found anew


def test_accumulated_and_scaled_gradients_move_every_kernel_by_real_updates_alone(data):
    sizes = zip((8, 6, 5), EVERY.values(), strict=True)
    dense_layers = [layers.Dense(size, kernel_constraint=case.build(C)) for size, case in sizes]
    model = keras.Sequential([keras.Input((12,)), *dense_layers, layers.Dense(4)])
    for layer in dense_layers:
        layer.kernel.assign(gaussian(*layer.kernel.shape))
    inner = keras.optimizers.Adam(1e-3, gradient_accumulation_steps=3)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), "mse")
    model.optimizer.build(model.trainable_variables)
    kernels = [layer.kernel for layer in dense_layers]
    states = [state_of(inner, kernel) for kernel in kernels]
    held = [*kernels, *(state for state in states if state is not None)]
    for step in range(6):
        before = [dense.array(v).copy() for v in held]
        model.train_on_batch(*data)
        for v, old in zip(held, before, strict=True):
            assert np.array_equal(dense.array(v), old) == (step % 3 != 2), v.path
    for kernel, case in zip(kernels, EVERY.values(), strict=True):
        assert dense.norm(kernel) <= C * (1 + EXACT)
        assert dense.norm(kernel) >= C * (1 - EXACT) or not case.fills


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch's tensors are written in place")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("constraint_name", ALL)
def test_on_pytorch_a_kernel_stays_where_it_lies(constraint_name, dtype):
    kernels = [variable(3 * gaussian(12, 8, seed=i), ALL[constraint_name].build(C), dtype) for i in range(2)]
    optimizer = built_optimizer(kernels)
    values, pointers = [k.value for k in kernels], [k.value.data_ptr() for k in kernels]
    before = [float32(kernel).copy() for kernel in kernels]
    take_steps(optimizer, kernels, steps=2)
    assert all(k.value is v for k, v in zip(kernels, values, strict=True))
    assert [k.value.data_ptr() for k in kernels] == pointers
    assert all(k.value.requires_grad for k in kernels)
    for kernel, old in zip(kernels, before, strict=True):
        assert np.abs(float32(kernel) - old).max() > 0.1  # it was written
