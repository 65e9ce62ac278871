"""The nearest name to one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None when none looks like it."""
    from difflib import get_close_matches

    by_fold = {known.casefold(): known for known in names}
    found = get_close_matches(name[:200].casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None


def hint(name: str, names: Iterable[str]) -> str:
    """The next step after a wrong name: "did you mean 'x'?", else the list of known names."""
    known = sorted(names)
    close = nearest(name, known)
    if close is not None:
        return f"did you mean '{close}'?"
    return f"known: {', '.join(known)}" if known else "none are known"
