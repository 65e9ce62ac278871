"""A baseline: findings that are known already and do not block. It is what `check --format json` wrote earlier."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kerneltable.errors import Finding, ProblemError

LARGEST_BASELINE = 4 << 20
Print = tuple[str, str, str, str]


def fingerprint(finding: Finding) -> Print:
    """What a finding is, whatever line it stands on."""
    return finding.code, finding.mark.file, finding.path, finding.message


def read_baseline(path: str) -> Counter[Print]:
    """The fingerprints of a baseline, each as often as it stands there.

    errors   ProblemError when the file is no answer of `check --format json`, OSError when it cannot be read
    """
    with Path(path).open("rb") as file:
        data = file.read(LARGEST_BASELINE + 1)
    try:
        if len(data) > LARGEST_BASELINE:
            raise ValueError
        answer = json.loads(data)
        rows = [*answer["findings"], *answer.get("known", [])]
        return Counter((str(r["code"]), str(r["file"]), str(r["path"]), str(r["message"])) for r in rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        step = "write it with `kerneltable check --format json`"
        raise ProblemError(f"{path}: this is no baseline of at most {LARGEST_BASELINE} bytes; {step}") from None


def divide(
    findings: Sequence[Finding], known: Counter[Print], *, usable: bool
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The new findings and the known ones.

    usable   whether the table can be used; of one that cannot, an error stays new: nothing could be rolled out with it
    """
    left = Counter(known)
    new: list[Finding] = []
    old: list[Finding] = []
    for finding in findings:
        is_known = left[fingerprint(finding)] > 0 and (usable or finding.severity != "error")
        left[fingerprint(finding)] -= is_known
        (old if is_known else new).append(finding)
    return tuple(new), tuple(old)
