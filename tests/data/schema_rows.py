"""Rows of every schema, to be changed field by field, and what a reader says of a bad one."""

import pytest

from lit_edit.errors import MalformedRecord


def counterfact(**changes):
    rewrite = {
        "prompt": "{} is located in",
        "relation_id": "P30",
        "target_new": {"str": "Asia", "id": "Q48"},
        "target_true": {"str": "Europe", "id": "Q46"},
        "subject": "Mount Foo",
    }
    rewrite.update(changes.pop("rewrite", {}))
    return {
        "case_id": 7,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": ["Where is it? Mount Foo lies in"],
        "neighborhood_prompts": ["Mount Bar is in", "Mount Baz is in"],
        **changes,
    }


def easyedit(**changes):
    return {
        "case_id": 10,
        "prompt": "The capital of Foo is",
        "subject": "Foo",
        "target_new": "Bar",
        "ground_truth": "Baz",
        "rephrase_prompt": "Foo's capital is",
        "locality_prompt": "The capital of Qux is",
        "locality_ground_truth": "Quux",
        **changes,
    }


def zsre(**changes):
    return {
        "subject": "Foo",
        "src": "Who founded Foo?",
        "pred": "Nobody",
        "rephrase": "By whom was Foo founded?",
        "alt": "Somebody",
        "answers": ["Ann Bar", "Bar"],
        "loc": "nq question: who sang the song",
        "loc_ans": "Ella",
        "cond": "...",
        **changes,
    }


def qaedit(**changes):
    return {
        "id": 3,
        "prompt": "who founded Foo?",
        "subject": "Foo",
        "target": "Ann",
        "rephrase": "Foo's founder?",
        "locality": [{"loc": "who sang", "loc_ans": "Ella"}],
        **changes,
    }


def plain(**changes):
    return {"prompt": "{} was born in", "subject": "Ann", "target": "Rome", **changes}


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def malformed(reader, row):
    with pytest.raises(MalformedRecord) as caught:
        reader.request(row, "facts.json, row 4", 4)
    return caught.value
