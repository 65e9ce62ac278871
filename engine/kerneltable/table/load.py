"""The reading of a table in order: files, nodes, schema, overrides, cross-checks, Table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from itertools import islice

from kerneltable.errors import Finding, ProblemError
from kerneltable.model import Mark, Table
from kerneltable.table.build import build_table
from kerneltable.table.divisors import check_divisors
from kerneltable.table.locate import shipped
from kerneltable.table.merge import Merged, listed_kernels
from kerneltable.table.names import Signatures, collect_names
from kerneltable.table.node import Node
from kerneltable.table.nodes import read_nodes
from kerneltable.table.override import apply_override
from kerneltable.table.platforms import check_platforms
from kerneltable.table.report import Report
from kerneltable.table.routes import check_coverage, check_denials, check_routes
from kerneltable.table.rows import check_rows, check_schemes
from kerneltable.table.schema import check_schema, load_schema
from kerneltable.table.source import Source, from_file, from_shipped, from_text

Override = str | os.PathLike[str] | tuple[str, str]
SHIPPED = "dispatch.yaml"
MOST_OVERRIDES = 1000
"""Of one reading, so that it takes a bounded time: about 0.3 s."""


def read(
    path: str | os.PathLike[str] | None,
    overrides: Iterable[Override] | str | os.PathLike[str],
    *,
    signatures: Signatures | None = None,
    today: date | None = None,
    loader: str | None = None,
    plugins: bool = True,
    any_writer: bool = False,
) -> tuple[Table | None, tuple[Finding, ...]]:
    """Read, merge and check; the table is None when a finding is an error.

    any_writer  take override files that others can write
    plugins lay the layers of installed packages over the shipped table, below the overrides
    today   the day that end dates are held against; None is the present day
    loader  "c" or "python" (nodes.read_nodes); None is the best there is
    """
    report = Report(today or date.today())
    table_source = _open_table(path, report)
    override_sources = _plugin_sources(report) if path is None and plugins else []
    override_sources += _given_sources(overrides, report, strict=not any_writer)
    sources = [table_source, *override_sources]
    report.layers = tuple(source.layer.name for source in sources)
    schema = load_schema("dispatch")
    root = _nodes(table_source, report, loader)
    if root is not None and not _is_a("table", root, report):
        root = None
    if root is not None:
        check_schema(root, schema, report)
    layers_above = _override_nodes(override_sources, report, loader)
    merged = _merge(root, layers_above, schema, report)
    if merged is not None:
        names = collect_names(merged.root)
        check_platforms(merged.root, names, report)
        check_schemes(names, report)
        check_rows(merged.root, names, report, signatures)
        sound = not report.failed
        check_routes(merged, names, report)
        if sound:  # what no route lists is a question for a table whose routes could be read
            check_coverage(merged, names, report)
        check_denials(merged, names, report)
        check_divisors(merged, names, report)
    layers = tuple(source.layer for source in sources)
    failed = report.failed or merged is None
    table = None if failed or merged is None else build_table(merged, layers)
    return table, report.finish({layer.name: layer.text for layer in layers})


def _open_table(path: str | os.PathLike[str] | None, report: Report) -> Source:
    if path is None:
        return from_shipped(SHIPPED, shipped(SHIPPED).read_bytes(), report)
    return from_file(path, report, strict=False)


def _plugin_sources(report: Report) -> list[Source]:
    """The layers of installed packages. Their files are as trusted as the code beside them: no look at owners."""
    from kerneltable.table.plugins import plugin_files

    return [from_file(path, report, strict=False) for path in plugin_files()]


def each_override(overrides: Iterable[Override] | str | os.PathLike[str]) -> Iterator[Override]:
    """The overrides that a caller gave; one path stands for itself and is not read letter by letter.

    errors   ProblemError for what is neither a path nor a list of paths and (name, text) pairs
    """
    wanted = "overrides must be a list of paths or of (name, text) pairs, or one path"
    if isinstance(overrides, str | os.PathLike):
        yield overrides
        return
    if not isinstance(overrides, Iterable) or isinstance(overrides, bytes | Mapping):
        raise ProblemError(f"{wanted}; found {type(overrides).__name__}: write overrides=['deploy.yaml']")
    for place, item in enumerate(overrides):
        is_pair = isinstance(item, tuple) and [type(part) for part in item] == [str, str]
        if not is_pair and not isinstance(item, str | os.PathLike):
            raise ProblemError(f"{wanted}; item {place} is {type(item).__name__}: write overrides=['deploy.yaml']")
        yield item


def _given_sources(
    overrides: Iterable[Override] | str | os.PathLike[str], report: Report, *, strict: bool
) -> list[Source]:
    given = tuple(islice(each_override(overrides), MOST_OVERRIDES + 1))
    if len(given) > MOST_OVERRIDES:
        message = f"more than {MOST_OVERRIDES} overrides were given"
        report.add("KT123", message, Mark("overrides", 1, 1), help="join them into fewer files")
        return []
    return [_open_override(item, report, strict) for item in given]


def _open_override(item: Override, report: Report, strict: bool) -> Source:
    if isinstance(item, tuple):
        return from_text(item[0], item[1], report)
    return from_file(item, report, strict=strict)


def _nodes(source: Source, report: Report, loader: str | None) -> Node | None:
    return None if source.text is None else read_nodes(source.text, source.layer.name, report, loader=loader)


def _is_a(wanted: str, node: Node, report: Report) -> bool:
    """Whether a file is of the wanted kind, "table" or "override"; one finding when it says that it is the other."""
    other = "table" if wanted == "override" else "override"
    if other not in node.keys or wanted in node.keys:
        return True
    article = {"table": "a table", "override": "an override"}
    help = {
        "table": "give it with -f: `kerneltable check -f FILE`, load_table(overrides=[FILE])",
        "override": "give it without -f: `kerneltable check FILE`, elsewhere --table FILE, load_table(FILE)",
    }[wanted]
    message = f"this file is {article[other]}; {article[wanted]} is wanted here"
    report.add("KT126", message, node.keys[other], length=len(other), help=help)
    return False


def _override_nodes(sources: list[Source], report: Report, loader: str | None) -> list[Node] | None:
    """The overrides' nodes, each held against its schema; None when one of them cannot be laid over the table."""
    if not sources:
        return []
    schema = load_schema("override")
    good: list[Node] = []
    for source in sources:
        before = len(report.findings)
        node = _nodes(source, report, loader)
        if node is not None and not _is_a("override", node, report):
            continue
        if node is not None and node.entries():  # an empty mapping says on purpose: no changes
            check_schema(node, schema, report)
        if node is not None and len(report.findings) == before:
            good.append(node)
    return good if len(good) == len(sources) else None


def _merge(root: Node | None, overrides: list[Node] | None, schema: dict[str, object], report: Report) -> Merged | None:
    """The table with the overrides laid over it; they are left out when a file is not sound in itself."""
    if root is None:
        return None
    merged = Merged(root, listed=listed_kernels(root))
    if overrides is None or report.failed:
        return merged
    for override in overrides:
        apply_override(merged, override, report)
    sections = schema["properties"]
    for section in sorted(merged.touched):
        node = merged.root.at(section)
        if node is not None and isinstance(sections, dict):
            check_schema(node, sections[section], report, (section,))
    return merged
