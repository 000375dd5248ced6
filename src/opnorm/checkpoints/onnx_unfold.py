"""An ONNX model as one list of operators on values: functions are written out, the graphs of control flow entered."""

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from opnorm.checkpoints.files import DEPTH, require
from opnorm.checkpoints.onnx_bodies import LISTS, Body, Definitions, FunctionKey, Held, Names, Parameter, Step
from opnorm.checkpoints.onnx_tensors import listed
from opnorm.checkpoints.records import CheckpointError

_OPERATORS = 100_000  # of the functions written out and the graphs entered; large language models have 20,000
_LABEL = 200  # characters of a name made of those of calls: the last ones tell most

_NOWHERE = "\0"  # begins the name of a value that nothing gives

Scope = MutableMapping[str, str]  # by what a body calls them: values


class Op(NamedTuple):
    """One operator; a value has one name in the whole model, a tensor's own if it is one."""

    name: str
    kind: str  # the operator, with its domain unless that is ONNX's own
    inputs: tuple[str, ...]  # "" where one is left out
    outputs: tuple[str, ...]
    options: Mapping[str, Any]
    outermost: bool  # no graph of control flow holds it
    plain: bool = True  # it holds no graph of control flow


class Unfolded:
    """The operators of a model, in an order in which each comes after its inputs.

    Raises:
        CheckpointError: When there are too many, or they are joined in a circle.
    """

    def __init__(self, definitions: Definitions):
        self.definitions = definitions
        self.ops: list[Op] = []
        self.called: set[FunctionKey] = set()
        self.links: dict[str, list[str]] = {}  # what values around and in graphs of control flow may come from
        self.count = 0
        self.values = Names()
        body = definitions.main
        for tensor in definitions.tensors:
            self.values.fresh(tensor)
        # Values of the outermost graph keep their names, by which the file tells their shapes.
        scope = {**{name: self.values.fresh(name) for name in body.inputs}, **body.constants}
        self.inputs = tuple(scope[name] for name in body.inputs)
        self.enter(body, scope, {}, {}, "", True, 0)
        self.own = frozenset(scope.values())  # the values of the outermost graph
        self.outputs = tuple(scope[name] for name in body.outputs if name in scope)
        self.ops = _in_order(self.ops)

    def enter(
        self,
        body: Body,
        scope: Scope,
        results: Mapping[str, str],
        parameters: Mapping[str, Any],
        prefix: str,
        outermost: bool,
        depth: int,
    ) -> None:
        """Add a body's operators; `scope` learns its values, `results` are those whose names are given from outside."""
        require(depth < DEPTH, "its functions or graphs are nested too deeply")
        for step in body.steps:
            for name in filter(None, step.outputs):
                scope[name] = results.get(name) or self.values.fresh(name)
        for step in body.steps:
            self.count += 1
            require(self.count <= _OPERATORS, f"written out it has more than {_OPERATORS} operators")
            self.step(step, scope, parameters, prefix, outermost, depth)

    def step(
        self, step: Step, scope: Scope, parameters: Mapping[str, Any], prefix: str, outermost: bool, depth: int
    ) -> None:
        """Add one operator, or those of the function that it calls, and those of the graphs that it holds."""
        options = dict(_resolved(step.options, parameters))
        label = f"{prefix}{step.name}"[-_LABEL:]
        inputs = tuple(scope.get(name, _NOWHERE + name) if name else "" for name in step.inputs)
        outputs = tuple(scope[name] if name else "" for name in step.outputs)
        hub = f"{_NOWHERE}{self.count}"  # through which a graph's values come and go
        if step.bodies:
            self.links[hub] = [value for value in inputs if value and step.kind != "If"]
            self.links.update((value, [hub]) for value in outputs if value)
        for inner in step.bodies:
            self.inner(inner, scope, parameters, step, label, depth, hub)
        body = self.definitions.functions.get(step.function)
        if body is not None and len(inputs) <= len(body.inputs) and len(outputs) <= len(body.outputs):
            self.called.add(step.function)
            self.call(body, inputs, outputs, {**body.defaults, **options}, (label, outermost, depth))
            return
        if step.kind == "Constant" and outputs and self.is_constant(outputs[0], options):
            return
        held = [name for value in options.values() if isinstance(value, Held) for name in value.names]
        options = {name: value for name, value in options.items() if not isinstance(value, Held)}
        if held and step.kind == "ConstantOfShape":
            inputs, held = (*inputs[:1], held[0]), held[1:]
        if held:
            self.ops.append(Op(label, f"attribute of {step.kind}", tuple(held), (), {}, False))
        self.ops.append(Op(label, step.kind, inputs, outputs, options, outermost, not step.bodies))

    def inner(
        self, body: Body, scope: Scope, parameters: Mapping[str, Any], step: Step, label: str, depth: int, hub: str
    ) -> None:
        """Add a graph of control flow, which sees the values around it; what it hands out goes into the operator."""
        around = scope if isinstance(scope, ChainMap) else ChainMap(scope)
        own = around.new_child({name: self.values.fresh(name) for name in body.inputs} | dict(body.constants))
        self.enter(body, own, {}, parameters, f"{label}.", False, depth + 1)
        handed = tuple(own.get(name, "") for name in body.outputs)
        self.links[hub] += filter(None, handed)
        self.links.update((own[name], [hub]) for name in body.inputs)
        self.ops.append(Op(label, step.kind, handed, (), {}, False, False))

    def call(
        self,
        body: Body,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        parameters: Mapping[str, Any],
        place: tuple[str, bool, int],
    ) -> None:
        """Add a function's operators with the call's values."""
        label, outermost, depth = place
        given = dict(zip(body.inputs, inputs, strict=False))
        made = {name for step in body.steps for name in step.outputs}
        results = {n: value for n, value in zip(body.outputs, outputs, strict=False) if value and n in made}
        scope: Scope = {**{name: given.get(name, "") for name in body.inputs}, **body.constants}
        self.enter(body, scope, results, parameters, f"{label}/", outermost, depth + 1)
        for name, value in zip(body.outputs, outputs, strict=False):
            if value and results.get(name) != value:
                self.ops.append(Op(label, "Identity", (scope.get(name, ""),), (value,), {}, outermost))

    def is_constant(self, value: str, options: Mapping[str, Any]) -> bool:
        """Return whether a function's call gives a constant its numbers: then they, or their tensor, are the value."""
        for key, found in options.items():
            if isinstance(found, Held):
                self.ops.append(Op(value, "Identity", found.names[:1], (value,), {}, False))
                return True
            if key in LISTS:
                self.definitions.tensors[value] = listed(value, found, LISTS[key])
                return True
        return False


def _resolved(options: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield a step's attributes with those that its function's call gives."""
    for name, value in options.items():
        if not isinstance(value, Parameter):
            yield name, value
        elif value.name in parameters:
            yield name, parameters[value.name]


def _in_order(ops: list[Op]) -> list[Op]:
    makers = {value: i for i, op in enumerate(ops) for value in op.outputs if value}
    links = {i: [makers[value] for value in op.inputs if value in makers] for i, op in enumerate(ops)}
    try:
        return [ops[i] for i in TopologicalSorter(links).static_order()]
    except CycleError as error:
        names = [ops[i].name for i in error.args[1][:3]]
        raise CheckpointError(f"its operators are joined in a circle: {names}") from error
