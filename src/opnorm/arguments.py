"""Arguments of constructors: one that a class does not take is refused with those that it takes."""

from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any


class KnownArguments:
    """Base of classes that other packages have too, with other names of arguments."""

    if not TYPE_CHECKING:  # to type checkers it would take every argument there is

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a new object; other packages' names of its arguments are told from its own."""
            taken = signature(cls.__init__).parameters
            wrong = [name for name in kwargs if name not in taken]
            if wrong and all(one.kind is not Parameter.VAR_KEYWORD for one in taken.values()):
                known = ", ".join(name for name in taken if name != "self")
                raise TypeError(
                    f"{cls.__name__}() got an unexpected keyword argument {wrong[0]!r}; it takes {known or 'none'}"
                )
            return super().__new__(cls)
