"""Files that probes, studies and metrics read, damaged."""

import copy
import json
import sys
from pathlib import Path

import pytest
import yaml
from damage import FORMATS, damaged, json_lines, scarred, texts, written
from documents import ODD, as_yaml
from exploring import explore, sizes, told
from hypothesis import strategies as st

from lit_edit.errors import EditError
from lit_edit.metrics.references import References
from lit_edit.options.command import command
from lit_edit.probes import MMLU, MRPC, NLI, RTE, SST2, CoLA, Entailment, OpenDomainQA, Perplexity, Reasoning, Summarisation
from lit_edit.studies import STUDIES
from lit_edit.studies.base import Point, Study
from lit_edit.studies.cli import parser_of, study_class, study_of
from lit_edit.studies.folder import StudyFolder
from lit_edit.studies.keys import refuse_repeated

ROOT = Path(__file__).resolve().parents[2]
PAIR = {"sentence1": "A cat sits.", "sentence2": "A cat sleeps.", "label": 1}
PROBES = {
    SST2: {"sentence": "a fine film", "label": 1},
    MRPC: PAIR,
    CoLA: {"sentence": "Bill sleeps.", "label": "0"},
    RTE: PAIR,
    NLI: {**PAIR, "label": "entailment"},
    MMLU: {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": "C"},
    Entailment: PAIR,
    Reasoning: {"question": "1 + 1?", "answer": "It is two. #### 2"},
    Summarisation: {"dialogue": "A: Hi. B: Hi.", "summary": "They greet."},
    OpenDomainQA: {"question": "who?", "answer": ["Ann", "Eve"], "output": ["Ann did it."]},
    Perplexity: {"text": "A page of text."},
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)


@sizes(100, 2500)
def test_items_of_probes(size):
    @st.composite
    def files(draw):
        probe = draw(st.sampled_from(list(PROBES)))
        rows = [PROBES[probe]] * 12 + draw(st.lists(damaged(PROBES[probe], 2), max_size=2))
        name = draw(st.sampled_from([*FORMATS, "page.txt"]))
        content = (
            FORMATS[name](rows)
            if name in FORMATS
            else "\n\n".join([draw(texts), "A page.", draw(texts)]).encode("utf-8", "surrogatepass")
        )
        return probe, name, draw(st.one_of(st.just(content), scarred(content)))

    seen = {"read": 0, "refused": 0}

    def check(example):
        probe, name, content = example
        Path(name).write_bytes(content)
        try:
            items = probe(name).items()
        except EditError as error:
            told(error, name)
            seen["refused"] += 1
        else:
            assert items
            seen["read"] += 1
            repr(items).encode("utf-8")

    explore(size, files(), check)
    assert min(seen.values()) > size.count // 20, seen


@sizes(40, 1000)
def test_configurations_of_studies(size, monkeypatch):
    """Understood and built, up to what is measured."""
    configs = {name: yaml.safe_load((ROOT / "configs" / "studies" / f"{name}.yaml").read_text()) for name in STUDIES}
    parsers = {name: (study_class(name), parser_of(name, study_class(name))) for name in STUDIES}
    Path("world.yaml").symlink_to(ROOT / "configs" / "world.yaml")
    Path("studies").mkdir()

    @st.composite
    def documents(draw):
        name = draw(st.sampled_from(list(configs)))
        whole = draw(st.one_of(damaged(copy.deepcopy(configs[name]), 2), st.just(configs[name])))
        content = (written(whole) if draw(st.booleans()) else as_yaml(whole)).encode("utf-8", "surrogatepass")
        doubled = content + content
        return name, draw(st.one_of(st.just(content), st.just(content), scarred(content), st.sampled_from([*ODD, doubled])))

    seen = {"built": 0, "refused": 0}

    def check(example):
        name, content = example
        kind, parser = parsers[name]
        Path("studies/damaged.yaml").write_bytes(content)
        try:
            with command():
                config = parser.parse_args(["--config", "studies/damaged.yaml"])
                refuse_repeated("studies/damaged.yaml")
                study = study_of(kind, parser, config)
                assert len({point.key for point in study.points()}) > 0
                json.dumps(study.common())
            seen["built"] += 1
        except EditError as error:
            told(error)
            seen["refused"] += 1

    explore(size, documents(), check)
    assert min(seen.values()) > size.count // 20, seen


class Numbers(Study):
    """Measures nothing; its folder is what is looked at."""

    question = "What are the numbers?"

    def common(self):
        return {"from": 0}

    def points(self):
        return [Point(str(number), {"number": number}) for number in range(3)]

    def measure(self, point, device, folder):
        return {"found": point.settings["number"]}

    def table(self, results):
        return [{"point": key, "found": result["found"]} for key, result in results.items()]

    def figures(self, results):
        return {}


@sizes(60, 1500)
def test_folders_of_studies(size, tmp_path):
    """Points that count are those that were measured."""
    folder = StudyFolder(tmp_path / "study", Numbers(), "numbers")
    for point in Numbers().points():
        folder.add(point, {"found": point.settings["number"]}, 1.0)
    whole = {name: (tmp_path / "study" / name).read_bytes() for name in ("points.jsonl", "study.json")}
    lines = [json.loads(line) for line in whole["points.jsonl"].splitlines()]

    @st.composite
    def damages(draw):
        name = draw(st.sampled_from(list(whole)))
        value = draw(damaged(lines if name == "points.jsonl" else json.loads(whole[name]), 2))
        rows = value if name == "points.jsonl" and isinstance(value, list) else [value]
        # A line without a checksum is one that an earlier version wrote, and nothing can be said about it.
        rows = [{"sha256": "", **row} if isinstance(row, dict) and name == "points.jsonl" else row for row in rows]
        by_value = "".join(written(row) + "\n" for row in rows).encode()
        return name, draw(st.one_of(st.just(by_value), scarred(whole[name])))

    def check(example):
        name, content = example
        (tmp_path / "study" / name).write_bytes(content)
        try:
            found = StudyFolder(tmp_path / "study", Numbers(), "numbers")
            found.write()
            assert all(result == {"found": int(key)} for key, result in found.done.items())
            assert set(found.done) | {point.key for point in found.missing()} == {"0", "1", "2"}
        except EditError as error:
            told(error, str(tmp_path / "study"))
        finally:
            for file, was in whole.items():
                (tmp_path / "study" / file).write_bytes(was)

    explore(size, damages(), check)


@sizes(60, 1500)
def test_references_and_vocabularies(size):
    lines = [{"target": "Rome", "text": "Rome is a city."}, {"target": "Rome", "relation": "P1", "text": "It is old."}]
    vocabulary = {"vocabulary": {"rome": 0, "city": 1}, "idf": [1.5, 2.0]}

    @st.composite
    def files(draw):
        rows = draw(st.one_of(damaged(lines, 2), st.just(lines)))
        one = "".join(written(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])).encode()
        two = written(draw(st.one_of(damaged(vocabulary, 2), st.just(vocabulary)))).encode()
        which = draw(st.booleans())  # one of the two stays whole, so that the other one decides
        first = json_lines(lines) if which else draw(st.one_of(st.just(one), scarred(one)))
        return first, draw(st.one_of(st.just(two), scarred(two))) if which else json.dumps(vocabulary).encode()

    seen = {"read": 0, "refused": 0}

    def check(example):
        for name, content in zip(("references.jsonl", "vocabulary.json"), example, strict=True):
            Path(name).write_bytes(content)
        try:
            found = References.load("references.jsonl", "vocabulary.json")
            assert 0 <= found.tfidf.cosine("Rome is a city", "the city of Rome") <= 1
            seen["read"] += 1
        except EditError as error:
            sentence = told(error)
            assert "references.jsonl" in sentence or "vocabulary.json" in sentence
            seen["refused"] += 1

    explore(size, files(), check)
    assert min(seen.values()) > size.count // 20, seen
