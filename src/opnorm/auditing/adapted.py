"""Updates of adapters: which weight of the base each is of, and the row of the two together."""

import re

from opnorm.auditing.adapter_names import Base
from opnorm.auditing.adapters import Update
from opnorm.auditing.comparison import DiffRow
from opnorm.auditing.diff_rows import Weights, row_of
from opnorm.auditing.expert_updates import of_experts, targets_parameters
from opnorm.auditing.forms import BY_EXPERT
from opnorm.auditing.lora import Product, bracket_product, decoded
from opnorm.auditing.measure import afford, reason_of, values_of
from opnorm.auditing.settings import Settings
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.records import Geometry, Weight

_CONV1D = re.compile(r"(^|\.)(c_attn|c_fc|c_proj|q_attn)$")  # layers of GPT-2's library; others store (out, in)
_WIDENING = re.compile(r"(^|\.)(c_attn|c_fc)\.weight$")  # of which these have more outputs than inputs

Target = tuple[str, Update]  # an update with the name of its weight


def targets(updates: list[Update], base: Weights) -> list[Target]:
    """Return each update with the name of its weight in the base, or with its layer's where there is none that fits."""
    names = Base(base) if updates else Base(())
    turned = _stores_inputs_first(base) if updates else None
    found = [_target(_as_stored(update, turned), names, base) for update in updates]
    layers_of: dict[tuple[str, str], set[str]] = {}
    for name, update in found:
        layers_of.setdefault((name, update.adapter), set()).add(update.layer)
    twice = "updates of it under several names: nothing says which are applied"
    return [(n, u._replace(trouble=twice) if len(layers_of[n, u.adapter]) > 1 else u) for n, u in found]


def _stores_inputs_first(base: Weights) -> bool | None:
    """Return whether the layers that GPT-2's library stores as (in, out) are so in the base, None where none tells."""
    for name, weight in base.items():
        if _WIDENING.search(name) and len(weight.shape) == 2 and weight.shape[0] != weight.shape[1]:
            return weight.shape[1] > weight.shape[0]
    return None


def _as_stored(update: Update, inputs_first: bool | None) -> Update:
    """Return the update of a square matrix as its model stores it: the configuration may be of another layer."""
    square = len(update.shape) == 2 and update.shape[0] == update.shape[1]
    known = inputs_first is not None and square and _CONV1D.search(update.layer)
    return update._replace(turned=bool(inputs_first)) if known else update


def _target(update: Update, names: Base, base: Weights) -> Target:
    for several in names.of(update.layer):
        found = _only([(name, update.fitted(base[name].shape)) for name in several], update)
        if found is not None:
            return found
    if not targets_parameters(update.config):
        return update.layer, update
    found = _only([(name, of_experts(update, base[name].shape)) for name in names.within(update.layer)], update)
    missing = "an update of a parameter that is not in the base, or of a shape that is not understood"
    return found or (update.layer, update._replace(trouble=missing))


def _only(pairs: list[tuple[str, Update | None]], update: Update) -> Target | None:
    """Return the weight that an update fits, None where it fits none; of several the reason why it is not known."""
    fitting = [(name, fitted) for name, fitted in pairs if fitted is not None]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    both = " and ".join(repr(name) for name, _ in fitting[:2])
    return update.layer, update._replace(trouble=f"it may be an update of {both}: nothing says of which")


def adapted(a: Weight | None, update: Update, settings: Settings) -> DiffRow:
    """Return the row of an update, `a` being its weight in the base, if there is one."""
    return _adapted(a, update, settings)._replace(adapter=update.adapter, rank=update.rank)


def _adapted(a: Weight | None, update: Update, settings: Settings) -> DiffRow:
    """Return the row of an adapter: the norm of the update, and with the base's weight that of what is applied."""
    name, shape = (update.layer, update.shape) if a is None else (a.name, a.shape)
    if update.trouble:
        return DiffRow(name, shape, "failed", reason=update.trouble)
    try:
        afford(shape, settings.memory_limit)
        if a is None:
            return _without_base(update, shape, settings)
        if _codes(a) and (a.geometry.operator is None or a.geometry.readings):
            reason = f"the base stores it as {a.dtype}, and it is not known what the codes stand for"
            return DiffRow(name, shape, "failed", reason=reason)
        base = decoded(values_of(a)) if _codes(a) else Product(values_of(a))
        merged, factors = update.merged(base), update.factors()
        if factors is not None and len(shape) == 2:
            errors, change = [base.error, merged.error], bracket_product(*factors)
            return row_of(a, [a, _with(a, merged)], update.kind, settings, errors, change)
        added = _change(update, merged, base)
        several = [a, _with(a, merged), _with(a, added)]
        return row_of(a, several, update.kind, settings, [base.error, merged.error, added.error])
    except Exception as error:  # as in `measure`
        return DiffRow(name, shape, "failed", reason=reason_of(error))


def _codes(weight: Weight) -> bool:
    """Return whether a weight is stored in codes, which stand for what the layer applies."""
    return not weight.dtype.startswith(("float", "bfloat")) or weight.dtype.startswith("float8")


def _change(update: Update, merged: Product, base: Product) -> Product:
    """Return what was added to a weight: of DoRA, which scales the weight too, the difference."""
    return merged.plus(-base.values, base.error) if update.kind == "DoRA" else update.added(base.values.shape)


def _without_base(update: Update, shape: tuple[int, ...], settings: Settings) -> DiffRow:
    """Return the row of an update of a weight that the base does not have."""
    missing = "the base has no weight of this name and shape"
    if update.kind == "DoRA":
        return DiffRow(update.layer, shape, "failed", reason=f"{missing}, which it scales")
    factors = update.factors()
    if factors is not None:
        return DiffRow(update.layer, shape, update.kind, difference=bracket_product(*factors), reason=missing)
    added = update.added(shape)
    weight = Weight(update.layer, shape, "float64", lambda: added.values, _alone(update, shape))
    row = row_of(weight, [weight], update.kind, settings, [added.error])
    return row._replace(base=None, difference=row.base, reason=row.reason or missing)


def _alone(update: Update, shape: tuple[int, ...]) -> Geometry:
    """Return what a layer of that shape does with an update, where no weight tells."""
    if update.form is BY_EXPERT:
        return g.stacked("experts", "a matrix for each expert: the largest of their norms", assumed=True)
    return g.channels_first("Conv", shape, g.Sliding(), assumed=True) if len(shape) > 2 else g.rows("Linear")


def _with(weight: Weight, product: Product) -> Weight:
    return weight._replace(read=lambda: product.values, dtype="float64")
