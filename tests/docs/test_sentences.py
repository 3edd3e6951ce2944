"""Sentences that the troubleshooting quotes are sentences that the program can say."""

import ast
import re
from functools import cache

import pages

TROUBLESHOOTING = pages.ROOT / "docs" / "troubleshooting.md"


@cache
def templates() -> tuple[re.Pattern, ...]:
    """Every text of the sources that has words enough to be recognised, its values left open."""
    found = set()
    for path in (pages.ROOT / "lit_edit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            if not all(isinstance(part, ast.FormattedValue | ast.Constant) for part in parts):
                continue
            texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if sum(map(len, texts)) >= 18:
                pattern = "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".{1,120}?" for p in parts
                                  if not isinstance(p, ast.Constant) or isinstance(p.value, str))  # fmt: skip
                found.add(re.sub(r"%(?:\\?\.\d+)?[sdf]|%%", ".{1,60}?", pattern))
    return tuple(re.compile(pattern) for pattern in sorted(found))


def quoted() -> list[str]:
    return [line for block in pages.blocks(TROUBLESHOOTING) if block.language == "text" for line in block.body.splitlines()]


def said(sentence: str) -> float:
    """The share of a sentence that texts of the sources make up."""
    covered = [False] * len(sentence)
    for template in templates():
        if match := template.search(sentence):
            covered[match.start() : match.end()] = [True] * (match.end() - match.start())
    return sum(covered) / len(sentence)


def test_every_quoted_sentence_is_one_of_the_program():
    sentences = quoted()
    assert len(sentences) > 35
    invented = [sentence for sentence in sentences if said(sentence) < 0.6]
    assert not invented


def test_an_invented_sentence_is_found():
    assert said("the model is too large for this machine; buy another one") < 0.6
    assert said("the checkpoint belongs to another layers: [4] instead of [5] (model m)") > 0.9


def test_every_symptom_has_what_and_why():
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    symptoms = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(symptoms) >= 13
    for symptom in symptoms:
        name = symptom.splitlines()[0]
        assert "**Why.**" in symptom or "| why |" in symptom or "set |" in symptom or name == "Numbers differ from a paper", (
            name
        )
