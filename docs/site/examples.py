"""Let mkdocstrings show the examples of docstrings as code: it knows `Examples:`, and the source says `Example:`."""

import re

import griffe


class Examples(griffe.Extension):
    """Renames the section, in the pages alone."""

    def on_object(self, *, obj, **kwargs):
        """Rename the section in the docstring of `obj`."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
