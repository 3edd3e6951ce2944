"""What TensorBoard is given: steps in requests, groups, descriptions, charts, hyper-parameters, texts."""

import re

import pytest
from stream import editor, stream, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tiny import save_tiny

from lit_edit.algebra.drift import MEASURES
from lit_edit.board import EditBoard
from lit_edit.board.tags import description, glossary, shown
from lit_edit.callbacks import BoardKeeper, Generations, RetentionScores


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of three batches of two, scored before and after as the command line does, and what TensorBoard has of it."""
    folder = tmp_path_factory.mktemp("run")
    module = editor(str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2")), folder / "cache")
    module.settings = {"model.editor.lam": 10.0, "model.editor.history": True, "model.guards.0.tau": 0.2, "seed_everything": 7}
    data = stream(folder, 6)
    watchers = [BoardKeeper(), RetentionScores(2), Generations(2, items=2)]
    board = EditBoard(folder, name="", version="tensorboard")
    run = trainer(folder, watchers, logger=[board], log_every_n_steps=1)
    run.validate(module, datamodule=data, verbose=False)
    run.fit(module, datamodule=data)
    data.review = None
    run.validate(module, datamodule=data, verbose=False)
    report = next(callback for callback in run.callbacks if type(callback).__name__ == "Report")
    report.write(run, module)
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return module, EventAccumulator(str(folder / "tensorboard"), size_guidance=sizes).Reload()


def steps(events, tag):
    return [point.step for point in events.Scalars(tag)]


def test_steps_count_requests(ran):
    _, events = ran
    assert steps(events, "edit/immediate/efficacy/accuracy") == [2, 4, 6]
    assert steps(events, "spectral/relative_norm/layer_1") == [2, 4, 6]
    assert steps(events, "ability/text/perplexity_per_token") == [0, 4, 6], "the unedited model stands at 0"
    assert steps(events, "before/efficacy/accuracy") == [0]
    assert steps(events, "edit/so_far/efficacy/accuracy") == [4]
    assert steps(events, "final/efficacy/accuracy") == [6]
    assert steps(events, "retention/efficacy/accuracy/first") == [4, 6]
    assert [image.step for image in events.Images("retention/matrix")] == [4, 6]
    assert [image.step for image in events.Images("spectral/spectrum/layer_0")] == [6]
    assert [text.step for text in events.Tensors("generations")] == [4, 6]


def test_every_number_is_in_a_group_and_is_described(ran):
    _, events = ran
    tags = events.Tags()["scalars"]
    groups = {tag.split("/")[0] for tag in tags}
    assert {"edit", "before", "final", "retention", "ability", "spectral", "guard", "time", "target"} <= groups
    assert not groups & {"probe", "drift", "epoch"}
    silent = [tag for tag in tags if not events.SummaryMetadata(tag).summary_description]
    assert silent == []
    assert "teacher_forced" not in " ".join(tags)
    assert "shown the answer" in events.SummaryMetadata("final/efficacy/accuracy").summary_description


def test_two_numbers_never_get_one_tag(ran):
    names = [
        f"edit/{p}/{m}/{s}"
        for p in ("before", "so_far", "final", "immediate")
        for m in ("efficacy",)
        for s in ("accuracy", "success")
    ]
    names = [f"{name}/{how}" for name in names for how in ("teacher_forced", "generated")]
    names += [f"drift/{measure}/layer_0" for measure in MEASURES] + ["probe/final/accuracy/teacher_forced"]
    assert len({shown(name) for name in names}) == len(names)
    assert "success" not in description("edit/so_far/efficacy/accuracy").lower()


def test_every_chart_finds_numbers_of_the_run(ran):
    _, events = ran
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    assert [one.title for one in layout.category if not one.closed] == [
        "Edits: accuracy",
        "Abilities",
        "Weights",
        "Guards",
        "Time and targets",
    ]
    charts = {f"{one.title}/{chart.title}": list(chart.multiline.tag) for one in layout.category for chart in one.chart}
    tags = events.Tags()["scalars"]
    empty = [name for name, wanted in charts.items() if not any(re.match(tag, known) for tag in wanted for known in tags)]
    assert empty == ["Edits: success/retention by age"]  # which was asked for in accuracy
    assert all(f"spectral/{name}/layer_.*$" in str(charts) for name in MEASURES)
    matched = [known for known in tags for tag in charts["All spectral measures: dominant subspace/ls"] if re.match(tag, known)]
    assert matched == ["spectral/ls/layer_0", "spectral/ls/layer_1"]


def test_hyper_parameters_with_the_scores_reached(ran):
    module, events = ran
    held = events.summary_metadata
    said = metadata.parse_session_start_info_plugin_data(held[metadata.SESSION_START_INFO_TAG].plugin_data.content)
    values = {name: value.string_value or value.number_value for name, value in said.hparams.items()}
    assert values == {
        "model": module.pretrained,
        "editor": "MEMIT(history=True)",
        "lam": 10.0,
        "guards": "REVIVE(tau=0.2)",
        "tau": 0.1,
        "layers": "0, 1",
        "batch_size": 2,
        "requests": 6,
        "targets.lr": module.targets.lr,
        "seed": 7,
    }
    columns = metadata.parse_experiment_plugin_data(held[metadata.EXPERIMENT_TAG].plugin_data.content)
    assert {info.name for info in columns.hparam_infos} == set(values)
    shown_scores = {info.display_name: info.name.tag for info in columns.metric_infos}
    assert {"efficacy, accuracy (final)", "text", "relative norm", "triple drift"} <= set(shown_scores)
    assert all(len(events.Scalars(tag)) for tag in shown_scores.values()), "every column has a score"
    assert events.Scalars("final/relative_norm")[0].value == pytest.approx(
        max(events.Scalars(f"spectral/relative_norm/layer_{layer}")[-1].value for layer in module.layers)
    )
    assert metadata.SESSION_END_INFO_TAG in held


def test_texts(ran):
    _, events = ran
    text = {
        name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
        for name in ("about", "generations", "names", "summary")
    }
    assert "| editor | MEMIT(history=True) |" in text["about"] and "| lam | 10 |" in text["about"]
    assert text["generations"].startswith("| prompt | said | new answer: said? |")
    assert "| relative_norm | Frobenius norm of the edited weight over" in text["names"]
    assert "6 edits in batches of 2, MEMIT(lam=10, history=True) + REVIVE(tau=0.2), layers" in text["summary"]


def test_names_explains_every_word(ran):
    """What a name is made of is a row of the table, or said not to be one of words."""
    _, events = ran
    rows = {line.split(" | ")[0].removeprefix("| ") for line in glossary().splitlines() if line.startswith("| ")}
    assert set(MEASURES) <= rows
    tags = events.Tags()["scalars"]
    words = {word for tag in tags if tag.split("/")[0] in ("before", "edit", "final", "retention") for word in tag.split("/")}
    assert words - rows - {"edit", "count", "relative_norm", "triple_drift", "generated"} == set()
    for line in glossary().splitlines():
        assert line.count("|") in (0, 3) and not line.lower().startswith("| accuracy | accuracy")


def test_what_a_model_says_is_no_markup():
    from lit_edit.callbacks.generations import _cell

    assert _cell("a | b\n<b>*x*</b>") == r"a \| b \<b\>\*x\*\</b\>"


def test_without_a_keeper_steps_are_the_trainers(tmp_path):
    board = EditBoard(tmp_path, name="", version="tb")
    board.log_metrics({"probe/grammar/accuracy/teacher_forced": 0.5, "epoch": 0}, 3)
    board.save()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(tag, steps(events, tag)) for tag in events.Tags()["scalars"]] == [("ability/grammar/accuracy", [3])]
