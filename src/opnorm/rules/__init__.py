"""What is done to a kernel: pure functions with state, over one kernel or many together.

A rule is `(kernel, state) -> (kernel, state)`, on the tensors of whichever framework. It knows no optimizer and no
module: a front end says where the state lives and when the rule is called.
"""

from opnorm.rules.clipping import Clip
from opnorm.rules.constraints import Constraint, MaxSpectralNorm, Orthogonal, SpectralClip, SpectralNorm
from opnorm.rules.normalizing import Normalizer
from opnorm.rules.norms import Operator, Question, find_norms, first_vectors
from opnorm.rules.orthogonal import Orthogonalize
from opnorm.rules.products import first_product_vectors, product_norm
from opnorm.rules.scaling import Scale
from opnorm.rules.targets import Target, require_matrix, target_of, to_least
from opnorm.rules.together import Rule, find, overwrite, updated

__all__ = [
    "Clip",
    "Constraint",
    "MaxSpectralNorm",
    "Normalizer",
    "Operator",
    "Orthogonal",
    "Orthogonalize",
    "Question",
    "Rule",
    "Scale",
    "SpectralClip",
    "SpectralNorm",
    "Target",
    "find",
    "find_norms",
    "first_product_vectors",
    "first_vectors",
    "overwrite",
    "product_norm",
    "require_matrix",
    "target_of",
    "to_least",
    "updated",
]
