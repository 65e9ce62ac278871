"""KT4xx: what an override changes."""

from kerneltable.table.rule import Rule

RULES = (
    Rule("KT401", "order as a bare list", "A list would be read as the whole order by one person and as an addition "
         "by the next. Verbs say which.", "routes: {mxfp8: {cuda: [reference]}}",
         "routes: {mxfp8: {cuda: {order: {prepend: [reference]}}}}",
         "Use prepend, append, remove, before or after; or replace for the whole order."),
    Rule("KT402", "replace beside other verbs", "`replace` is the whole new order; the other verbs would change it "
         "at once.", "order: {replace: [a, b], remove: [b]}", "order: {replace: [a]}", "Keep `replace` alone."),
    Rule("KT403", "kernel not in the route", "The override speaks of a kernel that the route does not list; perhaps "
         "the table changed.", "order: {remove: [reference_2]}", "order: {remove: [reference]}",
         "Correct the name; to add a kernel use prepend or append."),
    Rule("KT404", "row claims more", "A row states what was measured and tested. Less is free; more must be said "
         "aloud, with the reason. So must a family that reaches further: the rows that name it follow.",
         "accepts: {k: {multiple_of: 64}}",
         "accepts: {k: {multiple_of: 64}}\nunsafe: true\nreason: measured on our H200, ticket 1234",
         "Add `unsafe: true` and `reason`, or narrow the limit."),
    Rule("KT405", "changes nothing", "The table says so already, or the kernel is in no route: the override is stale "
         "or misses its aim.", "", "", "Take it out.", "warning"),
    Rule("KT406", "not what was expected", "The override was written against another table; nothing of it is "
         "applied.", "expects: {order_head: {mxfp8/cuda: reference}}", "", "Look what changed, then correct it."),
    Rule("KT407", "require and prefer together", "`require` admits one kernel; `prefer` wants a fallback.",
         "{require: a, prefer: b}", "{require: a}", "Keep one of them."),
    Rule("KT408", "route left empty", "No kernel could serve the scheme on this platform any more.",
         "order: {remove: [reference]}", "order: {remove: [reference]}  # and allow_empty: true",
         "Leave a kernel, or say `allow_empty: true`."),
    Rule("KT409", "kernel in two places of one order", "Verbs apply in a fixed sequence, so that one of the two would "
         "be undone.", "order: {prepend: [a], remove: [a]}", "order: {prepend: [a]}", "Keep one of them."),
    Rule("KT410", "required and switched off", "The route requires a kernel that `disable` switches off: no layer "
         "could be served.", "", "", "Keep one of the two."),
    Rule("KT411", "preferred and switched off", "The route prefers a kernel that `disable` switches off: the rest of "
         "the order decides.", "", "", "Keep one of the two.", "warning"),
    Rule("KT412", "conditions of other steps", "An order verb speaks of one step of a kernel that has others with a "
         "`when`. Those are kept, moved with their conditions, or left out because the step now stands in front of "
         "them without one; a verb never changes a condition.", "", "",
         "Nothing to do when it is meant; else write the whole order with `replace`.", "note"),
)  # fmt: skip
