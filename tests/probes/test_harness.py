"""Tasks of the lm-evaluation-harness: with a stand-in for the package everywhere, with the package where it is installed."""

import importlib.util
import json
import math
import random
import sys
import types
from pathlib import Path

import numpy
import pytest
import torch
from helpers import measured, scorer, state_of

from lit_edit.errors import EditError
from lit_edit.metrics.statistics import paired_change
from lit_edit.probes import LMEval
from lit_edit.probes.harness import as_pair

INSTALLED = all(importlib.util.find_spec(name) for name in ("lm_eval", "accelerate"))


class FakeTask:
    OUTPUT_TYPE = "multiple_choice"

    def __init__(self, name):
        self.name = name

    def aggregation(self):
        def mean(values):
            return sum(values) / len(values)

        return {"acc": mean, "share": lambda pairs: sum(a for a, _ in pairs) / sum(b for _, b in pairs)}

    def higher_is_better(self):
        return {"acc": True, "share": False}


def fake_package(calls):
    """A package with the harness's interface and all its side effects."""

    class TaskManager:
        def __init__(self, include_path=None):
            self.include_path = include_path

        def load(self, names):
            if names == ["unknown"]:
                raise KeyError("Spec 'unknown' is not registered")
            parts = ["history", "physics"] if names == ["group"] else names
            return {"tasks": {part: FakeTask(part) for part in parts}, "groups": {}, "group_map": {}}

    class HFLM:
        def __init__(self, pretrained, tokenizer, batch_size, max_length):
            pretrained.eval()
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
            tokenizer.padding_side = "left"
            self.model, self.batch_size = pretrained, batch_size

    def simple_evaluate(model, tasks, num_fewshot, limit, bootstrap_iters, log_samples, use_cache, task_manager):
        random.seed(0)
        numpy.random.seed(1234)
        torch.manual_seed(1234)
        model.model.generation_config.temperature = 0.5
        assert use_cache is None and log_samples and bootstrap_iters == 0
        calls.append(([task.name for task in tasks], num_fewshot, limit, model.batch_size, torch.is_grad_enabled()))
        samples = {}
        for task in tasks:
            samples[task.name] = [
                {
                    "doc_id": i,
                    "filter": "none",
                    "metrics": ["acc", "share", "bleu"],
                    "acc": i % 2 == 0,
                    "share": (i, 2),
                    "bleu": ("a", "b"),
                }
                for i in range(limit or 5)
            ]
        return {"results": {}, "samples": samples}

    package, tasks = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.tasks")
    models, huggingface = types.ModuleType("lm_eval.models"), types.ModuleType("lm_eval.models.huggingface")
    package.simple_evaluate, tasks.TaskManager, huggingface.HFLM = simple_evaluate, TaskManager, HFLM
    found = {"lm_eval": package, "lm_eval.tasks": tasks, "lm_eval.models": models, "lm_eval.models.huggingface": huggingface}
    for name, module in found.items():
        module.__spec__ = importlib.util.spec_from_loader(name, None)
    if importlib.util.find_spec("accelerate") is None:  # a stand-in beside the real one would confuse transformers
        found["accelerate"] = types.ModuleType("accelerate")
        found["accelerate"].__spec__ = importlib.util.spec_from_loader("accelerate", None)
    return found


@pytest.fixture
def calls(monkeypatch):
    made = []
    for name, module in fake_package(made).items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_rows_are_documents_and_groups_are_pooled(calls):
    probe = LMEval(["cola", "group"], limit=5, shots=2, batch_size=3)
    rows = measured(probe, scorer())
    assert calls == [(["cola"], 2, 5, 3, False), (["history", "physics"], 2, 5, 3, False)]
    assert rows.shape == (2 * 5 + 2 * 10, 4)
    found = probe.summarise(rows)
    assert found == {
        "cola_acc/likelihood": 0.6,
        "cola_share/likelihood": 1.0,
        "group_acc/likelihood": 0.6,
        "group_share/likelihood": 1.0,
    }
    assert probe.shown == "cola_acc/likelihood" and probe.higher_is_better
    intervals = paired_change(rows, rows, probe.summarise, resamples=20)
    assert set(intervals) == set(found) and all(interval.low == interval.high == 0 for interval in intervals.values())


def test_a_metric_without_rows_is_nan_and_not_missing(calls):
    probe = LMEval(["cola"], limit=3)
    rows = measured(probe, scorer())
    found = probe.summarise(rows[rows[:, 1] == 0])
    assert found["cola_acc/likelihood"] == pytest.approx(2 / 3) and math.isnan(found["cola_share/likelihood"])


def test_nothing_is_left_behind(calls):
    real = scorer("llama", True)
    real.anatomy.model.train()
    real.anatomy.model.requires_grad_(True)
    random.seed(5)
    before = state_of(real)
    measured(LMEval(["cola", "group"]), real)
    assert calls and state_of(real) == before


def test_values_that_are_no_numbers_are_left_out():
    assert as_pair(("a", "b")) is None and as_pair([1, 2, 3]) is None and as_pair(numpy.float32(2.0))[0] == 2.0


def test_mistakes(calls):
    for arguments, sentence in (
        ({"tasks": []}, "names no tasks"),
        ({"tasks": ["a", "a"]}, "names the task 'a' twice"),
        ({"tasks": ["a"], "limit": 0}, "limit is 0"),
        ({"tasks": ["a"], "shots": -1}, "shots is -1"),
        ({"tasks": ["a"], "batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(EditError, match=sentence):
            LMEval(**arguments)
    with pytest.raises(EditError, match=r"cannot load the task 'unknown' \(KeyError"):
        measured(LMEval(["unknown"]), scorer())


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_package_there_is_one_sentence():
    with pytest.raises(EditError, match=r"the package lm_eval is not installed; pip install 'lit-edit\[lm-eval\]'"):
        LMEval(["hellaswag"]).items()


@pytest.mark.skipif(not INSTALLED, reason="needs the optional package lm-eval")
@pytest.mark.filterwarnings("ignore")
def test_numbers_are_those_of_the_harness(tmp_path, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = [{"sentence": f"Paris is {'big ' * i}.", "label": i % 2} for i in range(12)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    common = (
        "dataset_path: json\ndataset_kwargs: {data_files: {test: "
        + str(tmp_path / "docs.jsonl")
        + "}}\ntest_split: test\nfewshot_split: test\n"
    )
    files = {
        "choice": 'output_type: multiple_choice\ndoc_to_text: "{{sentence}} OK?"\ndoc_to_target: label\ndoc_to_choice: ["No", "Yes"]\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}]\n",
        "said": 'output_type: generate_until\ndoc_to_text: "{{sentence}}"\ndoc_to_target: "x"\ngeneration_kwargs: {until: ["."], max_gen_toks: 4}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
        "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{sentence}}"\nmetric_list: [{metric: bits_per_byte}]\n',
    }
    for name, text in files.items():
        Path(tmp_path, f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    real = scorer("llama", True)
    probe = LMEval(list(files), limit=10, shots=2, include_path=str(tmp_path))
    real.anatomy.model.train()
    before = state_of(real)
    rows = measured(probe, real)
    assert state_of(real) == before
    assert torch.equal(rows.nan_to_num(-9), measured(probe, real, 1).nan_to_num(-9))
    found = probe.summarise(rows)
    harness = simple_evaluate(
        model=HFLM(pretrained=real.anatomy.model, tokenizer=real.encoder.tokenizer, batch_size=8),
        tasks=list(files), num_fewshot=2, limit=10, bootstrap_iters=0, task_manager=TaskManager(include_path=str(tmp_path)),
    )["results"]  # fmt: skip
    assert found == {
        "choice_acc/likelihood": pytest.approx(harness["choice"]["acc,none"]),
        "choice_mcc/likelihood": pytest.approx(harness["choice"]["mcc,none"]),
        "said_exact_match/generated": pytest.approx(harness["said"]["exact_match,none"]),
        "rolling_bits_per_byte/teacher_forced": pytest.approx(harness["rolling"]["bits_per_byte,none"]),
    }
