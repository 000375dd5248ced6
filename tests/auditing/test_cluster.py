"""Audits by dask.distributed: the same rows as without, whatever happens to workers, and errors of one line."""

import json
import os
import signal
import sys
import threading
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
from samples import FILES
from typer.testing import CliRunner

import opnorm
from opnorm.auditing import cluster as clusters
from opnorm.checkpoints.geometry import unknown
from opnorm.checkpoints.records import CheckpointError, Weight
from opnorm.cli import main as cli

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("cluster") / "model.npz"
    tensors = {f"layer{i}/kernel": rng.standard_normal((300 + i, 200)) for i in range(24)}
    strange = {"text": np.array(["no number"]), "nan/kernel": np.full((3, 3), np.nan), "bias": np.ones(4)}
    np.savez(file, **tensors, **strange, **{"conv/kernel": rng.standard_normal((3, 3, 4, 8))})
    return str(file)


@pytest.fixture(scope="module")
def idle():
    """A scheduler with one worker, a thread of this process."""
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as found:
        yield found.scheduler_address


def alike(value, other):
    """Return whether two documents agree but for times and the last digits: BLAS rounds by where memory lies."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(alike(value[k], other[k]) for k in value.keys() - {"seconds"})
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(alike, value, other))
    return value == pytest.approx(other, rel=1e-12) if isinstance(value, float) else value == other


def assert_same(report, other):
    assert alike(report.to_dict(), other.to_dict())
    assert alike(report.spectra, other.spectra)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_report_is_the_same_though_a_worker_is_killed_midway(path, workers):
    options = {"n_workers": workers, "threads_per_worker": 1, "resources": {"memory": 2e9}, "dashboard_address": ":0"}
    killed, seen = [], []
    with distributed.LocalCluster(**options, silence_logs=50) as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]

        def progress(done, total):
            seen.append((done, total))
            if done == 3:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

        report = opnorm.audit(path, cluster=cluster.scheduler_address, progress=progress)
        assert killed
    assert_same(report, opnorm.audit(path))
    assert seen == [(done, 28) for done in range(1, 29)]


def test_workers_that_declare_no_memory_do_as_well_and_names_are_chosen(path, idle):
    options = {"include": "layer1*", "spectra": True, "time_limit": 60.0}
    assert_same(opnorm.audit(path, cluster=idle, **options), opnorm.audit(path, **options))


def test_a_network_is_bounded_by_the_process_that_asks(tmp_path, idle):
    keras = str(FILES["a.keras"](tmp_path / "a.keras"))
    report = opnorm.audit(keras, cluster=idle)
    assert report.network["upper"] > 0
    assert_same(report, opnorm.audit(keras))


def test_the_command_takes_a_cluster(path, idle):
    found = CliRunner().invoke(cli.app, ["audit", path, "--cluster", idle, "--include", "layer*", "--json", "-"])
    assert found.exit_code == 0, found.stderr
    assert alike(json.loads(found.stdout), json.loads(opnorm.audit(path, include="layer*").to_json()))
    failed = CliRunner().invoke(cli.app, ["audit", path, "--cluster", "nonsense"])
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1


def test_a_tensor_that_needs_more_memory_than_the_limit_has_the_reason(path, idle):
    report = opnorm.audit(path, cluster=idle, memory_limit=10_000)
    assert {row.status for row in report.rows if "layer" in row.name} == {"failed"}
    assert "more than the limit of 10000" in report.rows[0].reason


def test_a_tensor_whose_workers_all_ended_has_a_row_that_says_so():
    class Future:
        def result(self):
            raise distributed.scheduler.KilledWorker("task", None, 3)

    weight = Weight("w", (2, 2), "float32", lambda: np.eye(2), unknown("unknown", ""))
    row, spectrum = clusters._result(Future(), weight)
    assert (row.status, row.lower, len(spectrum)) == ("failed", None, 0)
    assert row.reason.startswith("4 workers ended while they measured it")


def test_what_does_not_answer_is_named(path, monkeypatch):
    monkeypatch.setattr(clusters, "_PATIENCE", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(ConnectionError, match=f"no scheduler of dask.distributed answers at '{address}'"):
            opnorm.audit(path, cluster=address)
    options = {"n_workers": 0, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as empty, pytest.raises(ConnectionError, match="has no workers"):
        opnorm.audit(path, cluster=empty.scheduler_address)


def test_a_worker_with_another_opnorm_or_none_is_named(path, idle, monkeypatch):
    here = threading.get_ident()

    def another(name):
        return version(name) if threading.get_ident() == here else "0.0.1"

    def none(name):
        if threading.get_ident() != here:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(clusters, "version", another)
    with pytest.raises(ConnectionError, match=r"has opnorm 0\.0\.1, and this is"):
        opnorm.audit(path, cluster=idle)
    monkeypatch.setattr(clusters, "version", none)
    with pytest.raises(ConnectionError, match="has no opnorm"):
        opnorm.audit(path, cluster=idle)


def test_a_file_that_a_worker_does_not_see_or_sees_otherwise_is_named(path, idle, monkeypatch):
    def missing(path, audit):
        raise CheckpointError(f"Cannot read {path!r}: there is no such file")

    monkeypatch.setattr(clusters, "_count", missing)
    with pytest.raises(CheckpointError, match=r"the worker .* cannot open the file: .*there is no such file"):
        opnorm.audit(path, cluster=idle)
    monkeypatch.setattr(clusters, "_count", lambda path, audit: 3)
    with pytest.raises(CheckpointError, match=r"sees 3 tensors in .*, and not 28"):
        opnorm.audit(path, cluster=idle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cluster": ""}, "Argument `cluster` must be None"),
        ({"cluster": 7}, "Argument `cluster` must be None"),
        ({"cluster": "local", "sandbox": True}, "cannot be had with `sandbox`"),
    ],
)
def test_arguments_that_make_no_sense_are_named(path, arguments, message):
    with pytest.raises(ValueError, match=message):
        opnorm.audit(path, **arguments)


def test_a_model_has_no_path_for_workers():
    with pytest.raises(TypeError, match="Argument `cluster` needs the path of a file"):
        opnorm.audit(object(), cluster="local")


def test_without_dask_the_error_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'opnorm\[cluster\]'"):
        opnorm.audit(path, cluster="local")
