"""What is known about one code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One code of `check`.

    severity  "error" makes the files unusable; "warning" and "note" do not
    text      what the rule is for
    bad, good the smallest example of each; "" where a file cannot show it
    fix       the way out
    """

    code: str
    title: str
    text: str
    bad: str
    good: str
    fix: str
    severity: str = "error"
