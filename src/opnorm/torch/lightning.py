"""Lightning's callback that logs the norms of a module's kernels."""

from importlib.util import find_spec
from typing import Any

from opnorm.checks import to_count
from opnorm.torch.monitoring import monitor

if find_spec("lightning"):
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback


class SpectralMonitor(Callback):
    """Logs what `opnorm.torch.monitor` says of the module, every so many optimizer steps.

    Args:
        every: Steps between two measurements.
        **options: Those of `opnorm.torch.monitor`.

    Example:
        >>> trainer = lightning.Trainer(callbacks=[opnorm.torch.lightning.SpectralMonitor(every=100)])
    """

    def __init__(self, every: int = 100, **options: Any) -> None:
        super().__init__()
        self.every = to_count("every", every, 1)
        self.options = options
        self._last = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Measure and log, once for each step that is due."""
        step = trainer.global_step
        if step // self.every > self._last // self.every:
            norms = monitor(pl_module, **self.options)
            pl_module.log_dict({name: float(norm) for name, norm in norms.items()})
        self._last = step
