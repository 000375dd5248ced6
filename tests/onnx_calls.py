"""Operators of the ONNX graphs that tests write by hand."""


def call(kind, inputs, outputs, **attributes):
    """Return an operator; values are named in one text each, with spaces between them."""
    import onnx  # an extra of opnorm's

    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), **attributes)
