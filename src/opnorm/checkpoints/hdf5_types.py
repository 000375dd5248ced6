"""What the type of an HDF5 dataset says of it, where it is no array of real numbers."""

from typing import Any

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import extra
from opnorm.checkpoints.hdf5_attributes import text_attribute
from opnorm.checkpoints.records import Geometry

_KIND = "unknown"


def typed_geometry(dataset: Any) -> Geometry | None:
    """Return the geometry of a dataset that holds no real numbers, None of one that does.

    Only what is empty or text has surely no norm.
    """
    h5py = extra("h5py")
    if dataset.shape is None or 0 in dataset.shape:
        return g.nothing(_KIND, "an empty tensor")
    dtype = dataset.dtype
    if h5py.check_string_dtype(dtype) is not None:
        return g.nothing(_KIND, "text")
    if h5py.check_ref_dtype(dtype) is not None:
        return g.unknown(_KIND, "references to other places of the file, which are not followed")
    if h5py.check_vlen_dtype(dtype) is not None:
        return g.unknown(_KIND, "rows of variable length, which are not read")
    if dtype.names is not None or dtype.subdtype is not None:
        return g.unknown(_KIND, f"the compound type {str(dtype)[:80]}, which is not read")
    if dtype.kind in "VO":
        return None if is_bfloat16(dataset) else g.unknown(_KIND, f"opaque entries of {dtype.itemsize} bytes")
    return g.unknown(_KIND, f"{dtype.name} holds no real numbers") if dtype.kind not in "fiub" else None


def is_bfloat16(dataset: Any) -> bool:
    """Return whether a dataset holds bfloat16: Keras stores it as two opaque bytes and says so in an attribute."""
    return dataset.dtype.itemsize == 2 and text_attribute(dataset, "dtype") == "bfloat16"
