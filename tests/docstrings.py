"""Run the examples of docstrings: each must run, and where one shows an answer, it must be that one."""

import doctest
import inspect
import io
from contextlib import redirect_stdout


def examples(thing):
    """Return the examples in the docstring of `thing`."""
    return doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")


def run(thing, namespace):
    """Run the examples of `thing`, one after another, in `namespace`."""
    for example in examples(thing):
        shown = io.StringIO()
        with redirect_stdout(shown):
            exec(compile(example.source, f"<example of {thing}>", "single"), namespace)
        assert not example.want or shown.getvalue() == example.want, example.source
