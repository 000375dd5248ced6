import csv
import io
import json
import threading

import numpy as np
import pytest
from network_files import grid_norm, norm, tensors, write
from samples import FILES
from scipy.sparse.linalg import aslinearoperator

from opnorm.auditing.audits import audit, report_on
from opnorm.auditing.measure import measure
from opnorm.auditing.norms import norms
from opnorm.auditing.report import Report
from opnorm.auditing.settings import Options, Settings
from opnorm.bounds.brackets import bracket
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checkpoints import geometry
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Geometry, Weight
from opnorm.networks.effects import RULES
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal, Diagonal
from opnorm.operators.sizes import Adjoint


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return audit(write(tmp_path_factory.mktemp("audit") / "model.safetensors"))


def weight(values, operator=lambda v: aslinearoperator(v), **more):
    values = np.asarray(values)
    geometry = Geometry("Dense", "matrix", operator)
    return Weight("w", values.shape, values.dtype.name, lambda: values, geometry, **more)


def row_of(values, *arguments, settings=None, **more):
    return measure(weight(values, *arguments, **more), settings or Settings())[0]


def raising(error):
    def raise_error(*_):
        raise error

    return raise_error


def named(report, name):
    return next(row for row in report.rows if row.name == name)


def test_every_tensor_of_the_file_has_a_row(report):
    assert {row.name: row.shape for row in report.rows} == {name: array.shape for name, array in tensors().items()}


def test_a_row_is_bounded_or_says_why_not(report):
    for row in report.rows:
        assert (row.lower is not None and row.upper is not None) == (row.status == "bounded")
        assert bool(row.reason) == (row.status != "bounded"), row


@pytest.mark.parametrize("name", ["layer.0.weight", "layer.4.weight"])
def test_a_matrix_is_bracketed_to_a_millionth(report, name):
    row, truth = named(report, name), norm(tensors()[name])
    assert row.lower <= truth * (1 + 1e-12)  # LAPACK's own rounding
    assert truth <= row.upper * (1 + 1e-12)
    assert row.upper <= row.lower * (1 + 1e-6)
    assert row.matrix_norm == pytest.approx(truth, rel=2e-6)  # its upper end


def test_the_other_numbers_of_a_matrix_are_those_of_its_singular_values(report):
    row, matrix = named(report, "layer.0.weight"), tensors()["layer.0.weight"].astype(np.float64)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert row.frobenius == pytest.approx(np.sqrt(np.sum(values**2)), rel=1e-12)  # rounding
    assert row.stable_rank == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=3e-6)  # twice the bracket's width
    assert row.rms_norm == pytest.approx(values[0] * np.sqrt(20 / 30), rel=2e-6)  # 20 inputs, 30 outputs


def test_a_convolution_has_the_norm_of_its_operator_and_that_of_its_matrix(report):
    row, kernel = named(report, "layer.1.weight"), tensors()["layer.1.weight"]
    at_least = grid_norm(kernel)
    assert at_least <= row.upper
    assert row.lower <= at_least * 1.02  # the grid misses the top by less
    assert row.upper <= row.lower * 1.02
    matrix = kernel.transpose(2, 3, 1, 0).reshape(-1, 6)
    assert row.matrix_norm == pytest.approx(norm(matrix), rel=2e-6)
    assert row.rms_norm is None  # strides, and whether it is a transposed one, are not in the file


def test_entries_that_are_not_finite_are_named_and_counted():
    row = row_of([[1.0, np.nan], [np.inf, 1.0]])
    assert (row.status, row.lower, row.upper, row.frobenius) == ("failed", None, None, None)
    assert row.flags == ("nan", "inf")
    assert row.reason == "2 of 4 entries are NaN and infinite"


def test_a_signalling_nan_is_flagged_and_warns_of_nothing():
    bits = np.array([[0x7F800001, 0x3F800000]], dtype=np.uint32)  # float32: the quiet bit is not set
    assert row_of(bits.view(np.float32)).flags == ("nan",)  # every warning is an error here


def test_a_bias_with_a_nan_is_flagged_too():
    skipped = weight([1.0, np.nan])._replace(geometry=Geometry("Dense", "bias", None, "a bias is added"))
    row = measure(skipped, Settings())[0]
    assert (row.status, row.flags) == ("skipped", ("nan",))


def test_zeros_have_the_norm_zero_and_a_flag(report):
    row = named(report, "layer.3.weight")
    assert (row.lower, row.upper, row.flags, row.stable_rank) == (0, 0, ("zero",), None)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_huge_and_tiny_entries_are_measured(scale):
    row = row_of(np.diag([3.0, 4.0]) * scale)
    assert row.lower <= 4 * scale <= row.upper <= 4 * scale * (1 + 2e-6)
    assert row.frobenius == pytest.approx(5 * scale, rel=1e-12)
    assert row.stable_rank == pytest.approx(25 / 16, rel=3e-6)


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (raising(CheckpointError("Cannot read 'x':\ncut off")), "Cannot read 'x': cut off"),
        (lambda: np.zeros((0, 3)), "an empty tensor"),
        (lambda: np.ones((2, 2), complex), "complex128 holds no real numbers that fit float64"),
        (lambda: np.full((2, 2), 2**60), "holds integers beyond 2**53, which float64 skips"),
    ],
)
def test_what_cannot_be_read_is_a_row_with_its_reason(read, reason):
    row = measure(weight(np.ones((2, 2)))._replace(read=read), Settings())[0]
    assert (row.status, row.lower, row.upper, row.reason) == ("failed", None, None, reason)


def test_an_operator_that_does_not_fit_is_a_row_with_its_reason():
    row = row_of(np.ones((2, 2)), raising(ValueError("the kernel does not fit")))
    assert (row.status, row.reason) == ("failed", "the kernel does not fit")


def test_an_operator_without_upper_end_is_not_called_bounded():
    class Unknown(type(Diagonal([1.0]).H).__mro__[1]):  # a LinearOperator of a type that nothing knows
        def _matvec(self, x):
            return 2 * x

        _rmatvec = _matvec

    row = row_of([1.0], lambda _: Unknown(np.float64, (5000, 5000)))
    assert (row.status, row.upper) == ("failed", None)
    assert row.lower == pytest.approx(2, rel=1e-5)
    assert "no upper end" in row.reason


def test_the_method_is_named():
    kernel = np.ones((3, 3, 2, 2))
    assert row_of(np.eye(3)).method == "Cholesky certificate"
    assert row_of([1.0, -2.0], Diagonal).method == "exact diagonal"
    assert row_of(kernel, Convolution).method == "frequency cells, certified"
    blocks = row_of(np.ones((2, 2, 2)), lambda v: BlockDiagonal([aslinearoperator(b) for b in v]))
    assert blocks.method == "Cholesky certificate, the largest of 2 blocks"


def test_a_diagonal_is_exact():
    row = row_of([1.0, -2.5], Diagonal)
    assert (row.lower, row.upper, row.matrix_norm) == (2.5, 2.5, 2.5)


def test_the_stable_rank_is_that_of_what_is_applied_not_of_what_is_stored():
    row = row_of([1.0, 2.0], lambda v: Diagonal(v / 1e-2))
    assert row.frobenius == pytest.approx(np.sqrt(5) * 100, rel=1e-12)
    assert row.stable_rank == pytest.approx(5 / 4, rel=1e-12)


def test_a_transposed_convolution_is_grouped_by_its_output_channels():
    kernel = np.random.default_rng(1).standard_normal((3, 3, 5, 2))  # Keras's layout: 5 out, 2 in
    row = row_of(kernel, lambda v: Adjoint(Convolution(v)))
    assert row.matrix_norm == pytest.approx(norm(kernel.transpose(2, 0, 1, 3).reshape(5, -1)), rel=2e-6)
    assert row.rms_norm == pytest.approx(row.upper * np.sqrt(2 / 5), rel=1e-12)


@pytest.mark.parametrize("groups", [2, 4])
def test_a_grouped_convolution_has_the_largest_norm_of_its_groups(groups):
    kernel = np.random.default_rng(2).standard_normal((3, 3, 4 // groups, 8))
    row = row_of(kernel, lambda v: Convolution(v, groups=groups))
    parts = np.split(kernel, groups, axis=-1)
    assert row.matrix_norm == pytest.approx(max(norm(p.reshape(-1, 8 // groups)) for p in parts), rel=2e-6)
    assert row.upper >= max(grid_norm(p.transpose(3, 2, 0, 1), 16) for p in parts)


# ---- time ----


def test_without_time_a_matrix_gets_a_wider_bracket_that_holds():
    matrix = np.random.default_rng(3).standard_normal((60, 40))
    row = row_of(matrix, settings=Settings(time_limit=0))
    assert row.lower <= norm(matrix) <= row.upper
    assert row.upper <= np.linalg.norm(matrix) * (1 + 1e-9)  # the Frobenius norm, rounded up
    assert (row.flags, row.matrix_norm, row.stable_rank) == (("time limit",), None, None)
    assert "time limit" in row.method


@pytest.mark.parametrize("matrix", [np.eye(5), np.diag([0.0, 0, 1e200]), np.ones((1, 7)), np.ones((300, 2))])
def test_the_bracket_without_time_holds_for_special_matrices(matrix):
    lower, upper = bracket_matrix(matrix, 1e-6, Deadline.after(0))
    assert 0 < lower <= norm(matrix) * (1 + 1e-12)
    assert norm(matrix) <= upper * (1 + 1e-12)


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("dilation_rate", [1, 2])
def test_without_time_a_convolution_gets_a_wider_bracket_that_holds(strides, adjoint, dilation_rate):
    kernel = np.random.default_rng(4).standard_normal((4, 3, 2, 3))
    operator = Convolution(kernel, strides=strides, dilation_rate=dilation_rate)
    wide = norms(Adjoint(operator) if adjoint else operator, time_limit=0)
    lower, upper = bracket(operator, 1e-2)  # itself compared with explicit matrices in tests/truth
    assert wide.limited
    assert 0 < wide.lower <= upper
    assert lower <= wide.upper <= np.sqrt(12) * np.linalg.norm(kernel) * (1 + 1e-9)  # rounded up


def test_the_matrix_norm_bounds_a_convolution_whose_taps_agree():
    ones = norms(Convolution(np.ones((3, 3, 1, 1))), time_limit=0)
    assert ones.lower <= 9 <= ones.upper  # nine equal taps: the norm is 9 = sqrt(9) * 3


def test_more_time_than_needed_changes_nothing():
    kernel = np.random.default_rng(5).standard_normal((3, 3, 2, 3))
    assert norms(Convolution(kernel), time_limit=600)[:2] == norms(Convolution(kernel))[:2]


def test_a_deadline_in_the_middle_of_a_search_is_kept(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("opnorm.bounds.deadlines.monotonic", lambda: next(ticks))
    kernel = np.random.default_rng(6).standard_normal((3, 3, 4, 4))
    lower, upper = bracket(Convolution(kernel), 1e-3, Deadline(at=3.5))  # the fourth look at the clock is too late
    monkeypatch.undo()
    assert next(ticks) < 20
    fine = bracket(Convolution(kernel), 1e-3)
    assert lower <= fine[1]
    assert fine[0] <= upper
    assert upper > fine[1] * 1.1


# ---- the options ----


def test_globs_choose_tensors_and_the_report_says_how_many_it_left_out(tmp_path):
    report = audit(write(tmp_path / "m.safetensors"), include=["layer.*"], exclude="*.bias")
    assert [row.name for row in report.rows] == [f"layer.{i}.weight" for i in range(5)]
    assert "3 tensors were left out by include and exclude" in report.notes


def test_jobs_change_the_time_and_nothing_else(tmp_path, report):
    parallel = audit(write(tmp_path / "m.safetensors"), jobs=3)
    assert [row._replace(seconds=0) for row in parallel.rows] == [row._replace(seconds=0) for row in report.rows]


def test_jobs_run_at_the_same_time(tmp_path, monkeypatch):
    together = threading.Barrier(2, timeout=30)
    monkeypatch.setattr("opnorm.auditing.audits.measure", lambda w, s: (together.wait(), measure(w, s))[1])
    values = {"a.weight": np.eye(2, dtype=np.float32), "b.weight": np.eye(2, dtype=np.float32)}
    assert len(audit(write(tmp_path / "m.safetensors", values), jobs=2).rows) == 2


def test_progress_counts_to_the_end(tmp_path):
    seen = []
    audit(write(tmp_path / "m.safetensors"), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_counts_the_network_too(tmp_path, jobs):
    seen = []
    report = audit(
        FILES["a.keras"](tmp_path / "a.keras"), jobs=jobs, progress=lambda done, total: seen.append((done, total))
    )
    (total,) = {total for _, total in seen}
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert counts[: len(report.rows)] == list(range(1, len(report.rows) + 1))
    assert counts[-1] == total > len(report.rows)


def test_spectra_are_the_singular_values(tmp_path):
    report = audit(write(tmp_path / "m.safetensors"), spectra=True)
    values = np.linalg.svd(tensors()["layer.0.weight"].astype(np.float64), compute_uv=False)
    index, found = np.array(report.spectra["layer.0.weight"]).T
    assert index[0] == 1
    assert index[-1] == 20
    np.testing.assert_allclose(found, values[index.astype(int) - 1], rtol=1e-12)
    assert "layer.2.weight" not in report.spectra  # NaN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "`jobs` must be a positive integer"),
        ({"time_limit": -1}, "`time_limit` must not be negative"),
        ({"time_limit": float("nan")}, "`time_limit` must not be negative"),
        ({"tolerance": 0}, "`tolerance` must be a positive"),
    ],
)
def test_arguments_that_make_no_sense_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        audit(write(tmp_path / "m.safetensors"), **options)


def test_a_file_without_tensors_says_so(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    report = audit(tmp_path / "a.pt")
    assert (report.rows, report.notes) == ((), ("the file holds no tensors",))


@pytest.mark.parametrize("sandbox", [False, True])
def test_an_empty_path_is_refused_as_that(sandbox):
    with pytest.raises(ValueError, match="`model_or_path` must be the path of a file, not empty"):
        audit("", sandbox=sandbox)


def test_something_else_than_a_path_or_a_model_is_refused():
    with pytest.raises(TypeError, match="`model_or_path`"):
        audit(3)


def test_a_row_takes_the_memory_of_three_float64_copies_at_most():
    tracemalloc = pytest.importorskip("tracemalloc")
    values = np.random.default_rng(7).standard_normal((1024, 1024)).astype(np.float32)
    tracemalloc.start()
    row_of(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3.05 * 8 * values.size  # vectors of Lanczos


# ---- declared constraints ----


def keras_config(name, **config):
    return {"class_name": name, "registered_name": f"opnorm>{name}", "module": None, "config": config}


@pytest.mark.parametrize(
    ("config", "met"),
    [
        (keras_config("SpectralNorm", value=2.0), "yes"),
        (keras_config("SpectralNorm", value=1.0), "no"),
        (keras_config("SpectralNorm", value=3.0), "no"),
        (keras_config("MaxSpectralNorm", max_value=3.0), "yes"),
        (keras_config("MaxSpectralNorm", max_value=1.9), "no"),
        (keras_config("SpectralClip", max_value=2.0), "yes"),
        (keras_config("Orthogonal"), "no"),
        (keras_config("MaxSpectralNorm", max_value="3"), "unknown"),
        ({"class_name": "MaxNorm", "registered_name": "MaxNorm", "config": {"max_value": 1}}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_a_declared_constraint_is_compared_with_the_bracket(config, met):
    assert row_of(np.diag([2.0, 1.0]), constraint=config).constraint["met"] == met


@pytest.mark.parametrize(
    ("options", "met"),
    [
        ({"operator": "matrix"}, "yes"),
        ({"operator": "matrix", "axis": 3}, "yes"),
        ({"operator": "matrix", "axis": 0}, "unknown"),
        ({"operator": "matrix", "groups": 2}, "unknown"),
        ({"operator": "convolution"}, "no"),
        ({"operator": "convolution", "strides": 2}, "unknown"),
    ],
)
def test_the_geometry_of_a_declared_constraint_says_which_norm_it_means(options, met):
    kernel = np.ones((3, 3, 1, 1)) / 3  # matrix norm 1, operator norm 3
    config = keras_config("MaxSpectralNorm", max_value=1.0, **options)
    assert row_of(kernel, Convolution, constraint=config).constraint["met"] == met


def test_a_norm_within_the_width_of_its_bracket_is_not_judged():
    kernel = np.random.default_rng(8).standard_normal((3, 3, 2, 2))
    wide = row_of(kernel, Convolution, settings=Settings(time_limit=0))
    value = (wide.lower + wide.upper) / 2
    config = keras_config("MaxSpectralNorm", max_value=value, operator="convolution")
    row = row_of(kernel, Convolution, constraint=config, settings=Settings(time_limit=0))
    assert row.constraint["met"] == "unknown"


# ---- several readings of one tensor ----


DEPTHWISE = np.zeros((32, 1, 3, 3), dtype=np.float32)  # as PyTorch stores it: (channels, 1, *spatial)
DEPTHWISE[:, 0, 1, 1] = 1  # each channel as it is


def as_one_group(kernel):
    return Convolution(kernel.transpose(2, 3, 1, 0))


def as_channels(kernel):
    return Convolution(kernel.transpose(2, 3, 1, 0), groups=32)


def ambiguous(*readings, operator=as_one_group):
    found = weight(DEPTHWISE, operator)
    return found._replace(geometry=found.geometry._replace(assumed=True, readings=readings))


def test_every_reading_is_bracketed_and_the_row_says_which_one_it_took():
    row = measure(ambiguous(Geometry("Conv", "depthwise", as_channels)), Settings())[0]
    assert row.geometry == "matrix"
    assert row.lower * (1 - 1e-9) <= np.sqrt(32) <= row.upper * (1 + 1e-9)  # one input channel, 32 copies of it
    ((text, lower, upper),) = row.readings
    assert text == "depthwise"
    assert lower <= 1 <= upper <= 1.02


@pytest.mark.parametrize("reading", [Geometry("Conv", "no idea", None, "unknown", unknown=True), "raises"])
def test_a_reading_without_a_bracket_is_a_reading_all_the_same(reading):
    if reading == "raises":
        reading = Geometry("Conv", "no idea", raising(KeyError("groups")))
    row = measure(ambiguous(reading), Settings())[0]
    assert row.status == "bounded"
    assert row.readings == (("no idea", None, None),)


def test_the_readings_are_in_every_form_of_the_report():
    row = measure(ambiguous(Geometry("Conv", "depthwise", as_channels)), Settings())[0]
    report = Report("f", "npz", (row,))
    ((text, lower, upper),) = json.loads(report.to_json())["rows"][0]["readings"]
    assert (text, lower, upper) == row.readings[0]
    assert "as depthwise" in report.to_text()
    (line,) = csv.DictReader(io.StringIO(report.to_csv()))
    assert json.loads(line["readings"]) == [["depthwise", lower, upper]]


def test_a_norm_that_is_not_known_is_a_failure_and_no_absence():
    found = weight(np.eye(3))._replace(geometry=geometry.unknown("Quantized", "no scale was found"))
    row = measure(found, Settings())[0]
    assert (row.status, row.lower, row.upper, row.reason) == ("failed", None, None, "no scale was found")


# ---- nothing falls ----


@pytest.mark.parametrize(
    "error", [KeyError("x"), AttributeError("x"), RecursionError("x"), IndexError(), MemoryError(), OverflowError("x")]
)
@pytest.mark.parametrize("where", ["read", "operator"])
def test_whatever_one_tensor_raises_is_its_own_rows_reason(error, where):
    good = weight(np.eye(2))
    bad = good._replace(name="bad", **{"read": raising(error)} if where == "read" else {})
    if where == "operator":
        bad = bad._replace(geometry=bad.geometry._replace(operator=raising(error)))
    report = report_on("f", Checkpoint("npz", (bad, good)), Options())
    assert [row.status for row in report.rows] == ["failed", "bounded"]
    assert report.rows[0].reason


def test_what_one_node_raises_is_why_it_is_unbounded(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "Conv2D", raising(AttributeError("no such thing")))
    report = audit(FILES["a.keras"](tmp_path / "a.keras"))
    assert any("no such thing" in text for text in report.network["unknown"])
    assert any(row.status == "bounded" for row in report.rows)


def test_the_network_tells_of_each_step_its_share_and_which_neighbours_cost_most(tmp_path):
    network = json.loads(audit(FILES["a.keras"](tmp_path / "a.keras")).to_json())["network"]
    known = [step["share"] for step in network["steps"] if step["share"] is not None]
    assert sum(map(abs, known)) == pytest.approx(1)
    assert all(set(pair) == {"first", "second", "loss"} for pair in network["pairs"])
    assert [pair["loss"] for pair in network["pairs"]] == sorted((p["loss"] for p in network["pairs"]), reverse=True)


@pytest.mark.parametrize("error", [KeyError("depthwise_kernel"), MemoryError()])
def test_what_the_network_raises_leaves_the_rows(tmp_path, monkeypatch, error):
    monkeypatch.setattr("opnorm.auditing.network_report.network_bound", raising(error))
    report = audit(FILES["a.keras"](tmp_path / "a.keras"))
    assert report.network["upper"] is None
    assert report.network["unknown"]
    assert any(row.status == "bounded" for row in report.rows)
    assert "unknown" in report.to_text()


# ---- memory ----


def test_a_tensor_beyond_the_memory_limit_has_the_reason_and_the_others_their_brackets(tmp_path):
    values = {"big.weight": np.ones((300, 300), np.float32), "small.weight": np.eye(3, dtype=np.float32)}
    report = audit(write(tmp_path / "m.safetensors", values), memory_limit=100_000)
    assert [row.status for row in report.rows] == ["failed", "bounded"]
    assert "720000 bytes" in report.rows[0].reason


def test_the_memory_is_shared_by_the_jobs(tmp_path):
    path = write(tmp_path / "m.safetensors", {"w.weight": np.ones((100, 100), np.float32)})
    assert audit(path, memory_limit=100_000).rows[0].status == "bounded"
    assert audit(path, memory_limit=100_000, jobs=2).rows[0].status == "failed"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"jobs": "2"}, "jobs"),
        ({"jobs": True}, "jobs"),
        ({"time_limit": "1"}, "time_limit"),
        ({"memory_limit": 0}, "memory_limit"),
        ({"memory_limit": 1e9}, "memory_limit"),
        ({"include": 3}, "include"),
        ({"exclude": [3]}, "exclude"),
        ({"include": ""}, "include"),
        ({"exclude": ["a", ""]}, "exclude"),
        ({"sandbox": "yes"}, "sandbox"),
        ({"network": "no"}, "network"),
        ({"spectra": 1}, "spectra"),
        ({"progress": 3}, "progress"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(tmp_path, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        audit(write(tmp_path / "m.safetensors"), **options)
