"""Record, while a model trains, each layer's true norm and the time of each step without the time of recording."""

from collections.abc import Callable, Sequence
from time import perf_counter

import keras
import numpy as np
from numpy.typing import NDArray


def applied_matrix(layer: keras.layers.Layer) -> NDArray[np.float64]:
    """Return the matrix `(inputs, outputs)` that `layer` applies in `predict`, read off row by row from its answers.

    So it is what the layer does, whatever a wrapper stores or recomputes; exact to one float32 rounding of the bias.
    """
    size = layer.input.shape[-1]
    probes = np.vstack([np.zeros((1, size)), np.eye(size)]).astype("float32")
    answers = keras.ops.convert_to_numpy(layer(probes, training=False)).astype(np.float64)
    return np.asarray(answers[1:] - answers[0])


def singular_values(layers: Sequence[keras.layers.Layer]) -> list[NDArray[np.float64]]:
    """Return the singular values, in float64 and descending, of what each of `layers` applies in `predict`."""
    return [np.asarray(np.linalg.svd(applied_matrix(layer), compute_uv=False), np.float64) for layer in layers]


class Recorder(keras.callbacks.Callback):
    """Keep the norms before training, after its first step, every `every` steps and at the end; time every step.

    Args:
        layers: Layers with one matrix each.
        every: Steps from one record to the next.
        on_step: Called after each step.

    Attributes:
        steps: The steps after which norms were recorded.
        norms: For each of `steps`, the spectral norm of each layer.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer], every: int, on_step: Callable[[], None]) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.norms: list[list[float]] = []
        self._layers = layers
        self._every = every
        self._on_step = on_step
        self._seconds: list[float] = []
        self._started = 0.0

    @property
    def milliseconds(self) -> float:
        """The mean duration of a step in the second half: the first of each batch size compile."""
        return 1e3 * float(np.mean(self._seconds[len(self._seconds) // 2 :]))

    def on_train_begin(self, logs: object = None) -> None:
        """Record step 0."""
        self._record()

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        """Start the clock."""
        self._started = perf_counter()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Stop the clock; Keras has waited for the step's loss, which is in `logs`."""
        self._seconds.append(perf_counter() - self._started)
        if len(self._seconds) == 1 or len(self._seconds) % self._every == 0:
            self._record()
        self._on_step()

    def on_train_end(self, logs: object = None) -> None:
        """Record the last step, if its turn had not come."""
        if self.steps[-1] != len(self._seconds):
            self._record()

    def _record(self) -> None:
        # On JAX the weights live outside the variables during an epoch; asking a callback for its model puts them back.
        _ = self.model
        self.steps.append(len(self._seconds))
        self.norms.append([float(values[0]) for values in singular_values(self._layers)])
