"""How the site shows docstrings: an extension of Griffe, which reads them for mkdocstrings.

In docstrings a line that begins with names and a colon is about these arguments; on a page it is an entry of a list. A
field without a docstring has the comment that follows it, or the help of its `parameter`.
"""

import ast
import re
from typing import Any

import griffe

ENTRY = re.compile(r"(?m)^((?:[a-z_]+, )*[a-z_]+(?: and [a-z_ ]+)?): (?=\S)(.*(?:\n[ ]+\S.*)*)")


class Docstrings(griffe.Extension):
    """Applied to everything that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for modules, classes, functions and attributes, once all of it is known."""
        if obj.docstring is not None:
            obj.docstring.value = with_entries(obj.docstring.value)
        elif isinstance(obj, griffe.Attribute) and (text := described(obj)):
            obj.docstring = griffe.Docstring(text, parent=obj)


def with_entries(text: str) -> str:
    """The text with an entry of a list for each argument."""

    def entry(m: re.Match[str]) -> str:
        names = re.sub(r"\w*_\w*|^\w+(?=$|,)|(?<=, )\w+$", r"`\g<0>`", m[1])
        return f"\n- {names}: " + re.sub(r"\n\s+", " ", m[2]) + "\n"

    return ENTRY.sub(entry, text)


def described(obj: griffe.Attribute) -> str | None:
    """The help of a `parameter`, or the comment at the end of the line."""
    if isinstance(obj.value, griffe.ExprCall) and str(obj.value.function) == "parameter":
        text = str(obj.value.arguments[1])
        return str(ast.literal_eval(text)) if text[:1] in "\"'" else None
    comment = re.search(r"  # (.+)$", obj.lines[-1]) if obj.lines else None
    return comment[1] if comment else None
