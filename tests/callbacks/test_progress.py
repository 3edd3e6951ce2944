"""Progress: what is told of a run, as bars, as lines, or not at all."""

import io
import logging
import os
import pickle
import re
import sys
import time

import pytest
from stream import editor, stream, trainer
from tiny import save_tiny

from lit_edit.errors import EditError
from lit_edit.progress import EditProgressBar, PlainProgress, Progress, QuietProgress, fitting
from lit_edit.progress.estimate import Estimate
from lit_edit.progress.messages import loggers, only_warnings


class Recorder(Progress):
    """Writes down every event."""

    def __init__(self):
        super().__init__()
        self.events, self.works = [], []

    def stream_begins(self, done, total):
        self.events.append(("begins", done, total))

    def stream_moves(self, done, total, edits, scores):
        self.events.append(("moves", done, total, edits, sorted(scores)))

    def stream_ends(self):
        if self.events and self.events[-1] != ("ends",):
            self.events.append(("ends",))

    def work(self, name, done, total):
        self.works.append((name, done, total))

    def work_ends(self):
        pass

    def scored(self, protocol, edits, scores):
        self.events.append(("scored", protocol, edits, sorted(scores)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


def run(model, folder, progress, **options):
    """A run of three batches of two, validated after the second."""
    folder.mkdir(exist_ok=True)
    module, data = editor(model, folder / "cache"), stream(folder, 6, scored_at_once=2)
    made = trainer(folder, [progress], enable_progress_bar=True, **options)
    made.fit(module, datamodule=data)
    return made, module, data


def test_what_is_told(model, tmp_path):
    seen = Recorder()
    made, module, data = run(model, tmp_path, seen)
    made.test(module, datamodule=data, verbose=False)
    numbers = ["efficacy", "neighbourhood", "paraphrase", "text"]
    assert seen.events == [
        ("begins", 0, 3),
        ("moves", 1, 3, 2, ["efficacy"]),
        ("moves", 2, 3, 4, ["efficacy"]),
        ("scored", "so_far", 4, numbers),
        ("moves", 3, 3, 6, ["efficacy", "so far"]),
        ("ends",),
    ]
    names = list(dict.fromkeys(name for name, *_ in seen.works))
    assert names[0] == "second moments" and {"spectra", "targets", "layers", "scoring edits", "probing text"} <= set(names)
    scoring = [(name, done, total) for name, done, total in seen.works if name in ("scoring edits", "probing text")]
    # Four edits by two, then two documents: the whole is known before it begins.
    assert scoring[:3] == [("scoring edits", 0, 3), ("scoring edits", 1, 3), ("probing text", 2, 3)]
    assert all(done <= total for _, done, total in seen.works)


def test_other_ranks_say_nothing(model, tmp_path):
    seen = Recorder()
    seen.disable()
    run(model, tmp_path, seen)
    assert seen.events == seen.works == []


def test_a_resumed_stream_goes_on_where_it_stood(model, tmp_path):
    made, *_ = run(model, tmp_path, Recorder(), max_steps=2)
    made.save_checkpoint(tmp_path / "two.ckpt")
    seen = Recorder()
    again = trainer(tmp_path, [seen], enable_progress_bar=True)
    again.fit(editor(model, tmp_path / "cache"), datamodule=stream(tmp_path, 6), ckpt_path=str(tmp_path / "two.ckpt"))
    assert [event for event in seen.events if event[0] != "scored"][:2] == [
        ("begins", 2, 3),
        ("moves", 3, 3, 6, ["efficacy", "so far"]),
    ]


# ---------------------------------------------------------------------------------------------------- lines


def test_lines_without_control_characters(model, tmp_path, capsys):
    run(model, tmp_path, PlainProgress(3600))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert all(line.isprintable() for line in said)
    wanted = [
        r"editing from batch 1 of 3",
        r"batch 1/3, 2 edits, \d+\.\d s a batch, ETA 0:\d\d, efficacy \d\.\d{3}",
        r"scored so far \(4 edits\): efficacy \d\.\d{3}, paraphrase \d\.\d{3}, neighbourhood \d\.\d{3}, text \d+\.\d{3}",
        r"batch 3/3, 6 edits, \d+\.\d s a batch, in 0:\d\d, efficacy \d\.\d{3}, so far \d\.\d{3}",
    ]
    assert len(said) == len(wanted), said
    for line, pattern in zip(said, wanted, strict=True):
        assert re.fullmatch(rf"\[\d\d:\d\d:\d\d\] {pattern}", line), line


def test_lines_of_every_step(model, tmp_path, capsys):
    run(model, tmp_path, PlainProgress(0))
    said = capsys.readouterr().err
    assert re.search(r"\] second moments \d+/600", said) and re.search(r"\] batch 1/3, targets \d/\d", said)
    assert re.search(r"\] batch 2/3, 4 edits", said)
    assert re.search(r"\] scoring edits 1/3, ETA 0:\d\d\n", said), "an evaluation is not part of a batch"
    assert "batch 4/3" not in said


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_pause_that_is_none(seconds):
    with pytest.raises(EditError, match="every_seconds"):
        PlainProgress(seconds)


def test_quiet(model, tmp_path, capsys):
    with only_warnings():
        run(model, tmp_path, QuietProgress())
        logging.getLogger("lit_edit.data.stream").warning("a warning")
    said = capsys.readouterr()
    assert said.out == "" and "edits in the stream" not in said.err and "efficacy" not in said.err


def test_levels_come_back():
    logger = logging.getLogger("lit_edit.some")
    logger.setLevel(logging.DEBUG)
    with only_warnings():
        assert not logger.isEnabledFor(logging.INFO) and logger.isEnabledFor(logging.WARNING)
    assert logger.level == logging.DEBUG


# ---------------------------------------------------------------------------------------------------- bars


class Screen(io.StringIO):
    """A terminal that knows what tqdm does to it: line feeds, carriage returns, and moves one line up."""

    def isatty(self):
        return True

    def lines(self):
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if part == "\x1b[A":
                row -= 1
            elif part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row - len(rows) + 1)
            else:
                rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in rows if line.strip()]


@pytest.mark.parametrize("width", [40, 100])
def test_bars_leave_one_line(model, tmp_path, monkeypatch, width):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("lit_edit.progress.bars._SOON", 0)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (width, 20))
    with only_warnings():
        run(model, tmp_path, EditProgressBar())
    (line,) = screen.lines()
    assert line.startswith("Editing: 100%|") and "3/3, in 0:" in line and len(line) <= width
    if width == 100:
        assert "6 edits, efficacy " in line
    told = screen.getvalue()
    assert "second moments" in told and "  targets" in told and "  scoring edits" in told and "ETA 0:" in told


def test_an_error_leaves_no_bar_open(model, tmp_path, monkeypatch):
    screen, bars = Screen(), EditProgressBar()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("lit_edit.progress.bars._SOON", 0)
    broken = editor(model, tmp_path / "cache")
    broken.listen(lambda phase, done, total: 1 / (phase != "targets" or done < 3))
    with only_warnings(), pytest.raises(ZeroDivisionError):
        trainer(tmp_path, [bars], enable_progress_bar=True).fit(broken, datamodule=stream(tmp_path, 6))
    assert [line.split("|")[0] for line in screen.lines()] == ["Editing:   0%"]
    assert bars._stream is None and bars._work is None


class Terminal(Screen):
    """One of a certain width, that goes on in the next line behind its last column."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def lines(self):
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[A|.", self.getvalue(), re.DOTALL):
            if part == "\x1b[A":
                row -= 1
            elif part == "\r":
                column = 0
            else:
                if part == "\n" or column == self.width:
                    row, column = row + 1, 0
                    rows += [""] * (row - len(rows) + 1)
                if part != "\n":
                    rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
                    column += 1
        return [line.rstrip() for line in rows if line.strip()]


@pytest.mark.parametrize("width", [40, 100])
def test_ctrl_c_leaves_one_line(model, tmp_path, monkeypatch, width):
    screen = Terminal(width)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("lit_edit.progress.bars._SOON", 0)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (width, 20))

    def press(phase, done, total):
        if phase == "targets" and done == 3:
            screen.write("^C^C")  # what the terminal does when the keys are pressed, at the place of the cursor
            raise KeyboardInterrupt

    module = editor(model, tmp_path / "cache")
    module.listen(press)
    with only_warnings(), pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer(tmp_path, [EditProgressBar()], enable_progress_bar=True).fit(module, datamodule=stream(tmp_path, 6))
    (line,) = screen.lines()
    assert line.startswith("Editing:   0%|") and line.count("Editing") == 1 and "targets" not in line
    assert "  targets" in screen.getvalue()
    handlers = [type(handler).__name__ for logger in loggers() for handler in logger.handlers]
    assert not [name for name in handlers if "Tqdm" in name], "messages go where they went before"


def test_bars_can_be_sent_to_another_process():
    bars = EditProgressBar()
    bars.stream_begins(0, 3)
    assert pickle.loads(pickle.dumps(bars))._stream is None
    bars.stream_ends()


@pytest.mark.parametrize(
    ("terminal", "kind", "wanted"),
    [(True, "xterm", EditProgressBar), (True, "dumb", PlainProgress), (False, "xterm", PlainProgress)],
)
def test_what_fits(monkeypatch, terminal, kind, wanted):
    monkeypatch.setattr(sys, "stderr", Screen() if terminal else io.StringIO())
    monkeypatch.setitem(os.environ, "TERM", kind)
    assert type(fitting()) is wanted


# ---------------------------------------------------------------------------------------------------- time


def test_the_time_that_is_left():
    clock = Estimate(10, 14, now=100.0)
    assert clock.left(now=150.0) is None and clock.told(now=150.0) == ""
    clock.move(11, 14, now=110.0)
    assert clock.each() == 10.0, "what a resumed run did before is not counted"
    assert clock.left(now=110.0) == 30.0 and clock.left(now=115.0) == 25.0 and clock.left(now=500.0) == 20.0
    clock.move(11, 14, now=119.0)  # told again, no further
    assert clock.left(now=119.0) == 21.0
    clock.move(14, 14, now=140.0)
    assert clock.left(now=200.0) == 0.0 and clock.spent(now=200.0) == 100.0
    unknown = Estimate(0, 0)
    unknown.move(5, 0, time.monotonic() + 1)
    assert unknown.told() == ""
