"""Why a text is not YAML, in our own words: those of the library differ between its two readers."""

from __future__ import annotations

_SYNTAX = (
    ("escape", "KT105", "this escape in a quoted text is not a character", "write the character itself"),
    ("hex", "KT105", "this escape in a quoted text is not a character", "write the character itself"),
    ("tag", "KT110", "a tag cannot be used here", "take the tag out; text that starts with ! needs quotes"),
    ("alias", "KT108", "an anchor or alias cannot be used here", "text that starts with & or * needs quotes"),
    ("anchor", "KT108", "an anchor or alias cannot be used here", "text that starts with & or * needs quotes"),
    ("mapping values", "KT101", "a colon and a space start a value here", "quote a text that holds a colon"),
    ("cannot start any token", "KT101", "a text cannot start with this character", "quote the text"),
    ("quoted scalar", "KT101", "a quoted text is not closed", "close the quotes"),
    ("flow", "KT101", "a bracket is not closed, or a comma is missing", "look at the brackets of this line"),
    ("could not find expected ':'", "KT101", "a key without its colon", "write `key: value`"),
    ("block", "KT101", "the indentation does not fit the lines above", "line the keys up"),
)


def explain(error: Exception) -> tuple[str, str, str]:
    """Code, message and next step for an error of the YAML reader; anything but its own errors is a bad escape."""
    said = f"{getattr(error, 'context', '')} {getattr(error, 'problem', '')}"
    if not hasattr(error, "problem") and isinstance(error, ArithmeticError | ValueError):
        said = "escape"
    found = next((row[1:] for row in _SYNTAX if row[0] in said), None)
    return found or ("KT101", "this is not YAML", "look at the line above too")
