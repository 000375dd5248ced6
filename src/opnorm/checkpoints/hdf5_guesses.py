"""What a tensor of an HDF5 file probably does, where no layer of Keras's is known for it."""

from collections.abc import Mapping

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import Named, guess
from opnorm.checkpoints.records import Geometry

_SETTLED = (g.OPTIMIZER, g.COUNTER, g.BIAS, g.MEAN)  # these have no norm of their own, however many axes they have
CODES = ("int8", "uint8", "int4", "uint4")  # of which a quantized kernel may be made


def beside_codes(tensor: Named, others: Mapping[str, Named]) -> bool:
    """Return whether a tensor of several axes stands beside what may be the codes of a kernel, and may scale them."""
    coded = any(other.dtype in CODES and len(other.shape) > 1 for other in others.values())
    return coded and len(tensor.shape) > 1


def plain_guess(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    """Return the guess for a tensor of a file that need not be Keras's; a kernel is read in both usual layouts."""
    found = careful(guess(tensor, others), tensor)
    if found.operator is None or len(tensor.shape) < 3:
        return found
    other = guess(as_kernel(tensor), others)
    if other.text == found.text:  # its name says already that it is Keras's
        return found
    texts = {one.text for one in found.readings if one.kind == "unknown"}  # these do not depend on the layout
    more = (one for one in other.readings if one.text not in texts)
    return found._replace(readings=(*found.readings, other._replace(readings=()), *more))


def careful(found: Geometry, tensor: Named) -> Geometry:
    """Return a guess that lets no tensor of several axes pass for harmless only because it was not understood."""
    if found.operator is not None or len(tensor.shape) < 2 or tensor.dtype == "bool" or found.reason in _SETTLED:
        return found
    if "int" in tensor.dtype and tensor.dtype not in CODES:
        return found
    return found._replace(text="unknown", unknown=True)


def as_kernel(tensor: Named) -> Named:
    """Return a tensor from whose name the guess takes Keras's layout: channels last."""
    return tensor if len(tensor.shape) < 2 else tensor._replace(name=f"{tensor.name}/kernel")
