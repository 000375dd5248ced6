"""A network's own names stay, whatever its nodes are split into and joined to."""

import numpy as np

from opnorm.checkpoints.records import Graph, Node
from opnorm.networks.folding import names, split


def test_what_a_node_is_split_into_has_names_that_no_other_node_has():
    shapes = {"input_shapes": [("batch", 1), ("batch", 4)]}
    scale = {"scale": 2.0, "input_shapes": [("batch", 4)] * 2}
    nodes = (
        Node("a", "Dense", ("x",), {"activation": "relu"}, {}),
        Node("a/relu", "Dense", ("a",), {"activation": "tanh"}, {}),
        Node("a/relu/tanh", "Activation", ("a",), {"activation": "tanh"}, {}),
        Node("s/scale", "Add", ("a", "a/relu"), shapes, {}),
        Node("s/scale/repeated 0", "Activation", ("s/scale",), {"activation": "tanh"}, {}),
        Node("s", "keras.applications.CustomScaleLayer", ("s/scale/repeated 0", "s/scale"), scale, {}),
    )
    found = split(Graph(nodes, ("x",), ("s", "a/relu/tanh")))
    by_name = {node.name: node for node in found.nodes}
    assert len(by_name) == len(found.nodes) == 10
    assert {node.name for node in nodes} < names(found)
    (relu,) = (node.name for node in found.nodes if node.options.get("activation") == "relu" and node.kind != "Dense")
    assert by_name[relu].inputs == ("a",)
    assert by_name["a/relu"].inputs == by_name["a/relu/tanh"].inputs == (relu,)
    kept, scaled = by_name["s"].inputs
    assert kept == "s/scale/repeated 0"
    assert by_name[scaled].kind == "Rescaling"
    assert by_name[scaled].inputs == ("s/scale",)
    (repeat,) = (node for node in found.nodes if node.kind == "Repeat")
    assert by_name["s/scale"].inputs[0] == repeat.name
    assert np.prod(repeat.options["count"]) == 4
