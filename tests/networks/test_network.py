"""The bound of a network against Jacobians and explicit matrices in NumPy: never below, and exact where it can be."""

import tracemalloc

import graphs as n
import numpy as np
import pytest
from scipy.special import erf

from opnorm.bounds.brackets import Bounds
from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.records import Graph, Node
from opnorm.networks.bound import NetworkBound, Step, network_bound

DIFFERENCES = 1e-7  # of central differences with step 1e-6 in float64
CERTIFIED = 2e-6  # slack of the proved norm of a matrix


def norm(matrix):
    return np.linalg.norm(matrix, 2)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_chain_with_bends_is_never_below_its_jacobians(rng):
    W = [rng.standard_normal(shape) for shape in ((6, 9), (9, 8), (8, 4))]
    graph = n.chain(
        n.dense("a", "x", W[0], activation="tanh"), n.dense("b", "a", W[1], activation="relu"), n.dense("c", "b", W[2])
    )
    truth = n.largest_jacobian(lambda x: n.relu(np.tanh(x @ W[0]) @ W[1]) @ W[2], 6)
    bound = network_bound(graph)
    assert truth <= bound.upper * (1 + DIFFERENCES)
    assert bound.upper < np.prod([norm(w) for w in W])  # the chain as a whole is tighter than its factors


def test_dense_layers_without_activation_have_the_norm_of_their_product(rng):
    W = [rng.standard_normal(shape) for shape in ((6, 9), (9, 8), (8, 4))]
    bound = network_bound(n.chain(n.dense("a", "x", W[0]), n.dense("b", "a", W[1]), n.dense("c", "b", W[2])))
    truth = norm(W[0] @ W[1] @ W[2])
    assert truth <= bound.upper <= truth * (1 + CERTIFIED)


@pytest.mark.parametrize("first", ["dense", "normalization"])
def test_batch_normalization_beside_a_dense_layer_costs_nothing(rng, first):
    W, gamma, variance = rng.standard_normal((7, 5)), rng.standard_normal(5), rng.uniform(0.1, 4, 5)
    scale = gamma / np.sqrt(variance + 1e-3)
    if first == "dense":
        graph = n.chain(n.dense("a", "x", W), n.batch_normalization("b", "a", gamma, variance))
        truth = norm(W * scale)
    else:
        graph = n.chain(n.batch_normalization("b", "x", gamma, variance), n.dense("a", "b", W.T))
        truth = norm(scale[:, None] * W.T)
    bound = network_bound(graph)
    assert truth <= bound.upper <= truth * (1 + CERTIFIED)
    assert len(bound.steps) == 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("after", [True, False])
def test_batch_normalization_beside_a_convolution_costs_nothing(rng, groups, after):
    K = rng.standard_normal((3, 3, 4 // groups, 4))
    gamma, variance = rng.standard_normal(4), rng.uniform(0.1, 4, 4)
    scale = np.tile(gamma / np.sqrt(variance + 1e-3), 36)
    A = n.image_matrix(K, (6, 6), groups)
    if after:
        nodes = n.conv("a", "x", K, groups), n.batch_normalization("b", "a", gamma, variance, axis=3)
    else:
        nodes = n.batch_normalization("b", "x", gamma, variance), n.conv("a", "b", K, groups)
    truth = norm(scale[:, None] * A if after else A * scale)
    bound = network_bound(n.chain(*nodes))
    assert truth <= bound.upper <= truth * 1.15  # borders: the norm over every size is larger than that of 6 x 6
    assert len(bound.steps) == 1


@pytest.mark.parametrize("after", [True, False])
def test_batch_normalization_beside_a_grouped_transposed_convolution_costs_nothing(rng, after):
    K, gamma = rng.standard_normal((3, 3, 2, 4)), rng.standard_normal(4)  # from 4 channels to 4, in two groups
    A = n.image_matrix(K, (6, 6), groups=2).T
    transposed = n.conv("a", "x" if after else "b", K, groups=2, transposed=True)
    normalization = n.batch_normalization("b", "a" if after else "x", gamma, np.ones(4))
    scale = np.tile(gamma / np.sqrt(1 + 1e-3), 36)
    truth = norm(scale[:, None] * A if after else A * scale)
    bound = network_bound(n.chain(*((transposed, normalization) if after else (normalization, transposed))))
    assert truth <= bound.upper <= truth * 1.15  # borders, as above
    assert len(bound.steps) == 1


def test_a_normalization_over_another_axis_is_not_joined(rng):
    K, gamma = rng.standard_normal((3, 3, 4, 4)), rng.uniform(1, 2, 4)
    graph = n.chain(n.conv("a", "x", K), n.batch_normalization("b", "a", gamma, np.ones(4), axis=1))
    bound = network_bound(graph)
    assert [step.kind for step in bound.steps] == ["Conv2D", "BatchNormalization"]
    assert bound.upper >= norm(n.image_matrix(K, (6, 6))) * gamma.min()


def test_depthwise_and_pointwise_convolutions_are_bounded_as_one(rng):
    D, P = rng.standard_normal((3, 3, 3, 2)), rng.standard_normal((1, 1, 6, 5))
    truth = norm(n.image_matrix(P, (6, 6)) @ n.image_matrix(D.reshape(3, 3, 1, 6), (6, 6), groups=3))
    apart = norm(n.image_matrix(P, (6, 6))) * norm(n.image_matrix(D.reshape(3, 3, 1, 6), (6, 6), groups=3))
    bound = network_bound(n.chain(n.depthwise("d", "x", D), n.conv("p", "d", P)))
    assert truth <= bound.upper < apart


def test_what_is_read_twice_is_not_joined(rng):
    W = [rng.standard_normal((5, 5)) for _ in range(2)]
    shapes = [(None, 5), (None, 5)]
    nodes = n.dense("a", "x", W[0]), n.dense("b", "a", W[1]), n.plain("sum", "Add", "a", "b", input_shapes=shapes)
    bound = network_bound(n.chain(*nodes))
    assert norm(W[0] + W[0] @ W[1]) <= bound.upper <= norm(W[0]) * (1 + norm(W[1])) * (1 + CERTIFIED)


def test_a_residual_block_adds_one(rng):
    W = rng.standard_normal((5, 5))
    nodes = n.dense("f", "x", W, activation="relu"), n.plain("y", "Add", "x", "f", input_shapes=[(None, 5)] * 2)
    bound = network_bound(n.chain(*nodes))
    apart = network_bound(n.chain(*nodes), deadline=Deadline(0.0))  # node by node
    assert apart.upper == pytest.approx(1 + norm(W), rel=CERTIFIED)
    assert n.largest_jacobian(lambda x: x + n.relu(x @ W), 5) <= bound.upper < apart.upper


def test_branches_side_by_side_add_their_squares(rng):
    W = [rng.standard_normal((5, 4)), rng.standard_normal((5, 6))]
    nodes = n.dense("a", "x", W[0]), n.dense("b", "x", W[1]), n.plain("y", "Concatenate", "a", "b")
    bound = network_bound(n.chain(*nodes))
    assert bound.upper == pytest.approx(np.hypot(norm(W[0]), norm(W[1])), rel=CERTIFIED)
    assert norm(np.hstack(W)) <= bound.upper


def test_branches_of_different_inputs_side_by_side_have_the_larger_norm(rng):
    W = [rng.standard_normal((5, 4)), rng.standard_normal((3, 6))]
    nodes = n.dense("a", "x", W[0]), n.dense("b", "z", W[1]), n.plain("y", "Concatenate", "a", "b")
    bound = network_bound(n.chain(*nodes, inputs=("x", "z")))
    assert bound.upper == pytest.approx(max(map(norm, W)), rel=CERTIFIED)


def test_the_sum_of_different_inputs_is_bounded_in_the_product_space(rng):
    W = [rng.standard_normal((5, 4)), 3 * rng.standard_normal((3, 4))]
    add = n.plain("y", "Add", "a", "b", input_shapes=[(None, 4)] * 2)
    bound = network_bound(n.chain(n.dense("a", "x", W[0]), n.dense("b", "z", W[1]), add, inputs=("x", "z")))
    assert norm(np.vstack(W)) <= bound.upper <= np.hypot(*map(norm, W)) * (1 + CERTIFIED)


def test_a_residual_around_two_inputs_side_by_side_stays_tight(rng):
    W = rng.standard_normal((8, 8))
    both = n.plain("c", "Concatenate", "x", "z")
    add = n.plain("y", "Add", "c", "f", input_shapes=[(None, 8)] * 2)
    graph = n.chain(both, n.dense("f", "c", W, activation="relu"), add, inputs=("x", "z"))
    bound, apart = network_bound(graph), network_bound(graph, deadline=Deadline(0.0))
    assert apart.upper == pytest.approx(1 + norm(W), rel=CERTIFIED)
    assert n.largest_jacobian(lambda x: x + n.relu(x @ W), 8) <= bound.upper < apart.upper


def test_several_outputs_are_one_vector(rng):
    W = [rng.standard_normal((5, 4)), rng.standard_normal((5, 6))]
    graph = Graph((n.dense("a", "x", W[0]), n.dense("b", "x", W[1])), ("x",), ("a", "b"))
    assert network_bound(graph).upper == pytest.approx(np.hypot(*map(norm, W)), rel=CERTIFIED)


def test_a_branch_that_is_repeated_to_fit_counts_as_often(rng):
    W = rng.standard_normal((5, 1))
    shapes = [(None, 5), (None, 1)]
    bound = network_bound(n.chain(n.dense("f", "x", W), n.plain("y", "Add", "x", "f", input_shapes=shapes)))
    exact = norm(np.eye(5) + W @ np.ones((1, 5)))
    assert exact <= bound.upper <= (1 + np.sqrt(5) * norm(W)) * (1 + 1e-6)
    one = [(None, 5), ("other", 1)]
    unknown = network_bound(n.chain(n.dense("f", "x", W), n.plain("y", "Add", "x", "f", input_shapes=one)))
    assert unknown.upper is None
    assert "repeated" in unknown.unknown[0].rule


def test_branches_of_unknown_shape_are_not_taken_to_fit(rng):
    W = rng.standard_normal((5, 5))
    bound = network_bound(n.chain(n.dense("f", "x", W), n.plain("y", "Add", "x", "f")))
    assert bound.upper is None
    assert "not known" in bound.unknown[0].rule


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("MultiHeadAttention", "attention"),
        ("LayerNormalization", "unbounded in practice"),
        ("LSTM", "step"),
        ("Multiply", "product"),
        ("Lambda", "code"),
        ("SomethingNew", "SomethingNew"),
        ("ThresholdedRelu", "jumps"),
        ("Exp", "slope"),
        ("Masking", "mask"),
    ],
)
def test_what_has_no_constant_is_named_and_never_one(rng, kind, word):
    sources = ("a", "a") if kind == "Multiply" else ("a",)
    bound = network_bound(n.chain(n.dense("a", "x", rng.standard_normal((4, 4))), n.plain("b", kind, *sources)))
    assert bound.upper is None
    assert bound.ratio is None
    assert [step.name for step in bound.unknown] == ["b"]
    assert word in bound.unknown[0].rule


def test_what_does_not_reach_the_output_does_not_make_it_unknown(rng):
    W = rng.standard_normal((4, 4))
    graph = Graph((n.dense("a", "x", W), n.plain("b", "Lambda", "a")), ("x",), ("a",))
    bound = network_bound(graph)
    assert bound.upper == pytest.approx(norm(W), rel=CERTIFIED)
    assert len(bound.unknown) == 1


def test_an_embedding_counts_changed_tokens_by_the_distance_of_its_rows(rng):
    table = rng.standard_normal((7, 3)) + 10
    embedding = Node("e", "Embedding", ("tokens",), {}, {"embeddings": n.weight("table", table)})
    truth = max(np.linalg.norm(a - b) for a in table for b in table)
    bound = network_bound(n.chain(embedding, inputs=("tokens",)))
    assert truth <= bound.upper <= truth * (1 + CERTIFIED)
    assert bound.upper < norm(table)


def test_tokens_that_something_else_reads_make_the_bound_unknown(rng):
    embedding = Node("e", "Embedding", ("tokens",), {}, {"embeddings": n.weight("table", rng.standard_normal((7, 3)))})
    both = n.plain("y", "Concatenate", "e", "tokens")
    assert network_bound(n.chain(embedding, both, inputs=("tokens",))).upper is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [("MaxPooling2D", {"pool_size": "two"}), ("MaxPool", {"kernel_shape": [2], "pads": [1]}), ("MaxPool", {})],
)
def test_settings_that_make_no_sense_are_an_unknown_not_a_crash(kind, options):
    assert network_bound(n.chain(n.plain("p", kind, "x", **options))).upper is None


@pytest.mark.parametrize("origin", [{}, {"registered_name": "mine>ReLU"}, {"module": "elsewhere"}])
def test_a_custom_class_inside_another_layer_has_no_constant(rng, origin):
    """As an activation, or in a wrapper: its call may be ten times that of Keras's class of this name."""
    weights = n.dense("d", "x", rng.standard_normal((3, 2))).weights
    custom = {"class_name": "ReLU", "config": {}, **origin}
    inner = {"class_name": "Dense", "config": {"activation": "linear"}, **origin}
    for kind, options, held in (
        ("Dense", {"activation": custom}, weights),
        ("Activation", {"activation": custom}, {}),
        ("TimeDistributed", {"layer": inner}, {"layer/kernel": weights["kernel"]}),
    ):
        found = network_bound(Graph((Node("a", kind, ("x",), options, held),), ("x",), ("a",)))
        assert (found.upper is None) == bool(origin)


def test_layers_that_do_not_fit_each_other_have_the_product_of_their_norms(rng):
    """No input reaches them, so that any number is true; it must not be an error of LAPACK's."""
    bound = network_bound(n.chain(n.dense("a", "x", np.eye(2, 3), activation="relu"), n.dense("b", "a", np.eye(2))))
    assert bound.upper == pytest.approx(1, rel=1e-5)


def test_a_kernel_that_is_not_finite_is_an_unknown(rng):
    bound = network_bound(n.chain(n.dense("a", "x", np.full((3, 3), np.nan)), n.dense("b", "a", np.eye(3))))
    assert "finite" in bound.unknown[0].rule


def test_an_embedding_that_makes_a_mask_is_unknown(rng):
    table = {"embeddings": n.weight("table", rng.standard_normal((7, 3)))}
    embedding = Node("e", "Embedding", ("tokens",), {"mask_zero": True}, table)
    assert "mask" in network_bound(n.chain(embedding, inputs=("tokens",))).unknown[0].rule


def test_a_layer_with_a_second_input_or_in_training_mode_is_unknown():
    masked = network_bound(n.chain(n.plain("p", "GlobalAveragePooling1D", "x", "mask"), inputs=("x", "mask")))
    assert "second input" in masked.unknown[0].rule
    training = network_bound(n.chain(n.plain("d", "Dropout", "x", arguments={"training": True})))
    assert "training" in training.unknown[0].rule


def test_a_quantized_kernel_is_named(rng):
    node = n.dense("a", "x", rng.standard_normal((4, 4)))
    node = node._replace(weights={**node.weights, "kernel_scale": n.weight("scale", np.ones(4))})
    assert "kernel_scale" in network_bound(n.chain(node)).unknown[0].rule


def test_the_bounds_of_weights_may_come_from_a_table(rng):
    table = {"a/kernel": Bounds(6.0, 7.0), "b/kernel": Bounds(0.0, 3.0)}
    W = rng.standard_normal((4, 4))
    nodes = n.dense("a", "x", W, activation="softmax"), n.dense("b", "a", W)
    bound = network_bound(n.chain(*nodes), lambda weight: table[weight.name])
    assert bound.upper == pytest.approx(7 * 0.5 * 3, rel=1e-9)


def test_a_hundred_huge_layers_do_not_overflow_on_the_way(rng):
    nodes, source = [], "x"
    for i in range(100):
        scale = 1e20 if i < 50 else 1e-20
        nodes.append(n.plain(f"n{i}", "Rescaling", source, scale=scale, offset=0.0))
        source = nodes[-1].name
    assert network_bound(n.chain(*nodes)).upper == pytest.approx(1.0, rel=1e-9)


def test_a_bound_beyond_float64_is_none_and_said():
    nodes = [n.plain(f"n{i}", "Rescaling", f"n{i - 1}" if i else "x", scale=1e200, offset=0.0) for i in range(2)]
    bound = network_bound(n.chain(*nodes))
    assert bound.upper is None
    assert "float64" in bound.notes[0]


def test_gelu_networks_are_bounded_by_products_only(rng):
    W = [rng.standard_normal((5, 8)), rng.standard_normal((8, 5))]
    graph = n.chain(n.dense("a", "x", W[0], activation="gelu"), n.dense("b", "a", W[1]))
    bound = network_bound(graph)

    def network(x):
        z = x @ W[0]
        return z * (1 + erf(z / np.sqrt(2))) / 2 @ W[1]

    assert n.largest_jacobian(network, 5) <= bound.upper
    assert "ECLipsE" not in bound.method


def _exact(weight):
    size = norm(weight.read().reshape(128, 128))
    return Bounds(size, size)


def test_joined_kernels_take_the_memory_of_a_few_not_of_all(rng):
    kernels = rng.standard_normal((24, 1, 1, 128, 128))  # stored numbers, which a file would keep
    nodes = []
    for i, kernel in enumerate(kernels):
        nodes.append(n.conv(f"conv {i}", f"relu {i - 1}" if i else "x", kernel))
        nodes.append(n.batch_normalization(f"norm {i}", f"conv {i}", np.ones(128), np.ones(128), axis=3))
        nodes.append(n.plain(f"relu {i}", "ReLU", f"norm {i}"))
    graph = n.chain(*nodes)
    tracemalloc.start()
    bound = network_bound(graph, lambda weight: _exact(weight))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bound.steps) == 48
    assert peak < 10 * kernels[0].nbytes  # one, its square, LAPACK's workspace; all of them would be 24


@pytest.mark.parametrize(("count", "steps"), [(9, 1), (20, 1), (60, 2)])
def test_a_long_run_of_linear_layers_is_one_matrix_while_rounding_allows_it(rng, count, steps):
    matrices = [np.linalg.qr(rng.standard_normal((5, 5)))[0] * rng.uniform(0.8, 1.2) for _ in range(count)]
    nodes = [n.dense(f"d{i}", f"d{i - 1}" if i else "x", matrix) for i, matrix in enumerate(matrices)]
    bound = network_bound(n.chain(*nodes))
    truth = norm(np.linalg.multi_dot(matrices))  # the product of the norms, too: multiples of orthogonal matrices
    assert truth * (1 - 1e-12) <= bound.upper <= truth * (1 + (2e-3 if steps > 1 else 1e-5))
    assert len([step for step in bound.steps if step.kind != "chain"]) == steps


def test_each_step_has_its_share_of_the_logarithm():
    steps = [Step("a", "Dense", 4.0, ""), Step("b", "Dense", 0.5, ""), Step("c", "ReLU", 1.0, "")]
    bound = NetworkBound(None, 1.5, "", (*steps, Step("d", "LSTM", None, ""), Step("a ... b", "chain", 1.5, "")))
    assert bound.shares == (pytest.approx(2 / 3), pytest.approx(-1 / 3), 0.0, None, None)
    first = bound.to_text().splitlines()[1].split()
    assert first == ["a", "Dense", "4", "67%"]
    assert "<th" in bound._repr_html_()
    assert ">-33%<" in bound._repr_html_()
    assert NetworkBound(None, 1.0, "", (Step("c", "ReLU", 1.0, ""),)).shares == (0.0,)
