"""The layer wrapper: kernels are normalized inside the forward pass, with the gradient through sigma."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import keras
from keras import ops
from scipy.sparse.linalg import LinearOperator

from opnorm.backends import Tensor
from opnorm.checks import require, to_count, to_flag, to_fraction, to_operator, to_positive
from opnorm.keras.base import is_empty, real_tensor
from opnorm.keras.geometry import KernelGeometry, kernels
from opnorm.keras.sites import normalizes_its_kernel, unlike, walk
from opnorm.operators.linear import linear_operator, linear_operators
from opnorm.rules import Normalizer
from opnorm.showing import written


class _Kernel(NamedTuple):
    """One kernel of the wrapped layer."""

    layer: keras.layers.Layer
    name: str  # the layer's attribute
    normalizer: Normalizer
    vectors: keras.Variable


@keras.saving.register_keras_serializable("opnorm")
class SpectralNormalization(keras.layers.Wrapper):
    """Calls `layer` with kernels of spectral norm `value`: W <- value * W / sigma(W), differentiated through sigma.

    A drop-in for `keras.layers.SpectralNormalization`. The stored kernels are never written: the normalized ones stand
    in for them during the call, in training and in inference alike, on every backend. Each kernel is normalized as the
    matrix that its layer applies: `Dense`, `EinsumDense`, `Embedding`, convolutions (transposed, depthwise, grouped,
    separable), recurrent layers, attention, and layers inside `layer`. A zero kernel stays zero.

    Sigma is an estimate from below, computed in float32 by subspace iteration: `vectors` leading singular vectors take
    `power_iterations` steps in each call, and more while sigma still moves. Calls with `training=True` of a layer that
    is not frozen keep them; no other call writes anything.

    Args:
        layer: The `keras.layers.Layer` to wrap, with at least one kernel.
        power_iterations: Iterations in each call, at least 1.
        value: The norm of the kernels, positive.
        cap: Scale down only, W / max(1, sigma / value), as `MaxSpectralNorm` does.
        operator: `"matrix"`, or `"convolution"` for the sliding operator of convolutions; see `SpectralNorm`.
        vectors: How many singular vectors are followed, at most; where a kernel is divided by its norm, the largest
            singular values crowd, and overtake each other in every step. A convolution has one for each frequency.
        warmup_iterations: At most so many more iterations in a call where sigma still moves. 0 switches them off.
        tolerance: Sigma still moves while half an iteration raises it by more than this, relative.
        perturbation: Relative size of fixed random vectors mixed into those followed; see `SpectralNorm`.
        seed: Seeds the first vectors. By default it follows `keras.utils.set_random_seed`.
        **kwargs: `name`, `trainable`, `activity_regularizer`. The wrapped layer's dtype policy counts: `dtype` is
            accepted because Keras's wrapper does, and has no effect.

    Example:
        >>> layer = opnorm.SpectralNormalization(keras.layers.Dense(10))

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        power_iterations: int = 1,
        *,
        value: float = 1.0,
        cap: bool = False,
        operator: str = "matrix",
        vectors: int = 8,
        warmup_iterations: int = 100,
        tolerance: float = 3e-4,
        perturbation: float = 1e-3,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        require(isinstance(layer, keras.layers.Layer), "layer", "must be a Keras layer", layer)
        # No autocasting: `call` has to see the kernels as they are stored. The wrapped layer casts by its own policy.
        # No rematerialization, which takes `training` for a tensor: the wrapped layer has it if made in a `RematScope`.
        with keras.RematScope(mode=None):
            super().__init__(layer, autocast=False, **(kwargs | {"dtype": "float32"}))
        require(
            isinstance(layer, keras.layers.RNN) or not hasattr(layer, "state_size"),
            "layer",
            "must be a recurrent layer, not its cell, which would be normalized anew at each time step: "
            "`SpectralNormalization(keras.layers.RNN(cell))`",
            layer,
        )
        self.power_iterations = to_count("power_iterations", power_iterations, 1)
        self.value = to_positive("value", value)
        self.cap = to_flag("cap", cap)
        self.operator = to_operator(operator, -1)
        self.vectors = to_count("vectors", vectors, 1)
        self.warmup_iterations = to_count("warmup_iterations", warmup_iterations, 0)
        self.tolerance = to_positive("tolerance", tolerance)
        self.perturbation = to_fraction("perturbation", perturbation)
        self.seed = seed if seed is None else to_count("seed", seed, 0)
        self.supports_masking = layer.supports_masking
        self._start = random.randrange(2**31) if self.seed is None else self.seed  # follows keras.utils.set_random_seed
        self._kernels: tuple[_Kernel, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the wrapped layer's outputs for its own arguments."""
        if not self.layer.built and len(signature(self.layer.build).parameters) > 1:
            _build_for(self.layer, args, kwargs)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Build the wrapped layer, and one set of vectors for each of its kernels."""
        super().build(input_shape)
        _refuse_rematerialized(self.layer)
        found = [(part, geometry) for part in inside(self.layer) for geometry in kernels(part)]
        if not found:
            raise ValueError(
                "Argument `layer` must have a kernel that `opnorm.kernels` knows; `opnorm.kernels.register` teaches it "
                f"layers of your own. Received: layer={self.layer!r}"
            )
        found = [(part, geometry) for part, geometry in found if not is_empty(getattr(part, geometry.name))]
        # `.h5` files and PyTorch find variables by name, and layers inside of others may have one name.
        names = unlike([f"{part.name}_{geometry.name}_vectors" for part, geometry in found])
        self._kernels = tuple(self._prepared(*place, index, names[index]) for index, place in enumerate(found))

    def call(self, inputs: Any, *args: Any, training: bool = False, **kwargs: Any) -> Any:
        """Return `layer(inputs)`, called with its normalized kernels."""
        with self.normalized(keep=training and self.trainable) as scope:
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(ops.copy(loss))  # Keras counts losses by identity: the wrapped layer has seen this one
        return outputs

    @contextmanager
    def normalized(self, keep: bool = False) -> Iterator[keras.StatelessScope]:
        """Let the wrapped layer's kernels have their normalized values inside the `with` block.

        What the block assigns to other variables of the layer is assigned to them at its end.

        Args:
            keep: Whether the vectors of the search are kept for the next one.
        """
        factors = self._factors(keep)
        values = [(v, _scaled(v.value, factors.get(id(v)))) for v in self.layer.variables]
        with keras.StatelessScope(values, collect_losses=True, initialize_variables=False) as scope:
            before = [scope.get_current_value(v) for v, _ in values]
            yield scope
        for (variable, _), value in zip(values, before, strict=True):
            if scope.get_current_value(variable) is not value:
                variable.assign(scope.get_current_value(variable))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the wrapped layer's output shape."""
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, *args: Any, training: bool = False, **kwargs: Any) -> Any:
        """Return the wrapped layer's symbolic outputs."""
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Return the wrapped layer's mask."""
        return self.layer.compute_mask(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor; JSON-serializable."""
        names = (*self._settings(), "seed")
        base = {name: entry for name, entry in super().get_config().items() if name != "dtype"}
        return base | {name: getattr(self, name) for name in names}

    def load_own_variables(self, store: Any) -> None:
        """Load the vectors if they are there; others, such as those of Keras's wrapper, are found by the next call."""
        shapes = [tuple(kernel.vectors.shape) for kernel in self._kernels]
        if [tuple(store[key].shape) for key in store.keys()] == shapes:  # noqa: SIM118 - not a dict
            super().load_own_variables(store)

    def __repr__(self) -> str:
        # Keras's own form says nothing of the arguments; the name tells which layer of a model an error speaks of.
        return written(self, name=self.name, **({} if self.trainable else {"trainable": False}))

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Normalizer._fields if hasattr(self, name)}

    def _prepared(self, layer: keras.layers.Layer, geometry: KernelGeometry, index: int, name: str) -> _Kernel:
        normalizer = Normalizer(**(self._settings() | geometry.options(self.operator)))
        start = normalizer.start(tuple(getattr(layer, geometry.name).shape), (self._start, index))
        with _whole_on_every_device():
            vectors = self.add_weight(
                shape=start.shape,
                initializer=lambda shape, dtype=None: ops.convert_to_tensor(start, dtype=dtype),
                trainable=False,
                dtype="float32",
                aggregation="only_first_replica",  # replicas of a kernel are equal, so are their vectors
                name=name,
            )
        return _Kernel(layer, geometry.name, normalizer, vectors)

    def _factors(self, keep: bool) -> dict[int, Tensor]:
        factors: dict[int, Tensor] = {}
        for kernel in self._kernels:
            factor, vectors = kernel.normalizer.factor(ops.convert_to_tensor(_effective(kernel)), kernel.vectors.value)
            factors |= {id(variable): factor for variable in _parts(kernel)}
            if keep:
                kernel.vectors.assign(vectors)
        return factors


@normalizes_its_kernel.register
def _(layer: SpectralNormalization) -> bool:
    return True


@linear_operator.register
def _(layer: SpectralNormalization) -> LinearOperator:
    with layer.normalized():
        return linear_operator(layer.layer)


@linear_operators.register
def _(layer: SpectralNormalization, *, gates: bool = False) -> dict[str, LinearOperator]:
    with layer.normalized():
        return linear_operators(layer.layer, gates=gates)


def _build_for(layer: keras.layers.Layer, args: Any, kwargs: Any) -> None:
    """Build a layer of several inputs, such as attention; Keras passes a wrapper the first one's shape alone."""
    inputs = signature(layer.call).bind_partial(*args, **kwargs).arguments
    shapes = {f"{name}_shape": x.shape for name, x in inputs.items() if x is not None and hasattr(x, "shape")}
    layer.build(**{name: shapes[name] for name in signature(layer.build).parameters if name in shapes})


@contextmanager
def _whole_on_every_device() -> Iterator[None]:
    # A `ModelParallel` layout map may take vectors for the kernel, whose name theirs contains; `add_weight` has no
    # argument for a layout, but an empty map splits nothing.
    distribution = keras.distribution.distribution()
    if not isinstance(distribution, keras.distribution.ModelParallel):
        yield
        return
    empty = keras.distribution.LayoutMap(distribution.device_mesh)
    with keras.distribution.ModelParallel(layout_map=empty).scope():
        yield


def inside(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield `layer` and every layer inside, those inside of `SpectralNormalization` too."""
    for _, part, _ in walk(layer):
        yield part
        if isinstance(part, SpectralNormalization):
            yield from inside(part.layer)


def _scaled(value: Tensor, factor: Tensor | None) -> Tensor:
    if factor is None:
        return value
    return ops.cast(ops.multiply(value, factor), value.dtype)  # `*` rounds before it multiplies, or raises an error


def _effective(kernel: _Kernel) -> Tensor:
    _refuse_quantized(kernel)
    weight = getattr(kernel.layer, kernel.name)
    return real_tensor(weight)


def _refuse_quantized(kernel: _Kernel) -> None:
    if getattr(kernel.layer, "quantization_mode", None) is not None:
        raise ValueError(
            "A quantized layer cannot be normalized: its integers are not the kernel that it applies. Quantize what "
            f"`opnorm.bake(model)` returns. Received: {kernel.layer!r} with quantization_mode="
            f"{kernel.layer.quantization_mode!r}"
        )


def _refuse_rematerialized(layer: keras.layers.Layer) -> None:
    # TensorFlow's recomputation has no gradient for tensors that a function closes over, as a normalized kernel is; and
    # there is no public way to ask for a layer's mode.
    for part in inside(layer) if keras.config.backend() == "tensorflow" else ():
        if getattr(getattr(part, "_remat_mode", None), "mode", None) is not None:
            raise ValueError(
                "Argument `layer` must not be made in a `keras.RematScope` on TensorFlow: its kernel would have no "
                f"gradient. Received: layer={part!r}"
            )


def _parts(kernel: _Kernel) -> list[keras.Variable]:
    """Return the variables whose scaling scales the effective kernel."""
    weight = getattr(kernel.layer, kernel.name)
    if isinstance(weight, keras.Variable):
        return [weight]
    return [v for v in kernel.layer.weights if v.name in (kernel.name, f"lora_{kernel.name}_a")]
