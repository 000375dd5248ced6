"""The Keras callback that watches every kernel's spectral norm during training."""

import warnings
from math import isnan, nan
from threading import get_ident
from typing import Any

import keras

from opnorm.checks import require, to_count, to_operator
from opnorm.keras.attention import Logits, attentions
from opnorm.keras.sites import PassedOver
from opnorm.keras.watch import Watched, estimates, watched
from opnorm.selection import Selection, to_selection
from opnorm.showing import html_table, table, written

_SLACK = 1e-2  # over a ball: constraints hold 1e-3, the rounding of a half-precision kernel and a spike may add some
_FEW = 8  # kernels that a progress line and a table of logs have room for, one by one
_HEADER = "kernel", "first", "last", "largest", "ball", "lower", "upper"


class SpectralMonitor(keras.callbacks.Callback):
    """Logs the largest of the kernels' norms, and how many are outside their ball, while `fit` runs.

    `spectral/largest` is an estimate from below, `spectral/outside` a count; where there are at most 8 kernels, or on
    request, `spectral/<path>` is the norm of each. `history` has all of them in any case.

    Every `every` batches and at each epoch's end, by power iteration from the last vectors. A kernel with a constraint
    of opnorm's is measured as the constraint means it; any other one as the matrix that its layer makes of it, see
    `opnorm.kernels`. Inside `opnorm.SpectralNormalization`, what the wrapper makes of the stored kernel is measured,
    and logged as `<path>/normalized`. Of attention layers the norm of W_q W_k^T, the largest over the heads, is
    logged as `spectral/<path>/query_key`, and the largest of all layers as `spectral/query_key`: a head's logits are at
    most |x| |y| times it, before they are divided by the root of its size.
    Callbacks later in the list see the values in their `logs`, and so do `History` and the progress bar: put the
    monitor before `CSVLogger`, `TensorBoard` and `ModelCheckpoint`, and behind `SwapEMAWeights`. One warning is given
    for each kernel whose norm is found outside the ball that its constraint or wrapper declares.

    Attributes:
        history: A list of `(step, {path: sigma})`, steps counted in batches over all calls of `fit`.
        passed_over: The weights that may be kernels but are not measured, `(path, shape, reason, layer)` each.

    Args:
        every: Batches between two measurements.
        operator: `"convolution"` measures the kernels of convolution layers as `opnorm.SpectralNorm` with this operator
            would; the others stay `"matrix"`. Constraints and wrappers say themselves which operator they mean.
        include: The kernels to watch, by default all: a glob pattern of paths, several, or a function, as in
            `opnorm.constrain`. A pattern that matches none is an error.
        exclude: The kernels to leave out, in the same way; it wins.
        exact_every: Epochs between two measurements of the interval that `opnorm.spectral_norm` proves, logged as
            `spectral_lower/...` and `spectral_upper/...`: after the first epoch and every so many; nan between.
        per_kernel: Whether `logs` have each kernel's norm; by default only of a model with at most 8 kernels.

    Example:
        >>> history = model.fit(x, y, callbacks=[opnorm.SpectralMonitor(every=100)])
    """

    def __init__(
        self,
        every: int = 100,
        *,
        operator: str = "matrix",
        include: Selection | None = None,
        exclude: Selection | None = None,
        exact_every: int | None = None,
        per_kernel: bool | None = None,
    ) -> None:
        super().__init__()
        self.every = to_count("every", every, 1)
        to_operator(operator, -1)
        self.operator = operator
        self.include, self.exclude = to_selection("include", include), to_selection("exclude", exclude)
        self.exact_every = exact_every if exact_every is None else to_count("exact_every", exact_every, 1)
        require(
            per_kernel is None or isinstance(per_kernel, bool), "per_kernel", "must be True, False or None", per_kernel
        )
        self.per_kernel = per_kernel
        self.history: list[tuple[int, dict[str, float]]] = []
        self.passed_over: list[PassedOver] = []
        self._kernels: list[Watched] | None = None
        self._attentions: list[Logits] = []
        self._step = self._before = self._thread = 0
        self._proved: dict[str, tuple[float, float]] = {}
        self._warned: set[str] = set()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Look for the kernels anew: the model may have changed since the last `fit`."""
        self._kernels, self._thread = None, get_ident()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember how many batches came before this epoch."""
        self._before = self._step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure once every `every` batches, also where one call stands for several of them."""
        if not self._on_time():
            return
        last, self._step = self._step, self._before + batch + 1
        if self._step // self.every > last // self.every:
            self._log_all(logs, "spectral", self._measure())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure, and prove where it is due."""
        if self._step == self._before:  # another thread reports the batches, some after the epoch's end
            self._step += self.params.get("steps") or 0
        self._log_all(logs, "spectral", self._measure())
        if self.exact_every is None:
            return
        due = epoch % self.exact_every == 0
        proved = {one.name: one.proved() if due else (nan, nan) for one in self._everything()}
        if due:
            self._proved = dict(proved)
        self._log_all(logs, "spectral_lower", {name: lower for name, (lower, _) in proved.items()})
        self._log_all(logs, "spectral_upper", {name: upper for name, (_, upper) in proved.items()})

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Warn where what is evaluated is outside its ball, as averages are that `SwapEMAWeights` puts in place."""
        self._norms()

    def plot(self) -> Any:
        """Return a plotly figure: sigma of each kernel over the steps, the balls dotted. It needs plotly."""
        from plotly.graph_objects import Figure

        figure = Figure(layout={"xaxis": {"title": "batches"}, "yaxis": {"title": "spectral norm"}})
        for kernel in self._everything():
            steps = [step for step, norms in self.history if kernel.name in norms]
            norms = [norms[kernel.name] for _, norms in self.history if kernel.name in norms]
            figure.add_scatter(x=steps, y=norms, name=kernel.name)
        for ball in sorted({kernel.ball for kernel in self._kernels or [] if kernel.ball is not None}):
            figure.add_hline(y=ball, line_dash="dot")
        return figure

    def __repr__(self) -> str:
        return written(self)

    def __str__(self) -> str:
        return table(_HEADER, self._rows())

    def _repr_html_(self) -> str:
        """Return the table that notebooks show."""
        return html_table(_HEADER, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        rows = []
        for kernel in self._everything():
            norms = [norms[kernel.name] for _, norms in self.history if kernel.name in norms]
            numbers = norms[0], norms[-1], max(norms), kernel.ball, *self._proved.get(kernel.name, (None, None))
            rows.append((kernel.name, *("" if number is None else f"{number:.5g}" for number in numbers)))
        return rows

    def _on_time(self) -> bool:
        # On JAX and PyTorch Keras dispatches to a thread of its own where `callbacks` is not a list: the variables then
        # belong to the step that is running.
        if self._thread == get_ident():
            return True
        self._warn(
            "callbacks",
            "Argument `callbacks` of `fit` should be a list: without one SpectralMonitor measures at epochs' ends.",
        )
        return False

    def _watched(self) -> list[Watched]:
        if self._kernels is None:
            self._kernels, self.passed_over = watched(self.model, self.operator, self.include, self.exclude)
            self._attentions = list(attentions(self.model, [one.variable for one in self._kernels]))
        return self._kernels

    def _everything(self) -> list[Watched | Logits]:
        return [*(self._kernels or []), *self._attentions]

    def _measure(self) -> dict[str, float]:
        norms = self._norms()
        norms |= {one.name: one.estimate() for one in self._attentions}
        if self.history and self.history[-1][0] == self._step:
            self.history.pop()  # the epoch ends on a step that was measured
        self.history.append((self._step, norms))
        return norms

    def _norms(self) -> dict[str, float]:
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()  # within an epoch the trainer, not the model, holds the variables' values
        kernels = self._watched()
        if not kernels:
            return {}
        norms = {kernel.name: float(sigma) for kernel, sigma in zip(kernels, estimates(kernels), strict=True)}
        for kernel in kernels:
            self._check(kernel, norms[kernel.name])
        return norms

    def _log_all(self, logs: dict[str, Any] | None, prefix: str, norms: dict[str, float]) -> None:
        if logs is None or not norms:
            return
        products = {one.name: norms[one.name] for one in self._attentions}
        self._log(logs, prefix, {name: norm for name, norm in norms.items() if name not in products})
        if products:
            logs[f"{prefix}/query_key"] = nan if any(map(isnan, products.values())) else max(products.values())
            self._log_each(logs, prefix, products)

    def _log(self, logs: dict[str, Any], prefix: str, norms: dict[str, float]) -> None:
        logs[f"{prefix}/largest"] = nan if any(map(isnan, norms.values())) else max(norms.values())
        if prefix == "spectral":
            logs[f"{prefix}/outside"] = sum(not _within(kernel, norms[kernel.name]) for kernel in self._watched())
        self._log_each(logs, prefix, norms)

    def _log_each(self, logs: dict[str, Any], prefix: str, norms: dict[str, float]) -> None:
        if len(norms) <= _FEW if self.per_kernel is None else self.per_kernel:
            logs.update({f"{prefix}/{name}": norm for name, norm in norms.items()})

    def _check(self, kernel: Watched, norm: float) -> None:
        if not _within(kernel, norm) and not isnan(norm):
            self._warn(
                kernel.name,
                f"The kernel '{kernel.name}' has norm {norm:.5g} after {self._step} batches, outside the ball of "
                f"radius {kernel.ball:g} that its constraint declares.",
            )

    def _warn(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(message, stacklevel=2)


def _within(kernel: Watched, norm: float) -> bool:
    """Return whether the norm is inside the ball that is declared for the kernel, if there is one; nan never is."""
    return kernel.ball is None or norm <= kernel.ball * (1 + _SLACK)
