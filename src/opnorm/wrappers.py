"""The layer wrapper: kernels are normalized inside the forward pass, with the gradient through sigma."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import keras
from keras import ops

from opnorm.compiled import compiled_once
from opnorm.constraints import SpectralNorm
from opnorm.geometry import KernelGeometry, kernels, sublayers
from opnorm.iterations import TINY, Tensor


class _Kernel(NamedTuple):
    """One kernel of the wrapped layer."""

    layer: keras.layers.Layer
    name: str  # the layer's attribute
    norm: SpectralNorm  # how its norm is found
    vectors: keras.Variable


@keras.saving.register_keras_serializable("opnorm")
class SpectralNormalization(keras.layers.Wrapper):
    """Calls `layer` with kernels of spectral norm `value`: W <- value * W / sigma(W), differentiated through sigma.

    A drop-in for `keras.layers.SpectralNormalization`. The stored kernels are never written: the normalized ones stand
    in for them during the call, in training and in inference alike, on every backend. Each kernel is normalized as the
    matrix that its layer applies: `Dense`, `EinsumDense`, `Embedding`, convolutions (transposed, depthwise, grouped,
    separable), recurrent layers, attention, and layers inside `layer`. A zero kernel stays zero.

    Sigma is an estimate from below, computed in float32: vectors `u` take `power_iterations` steps in each call, and
    more while sigma still moves. A call with `training=True` of a layer that is not frozen keeps them.

    Args:
        layer: The `keras.layers.Layer` to wrap, with at least one kernel.
        power_iterations: Iterations in each call, at least 1.
        value: The norm of the kernels, positive.
        cap: Scale down only, W / max(1, sigma / value), as `MaxSpectralNorm` does.
        operator: `"matrix"`, or `"convolution"` for the sliding operator of convolutions; see `SpectralNorm`.
        warmup_iterations: See `SpectralNorm`; so are `tolerance`, `perturbation`, `companion` and `seed`.
        **kwargs: `name`, `trainable`, `activity_regularizer`. Of `dtype` the wrapped layer's own policy counts; it is
            accepted since Keras's wrapper accepts it, and has no effect.

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
        warmup_iterations: int = 100,
        tolerance: float = 1e-4,
        perturbation: float = 1e-3,
        companion: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # No autocasting: `call` has to see the kernels as they are stored. The wrapped layer casts by its own policy.
        super().__init__(layer, autocast=False, **(kwargs | {"dtype": "float32"}))
        self.cap = bool(cap)
        self._norm = SpectralNorm(
            value,
            operator=operator,
            power_iterations=power_iterations,
            warmup_iterations=warmup_iterations,
            tolerance=tolerance,
            perturbation=perturbation,
            companion=companion,
            seed=seed,
        )
        self._kernels: tuple[_Kernel, ...] = ()
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        """Build the wrapped layer, and one set of vectors for each of its kernels."""
        super().build(input_shape)
        found = [(layer, geometry) for layer in sublayers(self.layer) for geometry in kernels(layer)]
        if not found:
            raise ValueError(
                "Argument `layer` must have a kernel that `opnorm.kernels` knows; `opnorm.kernels.register` teaches it "
                f"layers of your own. Received: layer={self.layer!r}"
            )
        self._kernels = tuple(self._prepared(*place, index) for index, place in enumerate(found))

    def call(self, inputs: Any, *args: Any, training: bool = False, **kwargs: Any) -> Any:
        """Return `layer(inputs)`, called with its normalized kernels."""
        with self.normalized(keep=training and self.trainable) as scope:
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
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
        names = signature(type(self)).parameters.keys() - {"layer", "kwargs"}
        own = {name: getattr(self._norm, name) for name in names if name != "cap"}
        base = {name: entry for name, entry in super().get_config().items() if name != "dtype"}
        return base | own | {"cap": self.cap}

    def load_own_variables(self, store: Any) -> None:
        """Load the vectors if they are there; others, such as those of Keras's wrapper, are found by the next call."""
        shapes = [tuple(kernel.vectors.shape) for kernel in self._kernels]
        if [tuple(store[key].shape) for key in store] == shapes:
            super().load_own_variables(store)

    def _prepared(self, layer: keras.layers.Layer, geometry: KernelGeometry, index: int) -> _Kernel:
        norm = SpectralNorm.from_config(self._norm.get_config() | geometry.options(self._norm.operator))
        start = norm.initial_state(getattr(layer, geometry.name), index)
        vectors = self.add_weight(
            shape=start.shape,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(start, dtype=dtype),
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",  # replicas of a kernel are equal, so are their vectors
            name="_".join(["vectors", *([layer.name] if layer is not self.layer else []), geometry.name]),
        )
        return _Kernel(layer, geometry.name, norm, vectors)

    def _factors(self, keep: bool) -> dict[int, Tensor]:
        factors = {}
        for kernel in self._kernels:
            weight = _effective(kernel)
            factor, vectors = _factor(kernel.norm, self.cap, weight, ops.convert_to_tensor(kernel.vectors))
            factors |= {id(variable): factor for variable in _parts(kernel)}
            if keep:
                kernel.vectors.assign(vectors)
        return factors


@compiled_once(static_argnums=(0, 1))
def _factor(norm: SpectralNorm, cap: bool, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    # In units of sigma itself, so that neither a kernel of 1e-30 nor one of 1e+30 leaves the range in the gradient.
    sigma, vectors = norm.differentiable(ops.cast(kernel, "float32"), vectors)
    unit = ops.stop_gradient(sigma)
    acts = unit > (norm.value if cap else norm.value * TINY)
    unit = ops.where(acts, unit, 1.0)
    factor = ops.where(acts, norm.value / unit, 1.0) / ops.where(acts, sigma / unit, 1.0)
    return factor, vectors


def _scaled(value: Tensor, factor: Tensor | None) -> Tensor:
    if factor is None:
        return value
    return ops.cast(value * ops.cast(factor, value.dtype), value.dtype)


def _effective(kernel: _Kernel) -> Tensor:
    weight = getattr(kernel.layer, kernel.name)
    return weight.value if isinstance(weight, keras.Variable) else weight


def _parts(kernel: _Kernel) -> list[keras.Variable]:
    """Return the variables whose scaling scales the effective kernel."""
    weight = getattr(kernel.layer, kernel.name)
    if isinstance(weight, keras.Variable):
        return [weight]
    return [v for v in kernel.layer.weights if v.name in (kernel.name, f"lora_{kernel.name}_a")]
