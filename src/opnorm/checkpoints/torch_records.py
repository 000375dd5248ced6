"""What PyTorch's pickles hold, as records: names of classes, tables, and every kind of tensor."""

from typing import Any, NamedTuple


class Global(NamedTuple):
    """The name of a class or function; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Table:
    """A dictionary as its pairs: keys of a stranger's choice are not hashed."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[Any, Any]]):
        self.pairs = pairs

    def get(self, key: str) -> Any:
        """Return the last value of `key`, None without one."""
        return next((value for name, value in reversed(self.pairs) if type(name) is str and name == key), None)


class Storage(NamedTuple):
    """A run of numbers in the file."""

    kind: Global
    key: str
    size: int  # in numbers


class StoredTensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Global | None  # None: the storage's
    negated: bool = False  # PyTorch negates lazily: it stands for minus its numbers

    @property
    def kind(self) -> str:
        """Return the name of its dtype, as the pickle has it."""
        return self.dtype.name if self.dtype else self.storage.kind.name


class SparseTensor(NamedTuple):
    """A tensor of which only some entries are stored."""

    layout: str  # "torch.sparse_coo", "torch.sparse_csr", ...
    parts: tuple[StoredTensor, ...]  # of COO indices and values; of CSR row starts, columns and values
    shape: tuple[int, ...]


class QuantizedTensor(NamedTuple):
    """Integers that stand for `(codes - zero) * scale`."""

    codes: StoredTensor
    scale: float | StoredTensor  # one for all, or one for each place of `axis`
    zero: int | StoredTensor
    axis: int = 0


class ConvertedTensor(NamedTuple):
    """A tensor or an array that is turned into another dtype as it is loaded."""

    stored: Any  # a StoredTensor or a NumpyArray
    dtype: Global


class NumpyType:
    """The dtype of a NumPy array: its code, completed by its state."""

    def __init__(self, code: str):
        self.code = code
        self.order = "="


class NumpyArray:
    """A NumPy array, completed by its state."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.type = NumpyType("O")
        self.fortran = False
        self.axes: tuple[int, ...] | None = None  # in which order the stored axes stand
        self.data: bytes | bytearray | None = None  # None: objects


class Unread(NamedTuple):
    """A tensor whose numbers cannot be read, and why."""

    shape: tuple[int, ...]
    dtype: str
    reason: str


class Opaque:
    """A value of an allowed class that holds no readable tensor, or a TorchScript module with its attributes."""

    def __init__(self, kind: Global):
        self.kind = kind
        self.state: Any = None


TENSORS = (StoredTensor, SparseTensor, QuantizedTensor, ConvertedTensor, NumpyArray, Unread)
Tensor = StoredTensor | SparseTensor | QuantizedTensor | ConvertedTensor | NumpyArray | Unread
