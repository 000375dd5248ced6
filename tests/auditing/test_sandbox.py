"""Files read in a process of their own: the same report, and one line where the reader crashes or hangs."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from network_files import write
from samples import FILES
from typer.testing import CliRunner

from opnorm.auditing import sandbox
from opnorm.auditing.audits import audit
from opnorm.auditing.differences import diff
from opnorm.auditing.folders import temporary_folder
from opnorm.auditing.sandbox import audit_in_child, diff_in_child, is_native
from opnorm.checkpoints.records import CheckpointError
from opnorm.cli import main as cli


@pytest.fixture
def keras(tmp_path):
    return FILES["a.keras"](tmp_path / "a.keras")


def timeless(report):
    rows = [row._replace(seconds=0)._asdict() for row in report.rows]
    return json.dumps(report.to_dict() | {"rows": None}), json.dumps(rows)


def program(monkeypatch, text):
    """Let the child be another program."""
    monkeypatch.setattr(sandbox, "_PROGRAM", f"import json, os, signal, sys, time\n{text}")


def child(monkeypatch, text):
    """Let the child be itself, changed by `text`."""
    start = "sys.path[:] = json.loads(sys.argv[1])\nimport opnorm.auditing.child as child"
    program(monkeypatch, f"{start}\n{text}\nchild.main()")


@pytest.mark.parametrize("name", ["a.keras", "a.onnx", "a.pt"])
def test_the_report_is_the_one_that_this_process_would_have_made(tmp_path, name):
    path = str(FILES[name](tmp_path / name))
    apart, here = audit(path, sandbox=True, spectra=True), audit(path, spectra=True)
    assert timeless(apart) == timeless(here)
    assert apart.spectra == here.spectra
    assert {type(row.shape) for row in apart.rows} == {tuple}


def test_numbers_survive_the_way(tmp_path):
    values = {"w.weight": np.full((2, 2), 1 / 3), "x.weight": np.full((2, 2), np.nan, np.float32)}
    path = str(write(tmp_path / "m.safetensors", values))
    assert timeless(audit_in_child(path, {})) == timeless(audit(path))


def test_numbers_of_numpy_are_numbers(keras):
    options = {"tolerance": np.float32(0.5), "jobs": np.int64(2), "time_limit": np.float64(9), "include": ("first*",)}
    assert timeless(audit(str(keras), sandbox=True, **options)) == timeless(audit(str(keras), **options))


def test_a_comparison_is_the_same_too(tmp_path):
    path = str(FILES["a.onnx"](tmp_path / "a.onnx"))
    assert diff(path, path, sandbox=True) == diff(path, path)


def test_progress_comes_through(keras):
    apart, here = [], []
    audit(str(keras), sandbox=True, progress=lambda *at: apart.append(at))
    audit(str(keras), progress=lambda *at: here.append(at))
    assert apart == here


def test_what_the_file_or_the_arguments_are_refused_for_is_the_same_error(keras):
    keras.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(CheckpointError) as apart:
        audit(str(keras), sandbox=True)
    with pytest.raises(CheckpointError) as here:
        audit(str(keras))
    assert str(apart.value) == str(here.value)
    with pytest.raises(ValueError, match="`tolerance`"):
        audit_in_child(str(keras), {"tolerance": -1})
    with pytest.raises(TypeError, match="`sandbox`"):
        audit(object(), sandbox=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os._exit(3)", "exit status 3"),
        ("print('no JSON'); print('[1]'); print('{}')", "exit status 0"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile True: pass", "too long"),
    ],
)
def test_a_crash_is_one_line(monkeypatch, keras, text, words):
    program(monkeypatch, text)
    with pytest.raises(CheckpointError, match=words) as error:
        audit_in_child(str(keras), {})
    assert "\n" not in str(error.value)
    assert repr(str(keras)) in str(error.value)


def test_a_crash_in_a_comparison_names_both_files(monkeypatch):
    program(monkeypatch, "os.abort()")
    with pytest.raises(CheckpointError, match=r"'a\.keras' and 'b\.keras': .*SIGABRT"):
        diff_in_child("a.keras", "b.keras", {})


def begun(seconds):
    message = {"event": "begin", "key": 1, "what": "reading 'w'", "seconds": seconds}
    return f"print({json.dumps(message)!r}, flush=True)"


def test_a_crash_while_reading_names_what_was_read(monkeypatch, keras):
    program(monkeypatch, f"{begun(60.0)}; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(CheckpointError, match=r"crashed \(SIGSEGV\) while reading 'w'"):
        audit_in_child(str(keras), {})


def test_a_reader_that_hangs_is_stopped(monkeypatch, keras):
    program(monkeypatch, f"{begun(0.5)}; time.sleep(300)")
    with pytest.raises(CheckpointError, match="reading 'w' took too long"):
        audit_in_child(str(keras), {})


def test_opening_that_never_ends_is_stopped(monkeypatch, keras):
    child(monkeypatch, "child.opened = lambda path: time.sleep(300)")
    with pytest.raises(CheckpointError, match="opening it took too long"):
        audit_in_child(str(keras), {}, patience=0.2)


@pytest.mark.parametrize(
    ("limit", "patience", "seconds"), [(None, 60.0, 60), (0.5, 60.0, 15), (30, 60.0, 60), (9, 2.0, 2)]
)
def test_opening_may_take_less_where_time_is_limited(monkeypatch, keras, limit, patience, seconds):
    told = f"assert {seconds} <= seconds < {seconds + 1}, seconds"
    text = "\nopening = child._opening\n"
    text += f"def checked(path, seconds, room, tell):\n    {told}\n    return opening(path, seconds, room, tell)\n"
    child(monkeypatch, f"{text}child._opening = checked")
    audit_in_child(str(keras), {"time_limit": limit}, patience=patience)


def test_opening_has_its_limits_and_reading_a_tensor_is_watched(monkeypatch, keras):
    text = """
import resource
def opened(path, opened=child.opened):
    soft = {resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)}
    assert resource.RLIM_INFINITY not in soft and resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    file, checkpoint = opened(path)
    slow = checkpoint.weights[0]._replace(read=lambda: time.sleep(300))
    return file, checkpoint._replace(weights=(slow,), graph=None)
child.opened = opened"""
    child(monkeypatch, text)
    with pytest.raises(CheckpointError, match="reading 'first/kernel' took too long"):
        audit_in_child(str(keras), {}, patience=2.0)


def test_a_reader_that_takes_all_memory_is_refused(monkeypatch, keras):
    child(monkeypatch, "import numpy\nchild.opened = lambda path: numpy.ones(2**33)")
    with pytest.raises((CheckpointError, MemoryError), match="allocate"):
        audit_in_child(str(keras), {})


def test_what_the_child_leaves_behind_is_removed(monkeypatch, keras, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = set(tmp_path.iterdir())
    program(monkeypatch, "import tempfile; tempfile.mkstemp(); os._exit(1)")
    with pytest.raises(CheckpointError):
        audit_in_child(str(keras), {})
    assert set(tmp_path.iterdir()) == before


def waited(true, seconds=30):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


@pytest.mark.parametrize("wait", ["time.sleep(300)", "import ctypes; ctypes.PyDLL(None).sleep(60)"], ids=str)
def test_a_child_whose_other_side_was_killed_does_not_go_on(tmp_path, monkeypatch, wait):
    """The second waits in C and lets no other thread of Python's run."""
    noted = tmp_path / "pid"
    text = f"""
def opened(path):
    with open({str(noted)!r}, "w") as file:
        file.write(str(os.getpid()))
    {wait}
child.opened = opened"""
    start = "import json, os, sys, time\nsys.path[:] = json.loads(sys.argv[1])\nimport opnorm.auditing.child as child"
    script = f"from opnorm.auditing import sandbox\nsandbox._PROGRAM = {f'{start}{text}{chr(10)}child.main()'!r}\n"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    parent = subprocess.Popen([sys.executable, "-c", f"{script}sandbox.audit_in_child('x.keras', {{}})"])
    assert waited(lambda: noted.exists() and noted.read_text())
    (left,) = tmp_path.glob("opnorm-*")
    with temporary_folder() as other:
        assert left.exists()  # it is in use
    assert not os.path.exists(other)
    parent.kill()
    parent.wait()
    assert waited(lambda: not os.path.exists(f"/proc/{noted.read_text()}"))
    with temporary_folder() as other:
        assert [str(folder) for folder in tmp_path.glob("opnorm-*")] == [other]


def test_nothing_beside_the_file_is_imported(tmp_path, monkeypatch, keras):
    for name in ("h5py", "json", "opnorm"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('owned')")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.chdir(tmp_path)
    assert audit_in_child("a.keras", {}).rows


# ---- the command line ----


@pytest.mark.parametrize(
    ("name", "option", "apart"),
    [
        ("a.keras", [], True),
        ("a.onnx", [], True),
        ("a.weights.h5", [], True),
        ("a.safetensors", [], False),
        ("a.safetensors", ["--sandbox"], True),
        ("a.keras", ["--no-sandbox"], False),
    ],
)
@pytest.mark.parametrize("command", [["audit"], ["check", "--max-norm", "1e9"]])
def test_the_command_line_reads_apart_what_native_code_reads(tmp_path, monkeypatch, name, option, apart, command):
    asked = []
    report = audit(FILES["a.npz"](tmp_path / "a.npz"))
    monkeypatch.setattr(sandbox, "audit_in_child", lambda *arguments: asked.append(arguments) or report)
    result = CliRunner().invoke(cli.app, [*command, str(FILES[name](tmp_path / name)), *option])
    assert result.exit_code == 0, result.output
    assert bool(asked) == apart


def test_the_command_line_imports_no_numpy_for_a_file_that_is_read_apart(keras):
    script = f"""
import sys
from typer.testing import CliRunner
from opnorm.cli import main as cli
result = CliRunner().invoke(cli.app, ["audit", {str(keras)!r}])
print(result.exit_code, "numpy" in sys.modules, "first/kernel" in result.stdout)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "0 False True\n"


def test_endings_of_what_native_code_reads():
    assert all(map(is_native, ("a.KERAS", "a.h5", "x/a.weights.h5", "a.hdf5", "m.onnx", "a.weights.json")))
    assert not any(map(is_native, ("a.safetensors", "a.pt", "a.npz", "h5")))
