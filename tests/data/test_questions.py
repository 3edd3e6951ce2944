"""Portability, locality and prompts to continue, in every spelling that edit sets have for them."""

import pytest

from lit_edit.data import CounterFact, EasyEdit, EditStream, JsonLines, ZsRE
from lit_edit.data.questions import answers, snake_case
from lit_edit.errors import MalformedRecord

KNOWEDIT = {
    "subject": "Ann",
    "prompt": "The country of Ann is",
    "target_new": "Syria",
    "ground_truth": "Italy",
    "rephrase": "Ann is from",
    "portability": {
        "Reasoning": [
            {"prompt": "The currency in Ann's country is ", "ground_truth": [["pound", "SYP", "pound"]]},
            {"prompt": "Neighbours of Ann's country are", "ground_truth": [["Iraq"], ["Jordan", "Iraq"]]},
        ],
        "Subject_Aliasing": [{"prompt": "The country of Annie is", "ground_truth": ["Syria", "SYR"]}],
    },
    "locality": {"Relation_Specificity": [{"prompt": "The mother of Ann is", "ground_truth": [["Eve", "Eva"], ["Ida"]]}]},
}
PLAIN = {"prompt": "{} was born in", "subject": "Ann", "target": "Rome"}


def easyedit(**changes):
    return EasyEdit().request({**KNOWEDIT, **changes}, "s", 1)


def malformed(reader, row):
    with pytest.raises(MalformedRecord) as caught:
        reader.request(row, "s", 1)
    return caught.value.field, caught.value.reason


def test_knowedit_blocks():
    request = easyedit()
    assert request.portability == (
        ("reasoning", "The currency in Ann's country is", ("pound", "SYP")),
        ("reasoning", "Neighbours of Ann's country are", ("Iraq", "Jordan")),
        ("subject_aliasing", "The country of Annie is", ("Syria", "SYR")),
    )
    assert request.locality == (("relation_specificity", "The mother of Ann is", "Eve"),)
    assert (request.neighbourhood, request.generation_prompts) == ((), ())
    assert (request.paraphrases, request.target_true) == (("Ann is from",), "Italy")


@pytest.mark.parametrize("block", [None, {}, "", [], {"Reasoning": None}, {"Reasoning": []}])
def test_knowedit_without_some_of_the_blocks(block):
    request = easyedit(portability=block, locality=block)
    assert (request.portability, request.locality) == ((), ())


@pytest.mark.parametrize("truth", [[["", " "]], [], "", None, [[]]])
def test_a_question_without_any_answer_is_left_out_and_the_edit_stays(truth):
    block = {"Reasoning": [{"prompt": "p", "ground_truth": truth}, {"prompt": "q", "ground_truth": [["", "a"], "b"]}]}
    request = easyedit(portability=block, locality=block)
    assert request.portability == (("reasoning", "q", ("a", "b")),)
    assert request.locality == (("reasoning", "q", "a"),)


def test_a_kind_as_one_object_with_two_lists():
    block = {
        "One Hop": {"prompt": ["p", "q"], "ground_truth": ["a", ["b", "c"]]},
        "two-hop": {"prompt": "r", "ground_truth": "d"},
    }
    assert easyedit(portability=block).portability == (
        ("one_hop", "p", ("a",)),
        ("one_hop", "q", ("b", "c")),
        ("two_hop", "r", ("d",)),
    )


@pytest.mark.parametrize(
    ("block", "field", "reason"),
    [
        (["p"], "", "holds a list; it is an object with a list of questions for each kind"),
        ({"Reasoning": "p"}, ".Reasoning", "holds text; it is a list of objects with 'prompt' and 'ground_truth'"),
        ({"Reasoning": ["p"]}, ".Reasoning[0]", "holds text; it is an object with 'prompt' and 'ground_truth'"),
        ({"Reasoning": [{"ground_truth": "a"}]}, ".Reasoning[0].prompt", "is missing; it is a complete prompt"),
        ({"Reasoning": [{"prompt": " ", "ground_truth": "a"}]}, ".Reasoning[0].prompt", "is empty; it is a complete prompt"),
        (
            {"Reasoning": [{"prompt": "p", "ground_truth": [["a", 3]]}]},
            ".Reasoning[0].ground_truth[0][1]",
            "holds a number (3), not text; it is an accepted answer",
        ),
        (
            {"Reasoning": {"prompt": ["p", "q"], "ground_truth": ["a"]}},
            ".Reasoning.ground_truth",
            "has 1 answers for the 2 prompts in {}.Reasoning.prompt; give one for each",
        ),
        (
            {"?": [{"prompt": "p", "ground_truth": "a"}]},
            ".?",
            "holds '?', which has no letter in it; it is the kind of the question",
        ),
    ],
)
@pytest.mark.parametrize("name", ["portability", "locality"])
def test_malformed_blocks(name, block, field, reason):
    assert malformed(EasyEdit(), {**KNOWEDIT, name: block}) == (name + field, reason.replace("{}", name))


def test_easyedit_flat_portability():
    row = {**KNOWEDIT, "portability": None, "locality": None}
    flat = easyedit(portability=None, portability_prompt="The currency?", portability_ground_truth="pound")
    assert flat.portability == (("unnamed", "The currency?", ("pound",)),)
    lists = {"portability_prompt": ["p", "q"], "portability_ground_truth": ["a", ["b", "c"]]}
    assert easyedit(portability=None, **lists).portability == (("unnamed", "p", ("a",)), ("unnamed", "q", ("b", "c")))
    for count, value in ((0, None), (0, " "), (0, []), (0, [""])):
        assert malformed(EasyEdit(), {**row, "portability_prompt": "p", "portability_ground_truth": value}) == (
            "portability_ground_truth",
            f"has {count} answers for the 1 prompts in portability_prompt; give one for each",
        )
    assert malformed(EasyEdit(), {**row, "portability_prompt": ["p", "q"], "portability_ground_truth": ["a", ""]}) == (
        "portability_ground_truth",
        "has 1 answers for the 2 prompts in portability_prompt; give one for each",
    )


def test_easyedit_flat_locality_is_the_neighbourhood_and_is_not_counted_twice():
    request = easyedit(locality=None, locality_prompt="The country of Bob is", locality_ground_truth="Peru")
    assert (request.neighbourhood, request.locality) == ((("The country of Bob is", "Peru"),), ())


def test_easyedit_new_question():
    block = {"Recalled Relation": "(Syria, currency, pound)", "New Question": "Which currency has Ann?", "New Answer": "pound"}
    assert easyedit(portability=block).portability == (("one_hop", "Which currency has Ann?", ("pound",)),)
    assert malformed(EasyEdit(), {**KNOWEDIT, "portability": {**block, "New Answer": ""}}) == (
        "portability.New Answer",
        "is missing; it is the answer to New Question",
    )


def test_zsre_leaves_out_the_question_that_follows_from_another_answer():
    row = {
        "subject": "Ann",
        "src": "Where did Ann study?",
        "alt": "Michigan",
        "answers": ["Illinois"],
        "portability": {"New Question": "In which city did Ann study?", "New Answer": "Ann Arbor"},
    }
    assert ZsRE().request(row, "s", 1).portability == ()


@pytest.mark.parametrize(
    ("truth", "expected"), [(["Italy", "IT"], "Italy"), ("Italy", "Italy"), ([], None), ("", None), (None, None)]
)
def test_easyedit_true_target_as_a_list(truth, expected):
    assert easyedit(ground_truth=truth).target_true == expected


def test_counterfact_prompts_to_continue_keep_their_repetitions():
    row = {
        "requested_rewrite": {"prompt": "{} is in", "subject": "Foo", "target_new": {"str": "Asia"}},
        "attribute_prompts": ["Bar is in"],
        "generation_prompts": ["Foo is near", "Foo's people", "Foo is near"],
    }
    request = CounterFact().request(row, "s", 1)
    assert request.generation_prompts == ("Foo is near", "Foo's people", "Foo is near")
    assert malformed(CounterFact(), {**row, "generation_prompts": [""]}) == (
        "generation_prompts[0]",
        "is empty; it is a prompt to continue freely",
    )


def test_plain_rows():
    row = {
        **PLAIN,
        "portability": [["Multi-hop", "In which country was Ann born?", ["Italy", "Italia"]], ["reasoning", "p", "a"]],
        "locality": [["forgetfulness", "Ann's mother is", "Eve"], {"kind": "k", "prompt": "p", "answer": "a"}],
        "generation_prompts": ["Ann is known for"],
    }
    request = JsonLines().request(row, "s", 1)
    assert request.portability == (
        ("multi_hop", "In which country was Ann born?", ("Italy", "Italia")),
        ("reasoning", "p", ("a",)),
    )
    assert request.locality == (("forgetfulness", "Ann's mother is", "Eve"), ("k", "p", "a"))
    assert request.generation_prompts == ("Ann is known for",)


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ("x", "", "holds 'x'; it is a list of [kind, prompt, [answers]]"),
        ({"reasoning": []}, "", None),
        ([["k", "p"]], "[0]", "holds ['k', 'p']; it is [kind, prompt, [answers]]"),
        (["abc"], "[0]", "holds 'abc'; it is [kind, prompt, [answers]]"),
        ([["k", "p", ["a"]], ["k", "p", []]], "[1][2]", "holds []; it is a list of at least one accepted answer"),
        ([["k", "p", None]], "[0][2]", "holds nothing (null) (None), not text; it is an accepted answer"),
        ([["k", "p", ["a", ""]]], "[0][2][1]", "is empty; it is an accepted answer"),
        ([["k", "", ["a"]]], "[0][1]", "is empty; it is a complete prompt"),
        ([["", "p", ["a"]]], "[0][0]", "is empty; it is the kind of the question"),
        ([{"kind": "k", "prompt": "p"}], "[0].answers", "holds nothing (null) (None), not text; it is an accepted answer"),
        ([{"prompt": "p", "answers": ["a"]}], "[0].kind", None),
    ],
)
@pytest.mark.parametrize("name", ["portability", "locality"])
def test_malformed_plain_rows(name, value, field, reason):
    found = malformed(JsonLines(), {**PLAIN, name: value})
    assert found[0] == name + field
    assert reason is None or found[1] == reason


def test_the_same_blocks_from_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    # Arrow gives every row all kinds, with nulls, and refuses lists that mix texts and lists.
    other = {
        **KNOWEDIT,
        "portability": {"Reasoning": None},
        "locality": {"Forgetfulness": KNOWEDIT["locality"]["Relation_Specificity"]},
    }
    other["portability"] = {"Subject_Aliasing": KNOWEDIT["portability"]["Subject_Aliasing"]}
    first = {**KNOWEDIT, "portability": dict(KNOWEDIT["portability"])}
    for block in (first, other):
        block["portability"] = {
            kind: [{**item, "ground_truth": [["Syria", "SYR"]]} for item in items]
            for kind, items in block["portability"].items()
        }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([first, other]), tmp_path / "k.parquet")
    questions = [{"kind": "k", "prompt": "p", "answers": ["a", "b"]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**PLAIN, "portability": questions}]), tmp_path / "p.parquet")
    stream, plain = EditStream(path=str(tmp_path / "k.parquet")), EditStream(path=str(tmp_path / "p.parquet"))
    stream.setup()
    plain.setup()
    kinds = [[kind for kind, _, _ in request.portability] for request in stream.requests]
    assert kinds == [["reasoning", "reasoning", "subject_aliasing"], ["subject_aliasing"]]
    assert [request.locality[0][0] for request in stream.requests] == ["relation_specificity", "forgetfulness"]
    assert plain.requests[0].portability == (("k", "p", ("a", "b")),)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Relation_Specificity", "relation_specificity"),
        ("New Question", "new_question"),
        ("a/b", "a_b"),
        ("__x__", "x"),
        ("推理", "推理"),
    ],
)
def test_names_of_kinds(name, expected):
    assert snake_case(name) == expected


def test_answers_nest_as_deep_as_they_like():
    deep = "a"
    for _ in range(5000):
        deep = [deep]
    assert answers(deep, "x") == ("a",)
