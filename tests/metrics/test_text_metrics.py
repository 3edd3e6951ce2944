"""N-gram entropy, words, sentences and TF-IDF: by hand, and against what the reference implementations gave."""

import json
import math

import matplotlib
import pytest
import torch
from torchmetrics import MetricCollection

from lit_edit.errors import EditError
from lit_edit.metrics.consistency import Consistency
from lit_edit.metrics.fluency import Fluency, whole_text
from lit_edit.metrics.text import TfIdf, ngram_entropy, text_entropy
from lit_edit.metrics.words import sentences, words

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def recorded(shared):
    folder = shared / "golden" / "a"
    found = json.loads((folder / "tiny-gpt2" / "eval.json").read_text(encoding="utf-8"))["text_metrics"]
    texts = json.loads((folder / "records.json").read_text(encoding="utf-8"))["stat_texts"]
    return found, texts, folder / "tiny-gpt2" / "tfidf_idf.json"


# ------------------------------------------------------------------------------------------------ entropy


def test_entropy_by_hand():
    assert ngram_entropy(["a", "b"], 2) == 0.0  # one bigram
    assert ngram_entropy(["a", "b", "a"], 2) == 1.0  # ab, ba
    assert ngram_entropy(["a", "a", "a"], 2) == 0.0  # aa twice
    # ab ba ab bc: 1/2, 1/4, 1/4
    assert ngram_entropy(["a", "b", "a", "b", "c"], 2) == 1.5
    assert text_entropy("a b") == 0.0
    # two bigrams, one trigram: (2/3 x 1 + 4/3 x 0) / 2
    assert text_entropy("one two three") == pytest.approx(1 / 3)
    # three bigrams, two trigrams, all different
    assert text_entropy("one two three four") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * 1) / 2)


def test_nothing_to_count_is_zero_and_never_negative():
    for tokens in ([], ["a"], ["a", "a", "a"]):
        for n in (1, 2, 3):
            assert math.copysign(1, ngram_entropy(tokens, n)) == 1.0
    assert text_entropy("") == text_entropy("   \n ") == text_entropy("word") == 0.0


def test_repetition_lowers_entropy():
    assert text_entropy("the cat " * 20) < 1.1 < text_entropy(" ".join(f"w{i}" for i in range(40)))


@pytest.mark.parametrize(("name", "cut"), [("no_sentence_split", False), ("untrained_punkt", True)])
def test_recorded_entropies(recorded, name, cut):
    found, _, _ = recorded
    said = found["ngram_entropy"][name]
    assert words(found["texts"][0], cut) == said["tokens_text0"]
    for at, text in enumerate(found["texts"]):
        assert ngram_entropy(words(text, cut), 2) == pytest.approx(said["per_text_H2"][at], abs=1e-12)
        assert ngram_entropy(words(text, cut), 3) == pytest.approx(said["per_text_H3"][at], abs=1e-12)
        assert text_entropy(text, cut) == pytest.approx(said["per_text_entropy"][at], abs=1e-12)
    fluency = Fluency(sentences_first=cut)
    fluency.update([[text] for text in found["texts"]])
    assert float(fluency.compute()) == pytest.approx(said["mean"], abs=1e-12)


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("They'll say \"No!\" and can't go.", ["They", "'ll", "say", "``", "No", "!", "''", "and", "ca", "n't", "go", "."]),
        (
            "I cannot; we're gonna. 'Tis 3,000.5%",
            ["I", "can", "not", ";", "we", "'re", "gon", "na", ".", "'", "Tis", "3,000.5", "%"],
        ),
        ("(a--b) [c] <unk> …", ["(", "a", "--", "b", ")", "[", "c", "]", "<", "unk", ">", "…"]),
        ("Wait... what?! 5: ok, at 5:30.", ["Wait", "...", "what", "?", "!", "5", ":", "ok", ",", "at", "5:30", "."]),
        ("\u201cCurly\u201d it\u2019s \u2014", ["\u201c", "Curly", "\u201d", "it", "\u2019", "s", "\u2014"]),
        ("U.S. troops (e.g. Jones).", ["U.S.", "troops", "(", "e.g.", "Jones", ")", "."]),
        ("", []),
    ],
)
def test_words_by_treebank_rules(text, wanted):
    """Expected words are NLTK's (``NLTKWordTokenizer``), without a sentence split."""
    assert words(text, sentences_first=False) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("By J. S. Bach. No. 1 is his.", ["By J. S. Bach.", "No.", "1 is his."]),
        ('He said "Go." Then (he left.) So.', ['He said "Go."', "Then (he left.)", "So."]),
        ("It was 5. then 6. Then... what. ever", ["It was 5. then 6.", "Then... what.", "ever"]),
        ("U.S. troops", ["U.S.", "troops"]),
        ("What?! No...", ["What?!", "No..."]),
        ("", []),
        ("  a.  ", ["  a."]),
    ],
)
def test_sentences_by_untrained_punkt(text, wanted):
    """Expected sentences are NLTK's (``PunktSentenceTokenizer()``)."""
    assert sentences(text) == wanted


# ------------------------------------------------------------------------------------------------ TF-IDF


def test_tfidf_by_hand():
    """Two documents: a word of both has idf 1, a word of one ln(3/2) + 1."""
    found = TfIdf.fit(["cat sat", "cat ran"])
    rare = math.log(3 / 2) + 1
    assert found.idf == {"cat": 1.0, "ran": rare, "sat": rare}
    assert found.vector("cat sat x") == pytest.approx({"cat": 1 / math.hypot(1, rare), "sat": rare / math.hypot(1, rare)})
    assert found.cosine("cat sat", "CAT; ran.") == pytest.approx(1 / (1 + rare**2))
    assert found.cosine("sat sat", "sat") == 1.0 and found.cosine("sat", "ran") == 0.0
    assert found.cosine("", "cat") == found.cosine("unknown words", "cat") == 0.0
    # counts weigh: (2, rare) against (1, 0)
    assert found.cosine("cat cat sat", "cat") == pytest.approx(2 / math.hypot(2, rare))


def test_single_letters_are_no_words():
    assert TfIdf.fit(["a bc d_e é1 x"]).idf.keys() == {"bc", "d_e", "é1"}
    with pytest.raises(EditError, match="none of the 2 texts"):
        TfIdf.fit(["a b", ""])


def test_recorded_cosines(recorded):
    found, texts, path = recorded
    tfidf = TfIdf.load(path)
    said = found["tfidf"]
    for (one, other), cosine in zip(said["pairs_of_stat_texts"], said["cosine"], strict=True):
        assert tfidf.cosine(texts[one], texts[other]) == pytest.approx(cosine, rel=1e-12)
    consistency = Consistency(tfidf)
    consistency.update([texts[0:3]], [texts[2:6]])
    assert float(consistency.compute()) == pytest.approx(said["joined_0_3_vs_2_6"][0], rel=1e-12)
    assert TfIdf.fit(texts[:40]) == tfidf


def test_tfidf_comes_back_from_its_file(tmp_path):
    found = TfIdf.fit(["Zürich ist groß", "die Stadt ist alt"])
    found.save(tmp_path / "idf.json")
    assert TfIdf.load(tmp_path / "idf.json") == found


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "no TF-IDF file"),
        ("[1]", "no TF-IDF file"),
        ('{"idf": [1.0]}', "no TF-IDF file"),
        ('{"idf": [], "vocabulary": {}}', "do not match"),
        ('{"idf": [1.0, 2.0], "vocabulary": {"a": 0, "b": 0}}', "do not match"),
        ('{"idf": [1.0], "vocabulary": {"a": 0, "b": 1}}', "do not match"),
        ('{"idf": ["x"], "vocabulary": {"a": 0}}', "no TF-IDF file"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_what_is_no_tfidf_file(tmp_path, content, word):
    path = tmp_path / "idf.json"
    path.write_text(content)
    with pytest.raises(EditError, match=word) as caught:
        TfIdf.load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(EditError, match="cannot be read"):
        TfIdf.load(tmp_path / "absent.json")


# ------------------------------------------------------------------------------------------------ metrics


def test_fluency_is_a_mean_over_records_of_means_over_texts():
    fluency = Fluency()
    fluency.update([["one two three", "a b"], ["one two three"]])
    fluency.update([[]])
    # (1/3 + 0) / 2 and 1/3: not the mean over the three texts
    assert float(fluency.compute()) == pytest.approx((1 / 6 + 1 / 3) / 2)
    both = Fluency()
    both.update([["a b"]])
    both.merge_state(fluency)  # what a sum over processes does
    assert float(both.compute()) == pytest.approx((1 / 6 + 1 / 3 + 0) / 3)


def test_text_as_the_reference_scores_it():
    assert whole_text("Zürich", " is\n\nbig\n\n\nx") == "Zu\u0308rich is big \nx"


def test_consistency_joins_texts_and_leaves_out_what_has_none():
    tfidf = TfIdf.fit(["cat sat", "cat ran"])
    rare = math.log(3 / 2) + 1
    consistency = Consistency(tfidf)
    consistency.update([["cat", "sat"], ["x"], []], [["cat", "ran"], [], ["cat"]])
    assert float(consistency.compute()) == pytest.approx(1 / (1 + rare**2))
    consistency.update([["nothing known"]], [["cat"]])
    assert float(consistency.compute()) == pytest.approx(1 / (1 + rare**2) / 2)
    with pytest.raises(ValueError, match="do not pair up"):
        consistency.update([["cat"]], [])


def test_metrics_of_nothing_are_nan_and_plot():
    for metric in (Fluency(), Consistency(TfIdf.fit(["cat"]))):
        metric._update_count = 1  # a rank that saw no record
        assert math.isnan(float(metric.compute()))
        metric.reset()
        assert metric.plot(torch.tensor(0.5)) is not None


def test_a_collection_does_not_take_one_metric_for_another():
    class Both(Consistency):
        def update(self, generated):
            super().update(generated, [["cat ran"]] * len(generated))

    both = MetricCollection({"fluency": Fluency(), "consistency": Both(TfIdf.fit(["cat sat", "cat ran"]))})
    both.update([["dog"]])  # both are 0 after this
    both.update([["cat sat on cats here"]])
    found = both.compute()
    single = Fluency()
    single.update([["dog"], ["cat sat on cats here"]])
    assert found["fluency"] == single.compute() and found["consistency"] != found["fluency"]
    assert len(both.compute_groups) == 2
