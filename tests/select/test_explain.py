"""Selections as text and as JSON."""

from __future__ import annotations

import json

from handmade import deny, kernel, route, table

from kerneltable.model import Device, Problem, Verified
from kerneltable.select import device, explain, select
from kerneltable.table import load_table

PROBLEM = Problem("fp8", n=256, k=256)


def test_the_text_names_problem_winner_reason_and_first_refusals() -> None:
    made = table()
    answer = select(made, device("a100", made), Problem("fp8", n=256, k=100, m=16, bias=True, output="f32"))
    assert explain.text(made, answer) == [
        "fp8 on a100 (cuda sm80): m=16 n=256 k=100, bf16 -> f32, bias",
        "  weight: block 128x128, scale f32; input: block dynamic",
        "  chosen   wide       weight_only, unverified (hand.yaml:51:5)",
        "                      wide in short",
        "                      why here: wide is here for a reason",
        "  refused  fast       runs_on.capability.min: wanted at least 8.9, found 8.0 (sm80) (hand.yaml:36:5)"
        " and 3 more",
        "  later    reference  would do too (hand.yaml:52:5)",
        "  memory   weights and scales 25.0 KiB as in the checkpoint, none packed (copies allowed: 1)",
    ]


def test_a_kernel_that_stands_twice_in_a_route_is_said_to_be_chosen_above() -> None:
    shipped = load_table(plugins=False)
    sizes = {"n": 4096, "k": 7168, "weight_granularity": "tensor", "input_granularity": "tensor"}
    text = explain.text(shipped, select(shipped, device("h200", shipped), Problem("fp8_w8a8", m=2048, **sizes)))
    lines = [line for line in text if line.split()[1:2] == ["torch_scaled_mm_tensorwise"]]
    assert [line.split()[0] for line in lines] == ["chosen", "later"]
    assert "  chosen above (dispatch.yaml:" in lines[1]
    assert sum("would do too" in line for line in text) > 1


def test_verbose_text_has_every_refusal() -> None:
    made = table()
    answer = select(made, device("a100", made), Problem("fp8", n=256, k=100))
    text = "\n".join(explain.text(made, answer, verbose=True))
    for refusal in answer.candidates[0].refusals:
        assert str(refusal) in text
    assert "more" not in text


def test_no_kernel_is_said_and_notes_are_shown() -> None:
    made = table(route("fp8", "cuda", "fast", require="fast"))
    text = explain.text(made, select(made, device("a100", made), PROBLEM))
    assert "  no kernel" in text
    assert text[-1] == "  note: 'fast' is required (hand.yaml:60:5) and refuses: nothing else may be taken"
    empty = explain.text(made, select(made, Device("tpu", None), PROBLEM))
    assert empty[0].startswith("fp8 on tpu an unknown chip: any m")
    assert empty[2] == "  no kernel: there are no candidates"


def test_an_unquantized_input_a_single_refusal_and_a_verification_are_worded() -> None:
    row = kernel("seen")
    seen = type(row)(
        **{n: getattr(row, n) for n in row.__dataclass_fields__} | {"verified": (Verified("h200", "2026-11-21"),)}
    )
    made = table(route("w8a16", "cuda", "fast", "seen"), rows={"seen": seen}, denials=(deny("wide"),))
    text = "\n".join(explain.text(made, select(made, device("sm90", made), Problem("w8a16", n=1, k=128))))
    assert (
        "w8a16 on cuda sm90: any m n=1 k=128, bf16 -> bf16\n  weight: channel, scale f32; input: not quantized" in text
    )
    assert "verified on h200, 2026-11-21" in text


def test_json_has_the_contract_and_survives_json() -> None:
    made = table()
    answer = select(made, device("a100", made), Problem("fp8", n=256, k=256))
    found = json.loads(json.dumps(explain.as_json(made, answer)))
    assert next(iter(found)) == "format"
    assert found["format"] == 1
    assert found["chosen"] == "wide"
    assert found["table"] == {"digest": made.digest, "layers": [{"name": "hand.yaml", "sha256": "0" * 64}]}
    assert found["problem"]["weight_block"] == "128x128"
    assert found["problem"]["m"] is None
    assert found["device"]["architecture"] == "sm80"
    assert found["candidates"] == [
        {
            "kernel": "fast",
            "verdict": "refused",
            "refusals": [
                {
                    "predicate": "runs_on.capability.min",
                    "wanted": "at least 8.9",
                    "found": "8.0 (sm80)",
                    "where": "hand.yaml:36:5",
                },
                {
                    "predicate": "runs_on.features",
                    "wanted": "mma_fp8",
                    "found": "absent on sm80",
                    "where": "hand.yaml:38:5",
                },
            ],
        },
        {"kernel": "wide", "verdict": "chosen", "refusals": []},
        {"kernel": "reference", "verdict": "later", "refusals": []},
    ]


def test_json_of_no_kernel_has_null_and_no_block() -> None:
    made = table()
    answer = select(made, device("mi300x", made), Problem("w8a16", n=1, k=1))
    found = explain.as_json(made, answer)
    assert (found["chosen"], found["candidates"], found["problem"]["weight_block"]) == (None, [], None)
    assert len(found["notes"]) == 1
