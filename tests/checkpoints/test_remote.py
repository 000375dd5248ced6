"""Files behind URLs: the same checkpoint as on the disk, read in ranges, and errors of one line."""

import re
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from network_files import write
from samples import FILES

import opnorm
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

READ = ["a.safetensors", "a.npz", "a.npy", "a.pt"]
BIG = 2**20  # numbers of a tensor that nobody asks for


class Server(ThreadingHTTPServer):
    """Serves a folder, in parts where it is told to, and counts what it sends."""

    daemon_threads = True

    def __init__(self, folder, *, ranges):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges, self.sent = folder, ranges, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(500 if "broken" in self.path else 404)
            return
        data, wanted = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = wanted is not None and self.server.ranges
        begin, end = (int(wanted[1]), int(wanted[2]) + 1) if part else (0, len(data))
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(data[begin:end])))
        if part:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.server.sent.append(end - begin)
            self.wfile.write(data[begin:end])

    def log_message(self, *_):
        pass


@contextmanager
def serving(folder, *, ranges=True):
    server = Server(folder, ranges=ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def memory(tmp_path):
    """Return what puts a file into fsspec's memory, under its own URL."""
    files = fsspec.filesystem("memory")

    def put(path):
        files.pipe(f"/{tmp_path.name}/{path.name}", path.read_bytes())
        return f"memory://{tmp_path.name}/{path.name}"

    yield put
    files.rm(f"/{tmp_path.name}", recursive=True)


def contents(checkpoint):
    return checkpoint.format, [
        (weight.name, weight.shape, weight.dtype, np.asarray(weight.read()).tobytes(), weight.geometry.text)
        for weight in checkpoint.weights
    ]


@pytest.mark.parametrize("name", READ)
def test_a_file_behind_a_url_is_the_one_on_the_disk(tmp_path, memory, name):
    path = FILES[name](tmp_path / name)
    expected = contents(open_checkpoint(path))
    assert contents(open_checkpoint(memory(path))) == expected
    assert contents(open_checkpoint(path.as_uri())) == expected
    with serving(tmp_path) as server:
        assert contents(open_checkpoint(f"{server.url}/{name}?download=true#x")) == expected


def shards(folder):
    for number in (1, 2):
        write(folder / f"part{number}.safetensors", {f"layer{number}.weight": np.full((3, number), 2.0)})
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"layer1.weight": "part1.safetensors", "layer2.weight": "part2.safetensors"}}')
    return index


def test_shards_lie_beside_their_index(tmp_path, memory):
    index = shards(tmp_path)
    expected = contents(open_checkpoint(index))
    with serving(tmp_path) as server:
        assert contents(open_checkpoint(f"{server.url}/{index.name}?download=true")) == expected
    for path in tmp_path.iterdir():
        url = memory(path)
    assert contents(open_checkpoint(url.rpartition("/")[0] + f"/{index.name}")) == expected
    index.write_text('{"weight_map": {"w": "../part1.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(memory(index))


def test_an_audit_reads_the_header_and_the_tensors_that_are_asked_for(tmp_path):
    small, big = np.arange(12.0).reshape(3, 4), np.zeros(BIG, np.float32)
    path = write(tmp_path / "model.safetensors", {"a.weight": big, "b.weight": small, "c.weight": big})
    with serving(tmp_path) as server:
        report = opnorm.audit(f"{server.url}/model.safetensors?signature=secret", include="b.*")
        assert sum(server.sent) < 2**20 < path.stat().st_size
    assert report.rows[0].lower <= np.linalg.norm(small, 2) <= report.rows[0].upper
    assert report.file == f"{server.url}/model.safetensors"


def test_formats_that_are_not_read_in_parts_say_so(tmp_path, memory):
    for name in ("a.keras", "a.onnx", "a.h5"):
        with pytest.raises(CheckpointError, match="not from a URL: download it first"):
            open_checkpoint(memory(FILES[name](tmp_path / name)))


def test_a_server_that_does_not_serve_parts_is_named(tmp_path):
    write(tmp_path / "model.safetensors", {"w.weight": np.zeros((400, 400)), "x.weight": np.eye(3)})
    with serving(tmp_path, ranges=False) as server:
        url = f"{server.url}/model.safetensors"
        with pytest.raises(CheckpointError, match=f"Cannot read '{url}': bytes .* could not be had"):
            open_checkpoint(url).weights[1].read()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/a.npz", "there is no such file"),
        ("{}/missing.npz", "there is no such file"),
        ("{}/broken.npz", "could not be reached"),
        ("http://127.0.0.1:1/a.npz", "could not be reached"),
        ("nonsense://a/b.npz", "Protocol not known: nonsense"),
        ("http://[/a.npz", ""),
        ("memory://", ""),
    ],
)
def test_what_cannot_be_reached_is_named_in_one_line(tmp_path, url, message):
    with serving(tmp_path) as server:
        url = url.format(server.url)
        with pytest.raises(CheckpointError, match=re.escape(f"Cannot read '{url}': ") + f".*{message}") as caught:
            open_checkpoint(url)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_is_gone_is_a_reason(tmp_path):
    path = write(tmp_path / "model.safetensors", {"w.weight": np.eye(3)})
    with serving(tmp_path) as server:
        checkpoint = open_checkpoint(f"{server.url}/model.safetensors")
        path.unlink()
        with pytest.raises(CheckpointError, match="could not be had"):
            checkpoint.weights[0].read()


def test_without_fsspec_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(CheckpointError, match=r"needs fsspec: pip install 'opnorm\[remote\]'"):
        open_checkpoint("s3://bucket/model.safetensors")


def test_a_path_of_the_disk_is_no_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("memory:").mkdir()
    np.save(Path("memory:") / "a.npy", np.eye(2))
    assert len(open_checkpoint("memory:/a.npy").weights) == 1
