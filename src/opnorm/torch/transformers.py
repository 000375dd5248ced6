"""The callback of transformers' `Trainer` that logs the norms of a model's kernels."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from opnorm.checks import require
from opnorm.torch.monitoring import monitor


class SpectralMonitor(TrainerCallback):
    """Adds what `opnorm.torch.monitor` says of the model to each of the Trainer's logs.

    It is in `trainer.state.log_history`, and in the `logs` of callbacks behind this one. Those that report to a service
    stand before it in the Trainer's list: give their function as `log`.

    Args:
        log: A function of the dictionary, such as `wandb.log`, that is called with each.
        **options: Those of `opnorm.torch.monitor`.

    Example:
        >>> trainer = transformers.Trainer(model, callbacks=[opnorm.torch.transformers.SpectralMonitor()])
    """

    def __init__(self, log: Callable[[dict[str, float]], Any] | None = None, **options: Any) -> None:
        require(log is None or callable(log), "log", "must be a function of a dictionary, or None", log)
        self.log, self.options = log, options

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any) -> None:
        """Measure, and add the norms to what is logged."""
        if not state.is_world_process_zero or model is None or logs is None or "loss" not in logs:
            return
        norms = monitor(model, **self.options)
        logs.update(norms)
        state.log_history[-1].update(norms)
        if self.log is not None:
            self.log(norms)
