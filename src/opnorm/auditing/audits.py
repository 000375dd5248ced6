"""The audit of a checkpoint: every tensor gets a row, with a bracket of its norm or the reason why there is none."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from os import PathLike, fspath
from typing import Any, NamedTuple

from opnorm.auditing.cluster import Measured, Measurer, measurer_on
from opnorm.auditing.measure import measure, reason_of
from opnorm.auditing.network_report import report_network
from opnorm.auditing.report import Report
from opnorm.auditing.sandbox import Progress, audit_in_child
from opnorm.auditing.settings import Globs, Options, Settings, check_running
from opnorm.auditing.spectra import sampled
from opnorm.bounds.parallel import parallel
from opnorm.bounds.threads import one_blas_thread
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Checkpoint, Node, Weight
from opnorm.checkpoints.remote import shown
from opnorm.checkpoints.tables import read_table
from opnorm.checks import abridged, is_torch_module, require
from opnorm.networks.effects import Unbounded


class _Count(NamedTuple):
    """How far an audit is, in tensors and nodes of the network."""

    progress: Progress | None
    all_tensors: int
    all_nodes: int

    def tensors(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.all_tensors + self.all_nodes)

    def nodes(self, done: int, count: int) -> None:
        """Say that `done` of `count` nodes are done, as so many of those that the file has: some were joined."""
        self.tensors(self.all_tensors + done * self.all_nodes // count)


def audit(
    model_or_path: Any,
    *,
    include: Globs = None,
    exclude: Globs = None,
    tolerance: float | None = None,
    jobs: int = 1,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    spectra: bool = False,
    network: bool = True,
    sandbox: bool = False,
    progress: Progress | None = None,
    cluster: str | None = None,
) -> Report:
    """Return the report on a checkpoint or a model: for every tensor a certified bracket, or why there is none.

    Nothing in a file is executed, and no deep-learning framework is imported for one.

    Args:
        model_or_path: A checkpoint's path, a built Keras model, a PyTorch module, or a state dict: tensors by name.
        include: Glob patterns of tensor names; with any, only tensors that match one are measured.
        exclude: Glob patterns of tensor names to leave out.
        tolerance: Aim for `upper / lower - 1`: 1e-6 for matrices and 1e-2 for convolutions unless given.
        jobs: Tensors measured at the same time, each with its share of the processors; memory grows with it.
        time_limit: Seconds for each tensor, and each other reading of it, after which its bracket is what is known by
            then, wider and as true. A step that has begun is finished, so a large tensor may take longer.
        memory_limit: Bytes that all jobs together may take for their tensors; a tensor that needs more gets the reason,
            or the wider bracket that fits. By default most of what the machine has free.
        spectra: Also compute singular values, for the plot of `Report.to_html`.
        network: Bound the whole network, where the file tells how its layers are joined.
        sandbox: Open and measure a file in a process of its own, with limits of memory and time for its reader: a
            library that crashes or hangs on a hostile file is a CheckpointError then.
        progress: Called with the number of tensors and nodes of the network done and of all, after each.
        cluster: Have the tensors measured by the workers of a `dask.distributed` scheduler at this address, which all
            open the same path; "local": by a process for each processor of this machine. The network is bounded here,
            and `memory_limit` is that of one tensor.

    Raises:
        CheckpointError: When the file cannot be read as what it claims to be.
        ValueError: When an argument does not make sense.
        ConnectionError: When `cluster` does not answer, or its workers cannot do this.

    Example:
        >>> np.savez("critic.npz", **{"dense/kernel": np.eye(3)})
        >>> round(opnorm.audit("critic.npz").rows[0].lower, 9)
        1.0
    """
    options = Options(include, exclude, tolerance, time_limit, memory_limit, jobs, spectra, network)
    options.checked()
    check_running(sandbox, progress, cluster)
    if sandbox:
        return audit_in_child(path_of("sandbox", model_or_path), options._asdict(), progress)
    if cluster is None:
        return report_on(*opened(model_or_path), options, progress)
    path = path_of("cluster", model_or_path)
    file, checkpoint = opened(path)
    with measurer_on(cluster, path, checkpoint, options.memory_limit) as measurer:
        return report_on(file, checkpoint, options, progress, measurer)


def report_on(
    file: str,
    checkpoint: Checkpoint,
    options: Options,
    progress: Progress | None = None,
    measurer: Measurer | None = None,
) -> Report:
    """Return the report on an opened checkpoint, called `file`, its tensors measured by `measurer` or by threads."""
    chosen = [weight for weight in checkpoint.weights if options.chooses(weight.name)]
    left_out = len(checkpoint.weights) - len(chosen)
    notes = (f"{left_out} tensors were left out by include and exclude",) if left_out else ()
    notes = notes if checkpoint.weights else ("the file holds no tensors",)
    jobs, settings = options.jobs, options.checked()
    with one_blas_thread(jobs) if jobs > 1 else nullcontext():
        graph = checkpoint.graph if options.network else None
        count = _Count(progress, len(chosen), len(graph.nodes) if graph else 0)
        measured = (measurer or partial(_in_threads, jobs))(chosen, settings, count.tensors)
        rows = tuple(row for row, _ in measured)
        pairs = zip(chosen, rows, strict=True)
        whole = report_network(graph, pairs, settings, partial(_bounded, jobs, count)) if graph else None
    return Report(
        file,
        checkpoint.format,
        rows,
        (*checkpoint.notes, *notes),
        network=whole,
        spectra={row.name: sampled(values) for row, values in measured if len(values)},
    )


def opened(model_or_path: Any, argument: str = "model_or_path") -> tuple[str, Checkpoint]:
    """Return what to call a checkpoint in a report, and the checkpoint; errors name the argument that it was."""
    if isinstance(model_or_path, str | PathLike):
        require(bool(fspath(model_or_path)), argument, "must be the path of a file, not empty", model_or_path)
        path = fspath(model_or_path)
        return shown(path), open_checkpoint(path)
    if isinstance(model_or_path, Mapping):
        return "state_dict", read_table(model_or_path)
    if is_torch_module(model_or_path):
        # By name: only a module that exists has imported PyTorch.
        return type(model_or_path).__name__, import_module("opnorm.torch.live").read_module(model_or_path)
    if not hasattr(model_or_path, "built"):
        must = "must be a path, a Keras model, a PyTorch module or a state dict; of a JAX model its arrays by name"
        raise TypeError(f"Argument `{argument}` {must}. Received: {abridged(model_or_path)}")
    from opnorm.keras.live import read_model  # only a model that exists has imported Keras

    return str(model_or_path.name), read_model(model_or_path)


def path_of(argument: str, model_or_path: Any) -> str:
    """Return the path of a file for another process, which no model reaches; `argument` asked for that."""
    if not isinstance(model_or_path, str | PathLike):
        raise TypeError(f"Argument `{argument}` needs the path of a file. Received: {model_or_path!r}")
    return str(fspath(model_or_path))


def _in_threads(
    jobs: int, weights: Sequence[Weight], settings: Settings, done: Callable[[int], object]
) -> list[Measured]:
    return parallel(lambda weight: measure(weight, settings), weights, jobs, done)


def _bounded(jobs: int, count: _Count, function: Callable[[Node], Any], nodes: Sequence[Node]) -> list[Any]:
    """Return `function` of each node; what one of them raises is why it is unbounded."""

    def guarded(node: Node) -> Any:
        try:
            return function(node)
        except Exception as error:  # settings and weights come from files
            return Unbounded(reason_of(error))

    return parallel(guarded, nodes, jobs, lambda done: count.nodes(done, len(nodes)))
