"""What an ONNX file defines: the bodies of its graph, of the graphs inside operators and of its functions.

Every tensor of the file is found here, once, wherever it stands and whether or not anything uses it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.checkpoints.files import DEPTH, extra, require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.onnx_tensors import listed, onnx_tensor, sparse_tensor
from opnorm.checkpoints.onnx_versions import earlier, is_aligned, version_of

FunctionKey = tuple[str, str, str]  # domain, name, overload

LISTS = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
_BEFORE = "before version 7"  # the domain of operators that meant something else then
_LONG = 1000  # characters of a name made of other names: the last ones tell most


class Parameter(NamedTuple):
    """An attribute that a function leaves to its calls."""

    name: str


class Held(NamedTuple):
    """Tensors that stand in an attribute, by their names."""

    names: tuple[str, ...]


class Step(NamedTuple):
    """One operator of a body."""

    name: str
    function: FunctionKey  # the function that it would call, if the file has one of that name
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Any]  # numbers, texts and lists of them; `Parameter`; `Held`
    bodies: tuple["Body", ...]  # the graphs of control flow

    @property
    def kind(self) -> str:
        """The operator's name, with its domain unless that is ONNX's own."""
        domain, name, _ = self.function
        return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


class Body(NamedTuple):
    """A graph or a function."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, str]  # by what the body calls them: the names of tensors
    steps: tuple[Step, ...]
    defaults: Mapping[str, Any]  # of a function's parameters


class Names:
    """Names that were given, so that each is given once; in time that does not grow with how often one is asked for."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def fresh(self, name: str) -> str:
        """Return `name`, or with a number when it is taken."""
        name = name[-_LONG:] if len(name) > _LONG else name
        found = name
        while found in self.counts:
            self.counts[name] += 1
            found = f"{name}#{self.counts[name]}"
        self.counts[found] = 0
        return found


class Definitions:
    """Collects the tensors and bodies of a model."""

    def __init__(self, path: Path, model: Any):
        self.path = path
        self.tensors: dict[str, Named] = {}
        self.names = Names()
        self.own_version = self.version = version_of(model.opset_import, 1)
        self.main = self.graph(model.graph, "", 0)
        self.functions = {function_key(f, f.name): self.function(f) for f in model.functions}
        self.version = self.own_version
        require(len(self.functions) == len(model.functions), "two of its functions have one name")
        known = set(self.tensors)
        for info in model.training_info:
            self.graph(info.initialization, "initialization.", 0)
            self.graph(info.algorithm, "algorithm.", 0)
        self.training = set(self.tensors) - known  # whose values belong to the training

    def graph(self, graph: Any, prefix: str, depth: int) -> Body:
        """Return a graph's body, and keep its tensors, named after `prefix`."""
        require(depth < DEPTH, "its graphs are nested too deeply")
        _require_texts(value.name for value in (*graph.initializer, *graph.input, *graph.output))
        _require_texts(value.values.name for value in graph.sparse_initializer)
        dense = {t.name: self.keep(prefix + t.name, onnx_tensor, t) for t in graph.initializer}
        sparse = {s.values.name: self.keep(prefix + s.values.name, sparse_tensor, s) for s in graph.sparse_initializer}
        count = len(graph.initializer) + len(graph.sparse_initializer)
        require(len(dense | sparse) == count, "two of its tensors have one name")
        inputs = tuple(value.name for value in graph.input if value.name not in dense and value.name not in sparse)
        outputs = tuple(value.name for value in graph.output)
        steps, constants = self.steps(graph.node, prefix, depth)
        require(not set(constants) & {*dense, *sparse, *inputs}, "two of its tensors have one name")
        return _checked(Body(inputs, outputs, {**dense, **sparse, **constants}, steps, {}))

    def function(self, function: Any) -> Body:
        """Return a function's body, and keep its tensors, named after it."""
        _require_texts((function.name, function.domain, *function.input, *function.output))
        prefix = f"{function.name}."
        self.version = version_of(function.opset_import, self.own_version)
        steps, constants = self.steps(function.node, prefix, 0)
        defaults = {a.name: self.value(a, prefix + a.name) for a in function.attribute_proto}
        return _checked(Body(tuple(function.input), tuple(function.output), constants, steps, defaults))

    def steps(self, nodes: Any, prefix: str, depth: int) -> tuple[tuple[Step, ...], dict[str, str]]:
        """Return the operators, and the constants among them by the names of their results."""
        found: list[Step] = []
        constants: dict[str, str] = {}
        for node in nodes:
            step = self.step(node, prefix, depth)
            result = node.output[0] if node.output else ""
            if step.kind == "Constant" and result:
                require(result not in constants, f"two values of it have the name {result!r}")
                held = next((v.names for v in step.options.values() if isinstance(v, Held)), ())
                held = held or self.numbers(step, prefix + result)
                if held:
                    constants[result] = held[0]
                    continue
            found.append(step)
        return tuple(found), constants

    def numbers(self, step: Step, name: str) -> tuple[str, ...]:
        """Keep what a Constant holds in its attributes themselves."""
        for key, dtype in LISTS.items():
            if key in step.options and not isinstance(step.options[key], Parameter):
                fresh = self.names.fresh(name)
                self.tensors[fresh] = listed(fresh, step.options[key], dtype)
                return (fresh,)
        return ()

    def step(self, node: Any, prefix: str, depth: int) -> Step:
        """Return one operator, and keep the tensors in its attributes and graphs."""
        _require_texts((node.name, node.op_type, node.domain, *node.input, *node.output))
        _require_texts(text for a in node.attribute for text in (a.name, a.ref_attr_name))
        label = node.name or (node.output[0] if node.output else node.op_type)
        place = node.output[0] if node.op_type == "Constant" and node.output else ""  # what a constant is called
        options, inner = {}, []
        for a in node.attribute:
            own = f"{prefix}{label}.{a.name}"
            graphs = [*([a.g] if a.HasField("g") else []), *a.graphs]
            inner += [self.graph(graph, f"{own}."[-_LONG:], depth + 1) for graph in graphs]
            if not graphs:
                options[a.name] = self.value(a, prefix + place if place else own)
        key = function_key(node, node.op_type)
        if key[0] == "" and is_aligned(node.op_type, options, self.version):
            key = (_BEFORE, *key[1:])
        elif key[0] == "":
            options = earlier(node.op_type, options, node.output, self.version)
        return Step(label, key, tuple(node.input), tuple(node.output), options, tuple(inner))

    def value(self, attribute: Any, name: str) -> Any:
        """Return the value of an attribute; its tensors are kept under `name`."""
        if attribute.ref_attr_name:
            return Parameter(attribute.ref_attr_name)
        dense = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
        sparse = [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
        kept = [self.keep(name, onnx_tensor, one) for one in dense]
        kept += [self.keep(name, sparse_tensor, one) for one in (*sparse, *attribute.sparse_tensors)]
        if kept:
            return Held(tuple(kept))
        value = extra("onnx").helper.get_attribute_value(attribute)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def keep(self, name: str, make: Any, proto: Any) -> str:
        """Keep a tensor under a name of its own, and return that."""
        fresh = self.names.fresh(name)
        self.tensors[fresh] = make(self.path, fresh, proto)
        return fresh


def function_key(proto: Any, name: str) -> FunctionKey:
    """Return what calls and functions are matched by."""
    return "" if proto.domain == "ai.onnx" else proto.domain, name, getattr(proto, "overload", "")


def _checked(body: Body) -> Body:
    """Return the body; each of its names must stand for one value."""
    taken = [*body.inputs, *body.constants]
    for step in body.steps:
        taken += [name for name in step.outputs if name]
    if len(set(taken)) < len(taken):
        seen: set[str] = set()
        twice = next(name for name in taken if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        require(False, f"two values of it have the name {twice[:_LONG]!r}")
    return body


def _require_texts(names: Iterable[Any]) -> None:
    """Raise unless all are texts; protocol buffers give those that are not UTF-8 as bytes."""
    require(all(isinstance(name, str) for name in names), "a name in it is not UTF-8")
