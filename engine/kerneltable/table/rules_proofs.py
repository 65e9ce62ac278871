"""KT5xx: what `check` proves about a table that can be read, see kerneltable.select.lint."""

from kerneltable.table.rule import Rule

RULES = (
    Rule("KT501", "step that accepts nothing", "The limits of the row (and of the step's `when`) contradict each other "
         "or fit no chip of the platform, whatever is installed.",
         "cuda: [{kernel: triton_w8a16, when: {architectures: [sm70]}}, reference]", "cuda: [triton_w8a16, reference]",
         "Correct the limits, or take the step out.", "warning"),
    Rule("KT502", "step that others hide", "The steps before it take every problem that it accepts, on every chip and "
         "whatever is installed, so it is never the first choice.", "cuda: [triton_w8a16, triton_fp8_block, reference]",
         "cuda: [triton_fp8_block, triton_w8a16, reference]",
         "Move it forward, narrow the steps that hide it, or take it out.", "warning"),
    Rule("KT503", "last resort that others hide", "The kernels before it take everything. It still serves when one of "
         "these cannot be built on a machine, so this is worth knowing and no mistake.", "", "",
         "Nothing to do.", "note"),
    Rule("KT504", "problems that nothing takes", "On these chips a layer in this region has no kernel; only torch, "
         "triton and kerneltable are taken to be installed. What a `require`, a demand of `plans` or a `disable` takes "
         "away is one finding at its line; where a kernel is required, every package is taken to be installed.",
         "cuda: [triton_fp8_block]", "cuda: [triton_fp8_block, reference]",
         "End the route with `reference`, widen a row, or limit what the override takes away.", "warning"),
    Rule("KT505", "problems left to slow kernels", "On these chips a kernel of kind emulation or reference wins this "
         "region; only torch, triton and kerneltable are taken to be installed.", "", "",
         "Nothing to do when it is meant; else add a portable row with wider limits.", "note"),
    Rule("KT506", "chip left behind", "A chip that comes later, or has all features of another one, falls back to slow "
         "kernels for problems that the other one has a fast kernel for. A row was bounded and nobody looked again.",
         "", "", "See whether the fast kernel runs there, and widen its `runs_on`.", "warning"),
    Rule("KT507", "row without its limit", "A row accepts problems on a chip that it is not made for: native FP8 code "
         "on a chip without FP8 units, or code for given chips that names none. Only its place in the route keeps it "
         "away, and the first reorder exposes it.", "runs_on: {cuda: {portable: true}}",
         'runs_on: {cuda: {portable: true, capability: {min: "8.9"}}}',
         "Give the row a lower bound or the feature that it needs.", "warning"),
    Rule("KT508", "too many weight layouts", "As m changes, one layer would use kernels of more packed weight layouts "
         "than `plans.weight_copies` allows; each is a copy of the weights. The first ones in the route's order have "
         "their copy, the steps of the others are refused for such a layer.", "", "",
         "Let kernels share a layout, join bands of m, or set `weight_copies` higher.", "warning"),
    Rule("KT509", "erratum that never holds", "The row and the `when` of the erratum have no problem in common on any "
         "chip, or no route lists the kernel there, so the erratum denies nothing.",
         "{deny: cpu_fp8, when: {platform: cuda}}", "{deny: cpu_fp8, when: {platform: cpu}}",
         "Correct the condition, or take the erratum out.", "warning"),
    Rule("KT510", "decision that changes", "`diff` found problems that get another kernel, or the same one with "
         "another kind, numerics or layout.", "", "", "Look whether the change is meant.", "warning"),
    Rule("KT511", "decision that becomes slow", "`diff` found problems that lose their fast kernel to an emulation, to "
         "the reference, or to nothing.", "", "", "Look whether the change is meant.", "error"),
    Rule("KT520", "kernel that cannot be loaded here", "`check --deep` loads every registered kernel. This one needs "
         "something that this machine does not have.", "", "", "Install what is missing, or check elsewhere.", "note"),
    Rule("KT521", "kernel that does not take its own row", "`check --deep` constructs each kernel with tensors that "
         "have no storage, for the smallest problem of its row; the constructor failed.", "", "",
         "Correct the row or the constructor.", "error"),
    Rule("KT522", "device code that does not compile", "`check --deep` compiles every kernel for every architecture "
         "that its row names.", "", "", "Correct the code, or take the architecture out of the row.", "error"),
    Rule("KT523", "not checked on this machine", "A compiler that `check --deep` would need is not here, or the kernel "
         "asks its device before it can be constructed.", "", "", "Check on a machine that has it.", "note"),
    Rule("KT524", "kernel that its canary did not survive", "`check --canary` runs each kernel that fits this machine "
         "in a process of its own. This one hung, crashed, failed or computed wrong numbers.", "", "",
         "Disable it in an override until it is repaired.", "error"),
)  # fmt: skip
