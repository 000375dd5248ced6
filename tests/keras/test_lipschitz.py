"""Bounds of live Keras models: above the largest explicit Jacobian at random points, and never a made-up number."""

import keras
import numpy as np
import pytest

import opnorm
from opnorm.keras.jacobian import largest_jacobian, linearize
from opnorm.networks.lipschitz import lipschitz_bound

L = keras.layers
SINGLE = 1e-4  # Jacobians in float32: a few hundred products, and TensorFlow's convolutions
POINTS = 3


def jacobians(model, points):
    """Return the Jacobian at each point, (outputs, inputs), row by row by reverse mode."""
    linear = linearize(model, points)
    size = int(np.prod(linear.output_shape))
    rows = [
        linear.backward(np.broadcast_to(e.reshape(linear.output_shape), (len(points), *linear.output_shape)).copy())
        for e in np.eye(size)
    ]
    return np.stack([row.reshape(len(points), -1) for row in rows], axis=1)


def randomized(model):
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "variance" in variable.path:
            variable.assign(rng.uniform(0.2, 3.0, variable.shape))
        elif variable.path.split("/")[-1] != "count" and "seed" not in variable.path:
            variable.assign(rng.standard_normal(variable.shape))
    return model


def model_of(layers, shape):
    return randomized(keras.Sequential([keras.Input(shape), *layers]))


def points_for(model, spread=1.0):
    shape = (POINTS, *model.input_shape[1:])
    return (spread * np.random.default_rng(1).standard_normal(shape)).astype("float32")


def check(model, spread=1.0):
    """Assert that the bound holds, and return it with the largest Jacobian found."""
    points = points_for(model, spread)
    bound = lipschitz_bound(model)
    assert bound.unknown == ()
    truth = max(np.linalg.norm(J, 2) for J in jacobians(model, points))
    assert truth <= bound.upper * (1 + SINGLE)
    return bound, truth


IMAGE, LINE = (6, 7, 2), (9, 2)
LAYERS = [
    (L.Dense(4, activation="sigmoid"), (5,)),
    (L.EinsumDense("ab,bc->ac", output_shape=5), (4,)),
    (L.Conv1D(3, 3, padding="causal", dilation_rate=2), LINE),
    (L.Conv2D(3, 3, padding="same", activation="silu"), IMAGE),
    (L.Conv2D(4, 3, strides=2, groups=2), IMAGE),
    (L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), IMAGE),
    (L.SeparableConv2D(3, 3, padding="same"), IMAGE),
    (L.Conv2DTranspose(3, 3, strides=2, padding="same"), IMAGE),
    (L.TimeDistributed(L.Dense(3)), LINE),
    (L.SpectralNormalization(L.Conv2D(3, 2)), IMAGE),
    (L.BatchNormalization(), IMAGE),
    (L.BatchNormalization(axis=1), IMAGE),
    (L.Normalization(mean=[0.0, 1.0], variance=[0.1, 4.0]), LINE),
    (L.Rescaling(1 / 127.5, offset=-1), IMAGE),
    (L.PReLU(), (5,)),
    (L.LeakyReLU(negative_slope=2.0), (5,)),
    (L.Softmax(), (5,)),
    (L.ZeroPadding2D(1), IMAGE),
    (L.Cropping2D(1), IMAGE),
    (L.UpSampling2D((2, 3)), IMAGE),
    (L.UpSampling2D(2, interpolation="bilinear"), IMAGE),
    (L.RepeatVector(4), (5,)),
    (L.Permute((2, 1)), LINE),
    (L.GlobalAveragePooling2D(), IMAGE),
    (L.GlobalMaxPooling1D(), LINE),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[f"{i}-{type(a).__name__}" for i, (a, _) in enumerate(LAYERS)])
def test_a_layer_is_never_below_its_jacobian(layer, shape):
    check(model_of([layer], shape))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("strides", [1, 2, 5])
@pytest.mark.parametrize("kind", [L.MaxPooling1D, L.AveragePooling1D])
def test_pooling_is_never_below_its_jacobian(kind, size, strides, padding):
    check(model_of([kind(size, strides=strides, padding=padding)], (8, 1)))


def test_pooling_of_two_axes_is_never_below_its_jacobian():
    check(model_of([L.AveragePooling2D((3, 2), strides=1, padding="same")], IMAGE))
    check(model_of([L.MaxPooling2D((3, 2), strides=(1, 2), padding="same")], IMAGE))


ACTIVATIONS = (
    "relu", "gelu", "silu", "mish", "selu", "elu", "softplus", "softsign", "tanh", "sigmoid", "hard_sigmoid",
    "hard_silu", "softmax", "relu6",
)  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_of_a_layer_is_a_step_of_its_own(name):
    bound, _ = check(model_of([L.Dense(6, activation=name), L.Dense(6)], (4,)))
    assert [step.kind for step in bound.steps[:3]] == ["Dense", "Activation", "Dense"]


def test_a_linear_network_with_batch_normalization_has_its_own_norm():
    model = model_of([L.Dense(6), L.BatchNormalization(), L.Dense(5)], (4,))
    bound, truth = check(model)
    assert bound.upper == pytest.approx(truth, rel=SINGLE)


def residual_network():
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, padding="same")(inputs)
    x = L.ReLU()(L.BatchNormalization()(x))
    y = L.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = L.Add()([x, y])
    x = L.Concatenate()([L.MaxPooling2D(2)(x), L.AveragePooling2D(2)(x)])
    x = L.Dropout(0.5)(x)
    x = L.Dense(5, activation="tanh")(L.Flatten()(x))
    return randomized(keras.Model(inputs, L.Dense(3)(0.5 * x + x)))


def test_branches_are_never_below_their_jacobian():
    bound, truth = check(residual_network())
    assert bound.upper > truth  # a product over layers is not sharp here


def test_the_lower_end_is_the_largest_jacobian():
    model = residual_network()
    points = points_for(model)
    bound = lipschitz_bound(model, points)
    truth = max(np.linalg.norm(J, 2) for J in jacobians(model, points))
    assert bound.lower <= truth * (1 + SINGLE)
    assert bound.lower >= truth * 0.99  # twice twelve Golub-Kahan steps
    assert bound.ratio == bound.upper / bound.lower


def test_several_batches_give_the_largest_of_all():
    model = model_of([L.Dense(6, activation="tanh"), L.Dense(3)], (4,))
    points = points_for(model)
    truth = max(np.linalg.norm(J, 2) for J in jacobians(model, points))
    assert largest_jacobian(model, points, batch_size=2) == pytest.approx(truth, rel=SINGLE)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (L.LayerNormalization(), (5,)),
        (L.LSTM(3), LINE),
        (L.Bidirectional(L.GRU(3)), LINE),
        (L.Lambda(lambda x: x * 2), (5,)),
        (L.Activation("exponential"), (5,)),
        (L.Dense(3, activation="log_softmax"), (5,)),
        (L.UnitNormalization(), (5,)),
    ],
)
def test_a_layer_without_a_constant_is_named_and_the_total_is_unknown(layer, shape):
    bound = lipschitz_bound(model_of([L.Dense(shape[-1]), layer], shape))
    assert bound.upper is None
    assert [step.name.split("/")[0] for step in bound.unknown] == [layer.name]


def test_attention_and_products_of_branches_are_unknown():
    inputs = keras.Input(LINE)
    attended = L.MultiHeadAttention(2, 3)(inputs, inputs)
    model = randomized(keras.Model(inputs, L.Multiply()([attended, inputs])))
    assert [step.kind for step in lipschitz_bound(model).unknown] == ["MultiHeadAttention", "Multiply"]


def test_a_branch_that_is_repeated_over_the_image_counts_for_each_pixel():
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, L.Add()([inputs, L.GlobalAveragePooling2D(keepdims=True)(inputs)]))
    assert lipschitz_bound(model).upper == pytest.approx(2, rel=1e-9)  # a mean, repeated: a projection's norm


def test_a_dueling_network_s_advantages_are_less_their_mean():
    inputs = keras.Input((6,))
    advantages = L.Dense(4)(inputs)
    centred = advantages - keras.ops.mean(advantages, axis=-1, keepdims=True)
    model = randomized(keras.Model(inputs, L.Dense(1)(inputs) + centred))
    value, other = (np.asarray(layer.get_weights()[0], dtype=float) for layer in dense_by_width(model))
    exact = np.linalg.norm(np.repeat(value, 4, axis=1) + other @ (np.eye(4) - 0.25), 2)
    bound = lipschitz_bound(model)
    assert exact <= bound.upper * (1 + SINGLE)
    assert bound.upper <= (2 * np.linalg.norm(value) + np.linalg.norm(other, 2)) * (1 + SINGLE)


def dense_by_width(model):
    """Return the dense layers of one and of four outputs."""
    return sorted((layer for layer in model.layers if isinstance(layer, L.Dense)), key=lambda layer: layer.units)


def test_an_embedding_is_measured_by_changed_tokens():
    model = randomized(keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(7, 3), L.Flatten(), L.Dense(2)]))
    bound = lipschitz_bound(model)
    tokens = np.random.default_rng(2).integers(0, 7, (60, 4))
    outputs = keras.ops.convert_to_numpy(model(tokens))
    changed = np.sqrt((tokens[:, None] != tokens[None]).sum(-1))
    moved = np.linalg.norm(outputs[:, None] - outputs[None], axis=-1)
    assert np.all(moved <= bound.upper * changed * (1 + SINGLE) + SINGLE)


def test_a_file_has_the_bound_of_its_model(tmp_path):
    model = residual_network()
    model.save(tmp_path / "model.keras")
    assert lipschitz_bound(tmp_path / "model.keras").upper == lipschitz_bound(model).upper


def relu(x):
    return 100 * x


@pytest.mark.parametrize("use", [keras.activations.relu, keras.ops.relu, relu])
def test_a_function_that_is_only_called_as_one_of_keras_s_has_no_constant(use):
    """Keras writes an activation by its bare name, so that of the live model alone tells the two apart."""
    inner = [L.TimeDistributed(L.Dense(3, activation=use)), L.Activation(use)]
    bound = lipschitz_bound(model_of([keras.Sequential(inner), L.Dense(3, activation=use)], (4, 4)))
    assert len(bound.unknown) == (3 if use is relu else 0)
    assert all("test_lipschitz>relu" in step.rule for step in bound.unknown)


def test_a_time_limit_makes_the_bound_larger_and_not_wrong():
    model = model_of([L.Conv2D(4, 3), L.ReLU(), L.Flatten(), L.Dense(3)], (9, 9, 2))
    whole, hurried = lipschitz_bound(model), lipschitz_bound(model, time_limit=0)
    assert whole.upper <= hurried.upper < float("inf")
    with pytest.raises(ValueError, match=r"Argument `time_limit` must not be negative.*-1"):
        lipschitz_bound(model, time_limit=-1)


def test_a_subclassed_model_is_unknown_and_says_why():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    bound = lipschitz_bound(model)
    assert bound.upper is None
    (step,) = bound.unknown
    assert step.name == model.name
    assert "not known" in step.rule


def test_a_custom_layer_is_named_and_the_rest_is_kept():
    class Custom(L.Layer):
        def call(self, inputs):
            return inputs

    bound = lipschitz_bound(model_of([L.Dense(3), Custom(name="own"), L.Dense(2)], (4,)))
    assert bound.upper is None
    assert [step.name for step in bound.unknown] == ["own"]
    assert [step.kind for step in bound.steps if step.constant is not None] == ["Dense", "Dense"]


@pytest.mark.parametrize("make", [lambda a, b: {"a": a, "b": b}, lambda a, b: [a, b]])
def test_several_outputs_are_bounded_as_one_vector_and_not_differentiated(make):
    inputs = keras.Input((4,))
    a, b = L.Dense(2), L.Dense(3)
    model = randomized(keras.Model(inputs, make(a(inputs), b(inputs))))
    both = np.concatenate([keras.ops.convert_to_numpy(layer.kernel) for layer in (a, b)], axis=1)
    bound = lipschitz_bound(model)
    assert np.linalg.norm(both, 2) <= bound.upper * (1 + SINGLE)
    with pytest.raises(ValueError, match="one output"):
        lipschitz_bound(model, np.zeros((2, 4), "float32"))


SIZED = [
    ([L.GlobalAveragePooling2D()], (5, 5, 1)),
    ([L.AveragePooling2D(3, padding="same")], (6, 6, 1)),
    ([L.AveragePooling2D(2, strides=1), L.Conv2D(2, 3)], (6, 5, 1)),
    ([L.Conv2D(3, 5, padding="same", data_format="channels_last")], (6, 7, 2)),
    ([L.Conv2D(3, 3, strides=2, padding="same"), L.ZeroPadding2D(((0, 1), (2, 0))), L.Conv2D(2, 3)], (7, 8, 1)),
    ([L.Conv1D(2, 3, padding="causal", dilation_rate=2), L.Cropping1D((1, 0)), L.AveragePooling1D(2)], (8, 2)),
    ([L.DepthwiseConv2D(3, depth_multiplier=2), L.UpSampling2D(2), L.Conv2D(2, 3)], (5, 6, 2)),
    ([L.MaxPooling2D(3, 2), L.BatchNormalization(), L.ReLU(), L.Conv2D(2, 3, padding="same")], (8, 8, 2)),
]


@pytest.mark.parametrize(("layers", "shape"), SIZED)
def test_a_size_that_the_model_fixes_makes_a_smaller_bound(layers, shape):
    model = model_of(layers, shape)
    bound, truth = check(model)
    every = [keras.Input((None,) * (len(shape) - 1) + shape[-1:]), *layers]
    at_all = lipschitz_bound(keras.Sequential(every))
    assert bound.upper < at_all.upper
    assert ("size that the model names" in bound.notes[0], "every size" in at_all.notes[0]) == (True, True)
    if len(layers) == 1:
        assert bound.upper <= truth * (1 + SINGLE)


def test_a_file_keeps_the_size_of_its_model(tmp_path):
    model = model_of([L.Conv2D(3, 5, padding="same"), L.GlobalAveragePooling2D()], (6, 7, 2))
    model.save(tmp_path / "model.keras")
    found = lipschitz_bound(tmp_path / "model.keras")
    assert (found.upper, found.notes) == (lipschitz_bound(model).upper, lipschitz_bound(model).notes)


def test_a_file_is_not_differentiated(tmp_path):
    with pytest.raises(ValueError, match="Argument `data`"):
        lipschitz_bound(tmp_path / "model.keras", np.zeros((1, 4)))


def test_points_are_floating_point_numbers():
    model = model_of([L.Dense(3)], (4,))
    with pytest.raises(ValueError, match="Argument `data`"):
        lipschitz_bound(model, np.zeros((2, 4), "int32"))


def test_a_wrapped_layer_is_unknown_until_it_is_baked():
    points = np.random.default_rng(0).standard_normal((20, 6)).astype("float32")
    small = keras.initializers.RandomNormal(stddev=0.01, seed=1)  # the stored kernel's norm is no bound of the layer's
    wrapper = opnorm.SpectralNormalization(keras.layers.Dense(5, kernel_initializer=small))
    model = keras.Sequential([keras.Input((6,)), wrapper])
    model(points)
    (step,) = lipschitz_bound(model).unknown
    assert "opnorm.bake(model)" in step.rule
    bound = lipschitz_bound(opnorm.bake(model), points)
    assert 1 - 1e-3 <= bound.lower <= bound.upper <= 1 + 1e-3  # of the wrapper's own tolerance


def test_the_layers_of_keras_applications_are_known_by_their_module():
    applications = pytest.importorskip("keras.src.applications.inception_resnet_v2")
    convnext = pytest.importorskip("keras.src.applications.convnext")
    inputs = keras.Input((6, 6, 2))
    branch = L.Conv2D(2, 3, padding="same")(inputs)
    summed = applications.CustomScaleLayer(0.3)([inputs, branch])
    outputs = convnext.StochasticDepth(0.5)(convnext.LayerScale(0.5, 2)(L.ReLU()(summed)))
    model = keras.Model(inputs, outputs)
    bound, _ = check(model)
    norm = opnorm.spectral_norm(opnorm.Convolution(np.array(model.layers[1].kernel), (6, 6))).upper
    assert bound.upper == pytest.approx(0.5 * (1 + 0.3 * norm), rel=1e-5)


def test_a_custom_layer_with_a_name_of_keras_applications_is_not_that_layer():
    class CustomScaleLayer(keras.layers.Layer):
        def call(self, inputs):
            return inputs[0] * inputs[1]

    inputs = keras.Input((3,))
    model = keras.Model(inputs, CustomScaleLayer()([inputs, L.Dense(3)(inputs)]))
    assert opnorm.lipschitz_bound(model).upper is None


@pytest.mark.parametrize(
    ("layer", "truth"),
    [
        (L.Conv2D(6, 3, padding="same", data_format="channels_first", use_bias=False), 1.0),
        (L.GlobalAveragePooling2D(data_format="channels_first"), 1 / 6),
        (L.AveragePooling2D(6, data_format="channels_first"), 1 / 6),
        (L.MaxPooling2D(6, data_format="channels_first"), 6**-0.5),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_of_a_cube_each_layer_has_its_own_axis_of_channels(layer, truth):
    ones, signs = np.ones(6) / 6**0.5, np.array([1, -1] * 3) / 6**0.5
    first, last = L.Conv2D(6, 3, padding="same"), L.Dense(1, use_bias=False)
    inputs = keras.Input((6, 6, 6))
    x = layer(L.ReLU()(first(inputs)))
    model = keras.Model(inputs, x if layer.weights else last(L.Flatten()(x)))

    def kernel(read):
        return np.pad(np.outer(read, ones)[None, None], ((1, 1), (1, 1), (0, 0), (0, 0)))

    first.set_weights([kernel(ones), np.full(6, 50.0)])  # no ReLU cuts anything off near 0
    (layer if layer.weights else last).set_weights([kernel(signs) if layer.weights else signs[:, None]])
    assert truth <= opnorm.lipschitz_bound(model).upper * (1 + 1e-6)


def halves(h, how):
    half = h.shape[-1] // 2
    return keras.ops.split(h, 2, axis=-1) if how == "split" else (h[..., :half], h[..., half:])


@pytest.mark.parametrize("how", ["split", "slices"])
@pytest.mark.parametrize("shape", [(5,), (6, 7, 2)])
def test_maxima_beside_minima_are_bounded_as_a_whole(how, shape):
    x = keras.Input(shape)
    kernel = L.Dense if len(shape) == 1 else lambda units: L.Conv2D(units, 3, padding="same")
    a, b = halves(kernel(6)(x), how)
    m = keras.ops.concatenate([keras.ops.maximum(a, b), keras.ops.minimum(a, b)], axis=-1)
    model = randomized(keras.Model(x, kernel(4)(m)))
    bound, _ = check(model)
    norms = [step.constant for step in bound.steps if step.kind in ("Dense", "Conv2D")]
    assert bound.upper < 0.97 * np.prod(norms)


@pytest.mark.parametrize("how", ["split", "slices"])
def test_a_gate_of_one_half_for_the_other_is_unknown(how, tmp_path):
    x = keras.Input((6,))
    a, b = halves(L.Dense(8)(x), how)
    model = keras.Model(x, L.Multiply()([a, L.Activation("sigmoid")(b)]))
    model.save(tmp_path / "model.keras")
    for source in (model, tmp_path / "model.keras"):
        assert [step.kind for step in lipschitz_bound(source).unknown] == ["Multiply"]


def test_sorted_groups_are_no_longer_than_what_they_sort():
    x = keras.Input((6,))
    groups = keras.ops.reshape(x, (-1, 2, 3))
    sorted_ = keras.ops.reshape(keras.ops.sort(groups, axis=-1), (-1, 6))
    assert check(keras.Model(x, sorted_))[0].upper == pytest.approx(1, rel=1e-6)
    extremes = [keras.ops.max(groups, axis=-1), keras.ops.min(groups, axis=-1)]
    assert check(keras.Model(x, keras.ops.concatenate(extremes, axis=-1)))[0].upper == pytest.approx(1, rel=1e-6)
    stacked = keras.ops.stack([keras.ops.maximum(x, -x), keras.ops.minimum(x, -x)], axis=-1)
    assert check(keras.Model(x, L.Flatten()(stacked)))[0].upper >= np.sqrt(2)


@pytest.mark.parametrize("named", [False, True])
def test_each_output_of_a_model_inside_is_a_value_of_its_own(named):
    inner = keras.Input((4,))
    outputs = [L.Dense(3, name="long")(inner), L.Dense(3, name="short")(inner)]
    part = keras.Model(inner, {"b": outputs[0], "a": outputs[1]} if named else outputs)
    x = keras.Input((4,))
    found = part(x)
    model = randomized(keras.Model(x, L.Activation("tanh")(found["a"] if named else found[1])))
    part.get_layer("long").kernel.assign(100 * part.get_layer("long").kernel)
    truth = max(np.linalg.norm(J, 2) for J in jacobians(model, points_for(model)))
    bound = lipschitz_bound(model)
    if named:  # in which order a table has them is not told
        assert bound.upper is None or bound.upper >= truth
    else:
        assert (
            truth <= bound.upper * (1 + SINGLE) <= np.linalg.norm(part.get_layer("short").kernel, 2) * (1 + 2 * SINGLE)
        )


def test_further_results_of_a_layer_are_not_taken_for_the_first():
    x = keras.Input((4, 3))
    _, state, _ = L.LSTM(5, return_state=True)(x)
    bound = lipschitz_bound(keras.Model(x, L.Dense(2)(state)))
    assert bound.upper is None
    assert "result 2 of LSTM" in [step.kind for step in bound.unknown]


@pytest.mark.parametrize("ball", [{}, {"around": np.ones(5, "float32"), "radius": 0.1}])
def test_progress_is_told_of_every_node(ball):
    model = model_of([L.Dense(4, activation="relu"), L.Dense(3), L.Softmax()], (5,))
    told = []
    bound = lipschitz_bound(model, progress=lambda done, count: told.append((done, count)), **ball)
    assert told == [(k, 4) for k in range(1, 5)]  # two kernels, two functions
    assert bound.upper == pytest.approx(lipschitz_bound(model, **ball).upper, rel=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_points_that_are_no_numbers_are_refused(value):
    points = np.zeros((2, 5), "float32")
    points[1, 3] = value
    with pytest.raises(ValueError, match="Argument `data` must hold finite numbers"):
        lipschitz_bound(model_of([L.Dense(4)], (5,)), points)


def test_a_chain_of_no_layers_is_the_identity():
    model = keras.Sequential([keras.Input((3,))])
    point = np.ones(3, "float32")
    assert lipschitz_bound(model).upper == pytest.approx(1)
    assert lipschitz_bound(model, around=point, radius=0.1).upper == pytest.approx(1)
    with pytest.raises(ValueError, match="not built"):
        lipschitz_bound(keras.Sequential())


WHOLE = {  # of images of bytes: what wraps around, or not
    "a difference": (lambda x: L.Rescaling(1 / 127)(x - 127), False),
    "a sum of both": (lambda x: L.Add()([x, x]), False),
    "moved, then a sum": (lambda x: L.Add()([L.Flatten()(x), L.Flatten()(x)]), False),
    "a quotient": (lambda x: L.Flatten()(x / 255.0), True),
    "a float": (lambda x: L.Flatten()(x * 0.5), True),
    "cast by a layer": (lambda x: L.Rescaling(1 / 255)(x), True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_computes_with_integers_has_no_constant(name, tmp_path):
    make, is_known = WHOLE[name]
    inputs = keras.Input((4,), dtype="uint8")
    model = keras.Model(inputs, make(inputs))
    model.save(tmp_path / "model.keras")
    for bound in (lipschitz_bound(model), lipschitz_bound(tmp_path / "model.keras")):
        assert (bound.upper is not None) == is_known
        assert is_known or "integers" in bound.unknown[0].rule
