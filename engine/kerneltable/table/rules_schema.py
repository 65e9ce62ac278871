"""KT2xx: the shape of the file (schema/*.json)."""

from kerneltable.table.rule import Rule

RULES = (
    Rule("KT201", "unknown key", "A key that nothing reads is a limit that does not hold: a misspelt `multipleof` "
         "would let every size pass.", "n: {multipleof: 64}", "n: {multiple_of: 64}", "Take the nearest key."),
    Rule("KT202", "missing key", "The section or row is not complete without this key.",
         "numerics: {accumulator: f32}", "numerics: {accumulator: f32, deterministic: true, batch_invariant: false}",
         "Add the key; the message shows an example."),
    Rule("KT203", "wrong type", "Text, whole number, truth value, list and mapping are told apart.",
         "n: {min: '64'}", "n: {min: 64}", "Write the type that the message names."),
    Rule("KT204", "not one of the values", "The key takes only the values listed.", "kind: fast", "kind: native",
         "Take one of the listed values."),
    Rule("KT205", "wrong form", "Names are lower case ASCII; capabilities are major.minor; blocks are rows x columns.",
         "weight_block: ['128']", "weight_block: ['128x128']", "Follow the example in the message."),
    Rule("KT206", "number out of bounds", "Sizes go from 1 to 2147483647.", "n: {multiple_of: 0}",
         "n: {multiple_of: 16}", "Use a number inside the bounds."),
    Rule("KT207", "too few or too many", "An empty list or mapping says nothing; a very long one is a mistake.",
         "input: []", "input: [bf16]", "Fill it, or take the key out."),
    Rule("KT208", "value twice in a list", "The second one changes nothing, so something else was meant.",
         "input: [bf16, bf16]", "input: [bf16, f16]", "Keep one of them."),
    Rule("KT209", "key that does not fit its neighbours", "Some keys make sense only together: `verified` with "
         "status verified, `adds` with `like`, `block` with granularity block.",
         "status: unverified\nverified: [{device: h200, date: '2026-11-21'}]",
         "status: verified\nverified: [{device: h200, date: '2026-11-21'}]", "Change one of the two keys."),
    Rule("KT210", "version of the format", "A file of another version may mean other things by the same keys; it is "
         "never guessed.", "table: 2", "table: 1", "Use the kerneltable that reads this version."),
)  # fmt: skip
