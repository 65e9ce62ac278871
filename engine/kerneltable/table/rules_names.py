"""KT3xx: what the table says, across its sections."""

from kerneltable.table.rule import Rule

RULES = (
    Rule("KT301", "unknown kernel", "Routes, errata and overrides name rows of `kernels`.",
         "cpu: [refrence]", "cpu: [reference]", "Correct the name, or add the row."),
    Rule("KT302", "unknown scheme", "The name is not a key of `schemes`.", "schemes: [fp8_w8a9]",
         "schemes: [fp8_w8a8]", "Correct the name, or add the scheme."),
    Rule("KT303", "unknown platform", "The name is not a key of `platforms`.", "runs_on: {cudo: {portable: true}}",
         "runs_on: {cuda: {portable: true}}", "Correct the name, or add the platform."),
    Rule("KT304", "unknown architecture", "The name is not an architecture of this platform.",
         "devices: {h200: sm91}", "devices: {h200: sm90}", "Correct the name, or add the architecture."),
    Rule("KT305", "unknown feature", "No architecture of the platform has the feature, so the row could never run.",
         "features: [mma_fp9]", "features: [mma_fp8]", "Correct the name, or give the feature to an architecture."),
    Rule("KT306", "unknown family", "The name is not a family of this platform.", "families: [sm13x]",
         "families: [sm12x]", "Correct the name, or add the family."),
    Rule("KT307", "unknown device", "`verified` names devices of the table, so that a reader knows which chip is "
         "meant.", "verified: [{device: h2000, date: '2026-11-21'}]",
         "verified: [{device: h200, date: '2026-11-21'}]", "Correct the name, or add the device."),
    Rule("KT308", "architectures copy each other", "`like` leads back to where it started.",
         "sm80: {like: sm86}\nsm86: {like: sm80}", "sm80: {features: []}\nsm86: {like: sm80}",
         "Write the features of one of them out."),
    Rule("KT309", "capability that cannot be", "Only cuda counts compute capabilities and compiles for "
         "targets; smXY means X.Y.",
         "sm90: {capability: '9.1'}", "sm90: {capability: '9.0'}", "Correct it, or leave it out."),
    Rule("KT310", "feature change that changes nothing", "`adds` names features that the copied architecture lacks, "
         "`removes` those that it has; anything else is a slip.", "sm89: {like: sm86, removes: [wgmma]}",
         "sm89: {like: sm86, adds: [mma_fp8]}", "Take the feature out of the list."),
    Rule("KT311", "empty range", "The minimum is above the maximum; both ends are included.", "n: {min: 64, max: 32}",
         "n: {min: 32, max: 64}", "Change one of the ends."),
    Rule("KT312", "range without a multiple", "No number between the ends is a multiple of `multiple_of`.",
         "n: {min: 65, max: 127, multiple_of: 64}", "n: {min: 64, max: 128, multiple_of: 64}", "Widen the range."),
    Rule("KT313", "open range for code that is not portable", "Code compiled for given chips does not run on chips "
         "that come later; a range without an upper end would promise that.", "cuda: {capability: {min: '9.0'}}",
         "cuda: {capability: {min: '9.0', max: '9.9'}}",
         "Add `max`, or name families; say `portable: true` for code that is compiled on the spot."),
    Rule("KT314", "step that cannot be reached", "The first step of a kernel without `when` decides; a second one "
         "never counts.", "cuda: [reference, reference]", "cuda: [reference]", "Keep one of them."),
    Rule("KT315", "kernel in no route", "Nothing can choose this kernel.", "", "", "Add it to a route.", "warning"),
    Rule("KT316", "platform without a route", "A layer of this scheme has no kernel on this platform.",
         "", "", "Add a route; `reference` serves every chip of the platforms that its row names.", "warning"),
    Rule("KT317", "route without a last resort", "A layer that the last kernel refuses has no kernel at all.",
         "cuda: [triton_fp8_block]", "cuda: [triton_fp8_block, reference]", "End the route with `reference`.",
         "warning"),
    Rule("KT318", "alias that means two things", "A tensor's name must mean one parameter.",
         "weight: {aliases: [w]}\nbias: {aliases: [w]}", "weight: {aliases: [w]}\nbias: {}", "Take one alias out."),
    Rule("KT319", "parameter that no scheme has", "A row's constructor gets the tensors of its schemes; this name is "
         "neither a parameter nor an alias there.", "parameters: [weight, weigth_scale]",
         "parameters: [weight, weight_scale]", "Correct the name."),
    Rule("KT320", "required tensor not taken", "A scheme of the row requires a tensor that the row does not take, so "
         "its value would be ignored.", "parameters: [weight]", "parameters: [weight, weight_scale]",
         "Add the parameter, or take the scheme out of `accepts`."),
    Rule("KT321", "constructor does not take it", "The row promises a parameter that the kernel's constructor does "
         "not have; building the layer would fail.", "", "", "Correct the row or the constructor."),
    Rule("KT322", "constructor requires more", "The constructor has a required parameter that the row does not list.",
         "", "", "Add it to the row's `parameters`."),
    Rule("KT323", "kernel not registered", "A row's id is the name of a file in kernels/, or is announced by a "
         "package. There is neither.", "", "", "Correct the id, or add the file."),
    Rule("KT324", "registered kernel without a row", "The code is there, and nothing can choose it.", "", "",
         "Add a row.", "warning"),
    Rule("KT325", "unknown accumulator", "The accumulator states the error bound; kerneltable.formats defines them.",
         "accumulator: f23", "accumulator: f32", "Take one of the known names."),
    Rule("KT326", "version bounds", "Bounds are >=, >, <=, <, == or != and a number, separated by commas.",
         "torch: '~=2.10'", "torch: '>=2.10,<3'", "Write the bounds out."),
    Rule("KT327", "no such day", "A day is year-month-day, and in the calendar.", "until: '2027-02-30'",
         "until: '2027-02-28'", "Correct the day."),
    Rule("KT328", "end date has passed", "The row said until when it would be needed.", "until: '2020-01-01'",
         "until: '2099-01-01'", "Look whether it still holds; take it out or move the day.", "warning"),
    Rule("KT329", "step that can never be chosen", "The kernel's own row refuses every problem of this route: another "
         "scheme, or another platform.", "", "", "Take the step out, or correct the row."),
    Rule("KT331", "two architectures with one capability", "A device reports its capability; it must lead to one "
         "architecture.", "sm90: {features: []}\nhopper: {capability: '9.0', features: []}", "sm90: {features: []}",
         "Keep one of them."),
    Rule("KT332", "name of two chips", "A device or architecture name must lead to one chip, on all platforms "
         "together and within each.", "devices: {sm90: sm80}", "devices: {a100: sm80}",
         "Rename one of them."),
    Rule("KT333", "copied target that the chip cannot run", "`like` copies the compile target too. Code for sm_90a "
         "runs on 9.0 alone, for sm_120f and sm_80 on chips of their major number from there on; on another chip no "
         "kernel compiled for it can be loaded.", "sm100: {like: sm90}", "sm100: {like: sm90, target: sm_100f}",
         "Write the chip's own `target`.", "warning"),
    Rule("KT334", "feature that nothing asks for", "An override gives a chip a feature that no row asks for and no "
         "chip of the table has: a misspelt name would say nothing.", "sm129: {like: sm120, adds: [mma_pf8]}",
         "sm129: {like: sm120, adds: [wgmma]}", "Correct the name; nothing to do when rows will follow.", "note"),
    Rule("KT335", "too many multiples of one size", "What `check` proves is worked out for every set of sizes that the "
         "table tells apart. Numbers that do not divide each other double the sets one by one: 24 of them make "
         "millions.", "", "", "Use multiples that divide each other, or fewer of them."),
    Rule("KT336", "verified in the future", "`verified` states a run that has taken place. One day ahead is taken, "
         "since days begin earlier elsewhere.", "verified: [{device: h200, date: '2099-01-01'}]",
         "verified: [{device: h200, date: '2026-11-21'}]", "Write the day of the run.", "warning"),
)  # fmt: skip
