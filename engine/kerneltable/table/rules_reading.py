"""KT1xx: from bytes to values."""

from kerneltable.table.rule import Rule

RULES = (
    Rule("KT101", "not YAML", "The text breaks the grammar of YAML, so nothing after this place can be understood.",
         "kernels: [a, b", "kernels: [a, b]", "Look at this line and the one above: brackets, quotes, indentation."),
    Rule("KT102", "file too large", "A table of 200 kernels takes about 190 KiB. Larger files are mistakes, or attacks "
         "on the reader's time; they are refused before they are read.", "", "", "Split the file into overrides."),
    Rule("KT103", "not UTF-8", "Every tool reads UTF-8 alike; other encodings turn into other names.",
         "", "", "Save the file as UTF-8, with or without a byte order mark at its start."),
    Rule("KT104", "key set twice", "YAML readers keep the last of two equal keys and say nothing, so one of the two "
         "settings is lost.", "input: [bf16]\ninput: [f16]", "input: [bf16, f16]", "Keep one, or join the two."),
    Rule("KT105", "character that cannot be seen", "Control characters, no-break spaces, zero-width characters and "
         "Unicode line ends look like nothing or like something else; two names that look equal must be equal.",
         "kernels:\\u00a0{}", "kernels: {}", "Delete the character and type it again."),
    Rule("KT106", "tab", "YAML readers disagree about tabs: one takes what another refuses.",
         "\\tinput: [bf16]", "  input: [bf16]", "Indent with spaces."),
    Rule("KT107", "nested too deeply", "No key of a table is deeper than ten levels. Deep nesting crashes readers.",
         "[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]", "[]", "Take the nesting out."),
    Rule("KT108", "anchor or alias", "An alias stands for text elsewhere: a reader of a row would not see its "
         "limits, and a few lines of aliases can stand for gigabytes.", "a: &x [bf16]\nb: *x",
         "a: [bf16]\nb: [bf16]", "Write the value out where it is used."),
    Rule("KT109", "merge key", "`<<` copies keys from elsewhere by rules that differ between readers.",
         "<<: {input: [bf16]}", "input: [bf16]", "Write the keys out; architectures copy with `like`."),
    Rule("KT110", "tag", "A tag asks the reader for another type, in the worst case for a call.",
         "min: !!float 8", 'min: "8.0"', "Take the tag out; quote a text that starts with an exclamation mark."),
    Rule("KT111", "second document", "What a second document would mean is not defined, and most readers take the "
         "first one silently.", "table: 1\n---\ntable: 1", "table: 1", "One document a file; give overrides apart."),
    Rule("KT112", "directive", "Directives change how the rest is read. Only %YAML 1.1 and %YAML 1.2 are taken, "
         "and change nothing.", "%TAG ! tag:example.org,2026:", "", "Take the line out."),
    Rule("KT113", "key that is not text", "A key like 80, 8.9 or ~ is a number or nothing to YAML; every name here "
         "is text.", "80: [reference]", '"sm80": [reference]', "Quote the key, or correct it."),
    Rule("KT114", "word that readers disagree on", "yes, no, on and off are truth values in YAML 1.1 and text in "
         "YAML 1.2; an editor and this program would read two different files.", "portable: yes", "portable: true",
         "Write true or false, or quote the word."),
    Rule("KT115", "number that loses what was written", "8.10 without quotes is the number 8.1, 010 is eight to "
         "some readers and ten to others, 1:30 is ninety. Versions and capabilities are text; sizes are whole "
         "numbers.", "min: 8.10", 'min: "8.10"', "Quote it for text, or write a whole number."),
    Rule("KT116", "no value", "An emptied line must not silently mean no limit.", "features:", "features: []",
         "Give it a value or take the key out."),
    Rule("KT117", "not a finite number", "NaN passes every comparison that asks for less.", "min: .nan", "min: 1",
         "Write a whole number."),
    Rule("KT118", "date without quotes", "Some readers turn it into a date object, others into text.",
         "until: 2027-01-31", 'until: "2027-01-31"', "Quote it."),
    Rule("KT119", "number too long", "Longer numbers lose digits in many readers.", "max: 99999999999999999999",
         "max: 65536", "Use at most 15 digits."),
    Rule("KT120", "empty file", "A file that is being written looks like this; it must not mean no rules.",
         "# nothing yet", "override: 1\ndisable: [{kernel: reference, reason: a test}]",
         "Start it with `table: 1` or `override: 1`. An override that says {} means no change."),
    Rule("KT121", "cannot be read", "The path names nothing, something that is not a file, or a file that may not "
         "be read.", "", "", "Correct the path or its permissions."),
    Rule("KT122", "others could have written it", "An override decides which code runs. One that another user can "
         "write, or owns, is refused, as sshd and sudo do. Symbolic links are followed: the file itself counts.",
         "", "", "chmod go-w the file, and own it."),
    Rule("KT123", "too many values", "The number of values and the length of a text are bounded, so that reading "
         "takes a bounded time.", "", "", "Take out what no person wrote."),
    Rule("KT124", "not a mapping", "A table or override is a mapping of section names.", "- table: 1", "table: 1",
         "Start it with `table: 1` or `override: 1`."),
    Rule("KT125", "more findings", "The first 200 findings are shown.", "", "", "Mend those and check again.", "note"),
    Rule("KT126", "file of the other kind", "A table starts with `table: 1` and stands alone; an override starts with "
         "`override: 1` and is laid over a table.", "", "",
         "Give a table as TABLE or with --table, an override with -f."),
)  # fmt: skip
