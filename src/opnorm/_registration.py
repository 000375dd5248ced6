"""Keras finds opnorm's classes by name as soon as both packages are imported, in whichever order."""

from importlib import import_module
from types import ModuleType

from wrapt import register_post_import_hook


def _register(keras: ModuleType) -> None:
    # Keras 2 (TF1-style code with `opnorm.tf1`) has nothing to register with, and must stay importable.
    if int(keras.__version__.split(".")[0]) >= 3:
        import_module("opnorm.keras.slots")
        import_module("opnorm.keras.constraints")
        import_module("opnorm.keras.layers")
        import_module("opnorm.keras.composites")
        import_module("opnorm.keras.projections")
        import_module("opnorm.keras.regularizers")
        import_module("opnorm.keras.wrappers")
        import_module("opnorm.keras.exporting")


def register_with_keras() -> None:
    """Import opnorm's Keras classes now if Keras is imported, else right after it is."""
    register_post_import_hook(_register, "keras")
