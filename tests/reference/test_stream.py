"""A stream without contradictions, facts that it leaves alone, and the text that the reference model has read."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from lit_edit.data import EditStream
from lit_edit.errors import EditError
from lit_edit.probes import UneditedFacts
from lit_edit.reference.corpus import FactsCorpus
from lit_edit.reference.stream import main, part

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def env():
    """The environment, in which this checkout is found from any folder."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def record(case, subject, relation, new="Rome"):
    rewrite = {
        "prompt": "{} lives in" if relation == "P1" else "{} works in",
        "subject": subject,
        "relation_id": relation,
        "target_new": {"str": new},
        "target_true": {"str": "Paris"},
    }
    return {"case_id": case, "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}


@pytest.fixture
def path(tmp_path):
    rows = [record(at, f"subject {at}", "P1") for at in range(20)]
    rows += [record(20, "subject 3", "P1", "Oslo"), record(21, "subject 4", "P2"), {"requested_rewrite": {"prompt": "{}"}}]
    file = tmp_path / "counterfact.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_contradictions_are_left_out_and_both_parts_keep_the_order(path):
    found = part(path, unedited=5)
    cases = [[row["case_id"] for row in side] for side in (found.edits, found.unedited)]
    assert len(cases[1]) == 5 and all(side == sorted(side) for side in cases)
    assert sorted(cases[0] + cases[1]) == [*range(3), *range(4, 20), 21], "subject 3 has two answers, subject 4 two relations"
    assert (found.contradicting, found.unusable) == (2, 1)
    assert part(path, 5) == found != part(path, 5, seed=1)


def test_too_many_left_alone_are_refused(path):
    with pytest.raises(EditError, match=r"has 20 records that contradict no other one; .* so 20 cannot be left alone"):
        part(path, unedited=20)


def test_the_two_files_serve_a_run(path, tmp_path, capsys):
    main([path, "--unedited", "4", "--to", str(tmp_path / "streams")])
    assert "16 records to edit, 4 to leave alone" in capsys.readouterr().out
    probe = UneditedFacts(str(tmp_path / "streams/unedited.jsonl"))
    stream = EditStream(path=str(tmp_path / "streams/edits.jsonl"), probes=[probe])
    stream.setup()
    asked = {prompt for prompt, _ in probe.items()}
    assert len(stream.requests) == 16 and len(asked) == 4 and not asked & {request.text for request in stream.requests}


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("lit_edit.reference.stream", ["nowhere.jsonl", "--to", "x"], "There is no file nowhere.jsonl"),
        ("lit_edit.reference.measure", ["nowhere", "--data", "x"], "nowhere holds no learned.json"),
        ("lit_edit.world.check", ["./nowhere"], "there is no model folder ./nowhere"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_sentence(module, arguments, said, tmp_path):
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=tmp_path, env=env(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"python -m {module}: error: {said}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs CounterFact in ../shared/data")
def test_counterfact_parts_into_twenty_thousand_edits():
    found = part(str(SHARED / "counterfact/counterfact_reconstructed.jsonl"), unedited=859)
    assert (len(found.edits), len(found.unedited), found.unusable) == (20_000, 859, 0)
    free = set(json.loads((SHARED / "counterfact/conflict_free_case_ids.json").read_text()))
    assert {row["case_id"] for row in (*found.edits, *found.unedited)} == free


def test_the_corpus_says_facts_and_text_and_no_exercise(folder):
    texts = list(islice(FactsCorpus(str(folder), text=0.5).documents(), 200))
    facts = [text for text in texts if any(name in text for name in ("Stone", "Rivers", "Field", "Wood"))]
    assert 60 < len(facts) < 140, "half of 200"
    assert not any(character.isdigit() or character in "=+?:" for text in texts for character in text), "no exercise"
    assert texts == list(islice(FactsCorpus(str(folder), text=0.5).documents(), 200))


def test_the_corpus_is_known_by_what_it_says(folder):
    one = FactsCorpus(str(folder)).identity()
    assert one == FactsCorpus(str(folder) + "/.").identity(), "a folder by another name holds the same text"
    assert one != FactsCorpus(str(folder), seed=2).identity()
    text = folder / "corpus/novel.txt"
    text.write_text(
        text.read_text() + "\n<|doc|>\nA last paragraph, which is long enough to be read like all the others are.\n"
    )
    assert one != FactsCorpus(str(folder)).identity()
    one = FactsCorpus(str(folder)).identity()
    (folder / "facts/true_facts.jsonl").write_text(
        json.dumps({"relation_id": "P1", "subject": "Zoe", "object": "Oslo", "counterfact_case_ids": [1]}) + "\n"
    )
    assert one != FactsCorpus(str(folder)).identity()


def test_another_process_knows_the_corpus_again(folder):
    ask = f"from lit_edit.reference.corpus import FactsCorpus; print(FactsCorpus({str(folder)!r}).identity()['sha256'])"
    # Two orders of a set of the relations: what was computed from the text is found by this identity.
    said = [
        subprocess.run(
            [sys.executable, "-c", ask], env={**env(), "PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("0", "2")
    ]
    assert said[0] == said[1] != ""
