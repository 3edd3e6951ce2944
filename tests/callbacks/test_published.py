"""ZsRE as published, beside this project's own number."""

import json

import pytest
from stream import editor, trainer
from tiny import save_tiny

from lit_edit.callbacks import PublishedZsRE
from lit_edit.data import EditStream
from lit_edit.editors import FT


def zsre(path):
    rows = [
        {
            "subject": name,
            "src": f"Where was {name} born?",
            "answers": [answer],
            "rephrase": f"What is the home of {name}?",
            "loc": "nq question: who was born in Vienna",
            "loc_ans": "Marie Curie",
        }
        for name, answer in (("Ada Lovelace", "the city of Rome"), ("Zürich", "Paris"), ("Sony", "Berlin"), ("Kyōto", "Rome"))
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_published_numbers_stand_beside_our_own_before_and_at_the_end(family, tmp_path):
    model = str(save_tiny(tmp_path / "model", family, bos=family == "llama"))
    watcher = PublishedZsRE()
    run = trainer(tmp_path, [watcher], val_check_interval=2)
    module = editor(model, tmp_path / "cache", editor=FT(lr=2e-2, steps=40), guards=[])
    data = EditStream(path=zsre(tmp_path / "zsre.json"), batch_size=2)
    run.validate(module, datamodule=data, verbose=False)
    assert {name.split("/")[1] for name in watcher.last} == {"before"}
    run.fit(module, datamodule=data)
    own = {name: float(value) for name, value in run.callback_metrics.items()}
    for metric in ("efficacy", "paraphrase", "neighbourhood"):
        name = f"edit/final/{metric}/token_accuracy_published/teacher_forced"
        assert watcher.last[name] == pytest.approx(own[name])
        plain = own[name.replace("_published", "")]
        if family == "gpt2" and metric != "neighbourhood":  # no BOS and no second blank: the same tokens
            assert watcher.last[name] == pytest.approx(plain)
        assert 0.0 <= watcher.last[name] <= 1.0
    assert own["edit/final/efficacy/token_accuracy_published/teacher_forced"] > 0
