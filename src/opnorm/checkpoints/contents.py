"""What a file holds, by its first bytes."""

from collections.abc import Sequence

from opnorm.checkpoints.archives import ARCHIVE

START = 256  # bytes that tell it
ZIP, PICKLE, JSON, ELSE = "a zip archive", "a pickle", "JSON", "something else"
SAFETENSORS, HDF5, NUMPY = "safetensors", "HDF5", "a NumPy array"
GGUF, TFLITE = "GGUF", "a TensorFlow Lite model"
_MAGIC = {b"\x89HDF\r\n\x1a\n": HDF5, ARCHIVE: ZIP, b"\x93NUMPY": NUMPY, b"\x80": PICKLE, b"GGUF": GGUF}
_OLD_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the number that files from before PyTorch 1.6 begin with, pickled


def content(start: bytes) -> str:
    """Return what a file holds that begins so."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
        return SAFETENSORS  # first: the length it begins with may begin as a pickle does
    for magic, found in _MAGIC.items():
        if start.startswith(magic):
            return found
    if start[4:8] == b"TFL3":
        return TFLITE
    return JSON if start.lstrip()[:1] == b"{" else ELSE


def is_old_torch(start: bytes) -> bool:
    """Return whether a pickle is PyTorch's, from before it wrote archives."""
    return start[2:].startswith(_OLD_TORCH)


def kind_of_archive(names: Sequence[str]) -> str:
    """Return whose archive has members of these names: an ending of such files, or "" where it is nobody's."""
    if "model.weights.h5" in names:
        return ".keras"
    if any(name.endswith("/data.pkl") and name.count("/") == 1 for name in names):
        return ".pt"
    return ".npz" if names and all(name.endswith(".npy") for name in names) else ""
