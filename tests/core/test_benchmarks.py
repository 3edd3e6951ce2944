"""The benchmark suites run, and write what they promise."""

import json
import math

import pytest

from benchmarks import requests, run

pytestmark = pytest.mark.slow  # half a minute of timing tiny things


def test_the_cpu_suite_measures_every_ratio(tmp_path, capsys):
    path = tmp_path / "cpu.json"
    returned = run.main(["cpu", "--quick", "--json", str(path), "--clock", "process"])
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.keys() == returned.keys() >= {*run.RATIOS, "environment", "seed", "load", "parts"}
    assert all(math.isfinite(written[name]) and written[name] > 0 for name in run.RATIOS)
    assert written["environment"]["torch"] and written["environment"]["threads"] >= 1
    assert set(written["parts"]) == set(run.cpu_parts())
    for name in ("batch10", "batch100"):
        part = written["parts"][name]
        assert part["largest_difference_of_a_change"] < 1e-3
        for side in ("ours_seconds", "textbook_seconds"):
            assert {"targets", "keys", "solve", "guard"} <= part[side].keys()
    for name in ("solve_gpt2_xl", "solve_gpt_j", "solve_llama"):
        assert written["parts"][name]["difference"] < 1e-8
    assert written["parts"]["moments"]["largest_difference"] < 1e-5
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*run.RATIOS, *run.cpu_parts()))


def test_the_gpu_suite_runs_on_any_device(tmp_path):
    path = tmp_path / "gpu.json"
    run.main(["gpu", "--quick", "--json", str(path)])
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert set(parts) == {"exact", "fast"} and parts["fast"]["dtype"] == "bfloat16"
    assert all(0 < part["seconds_per_edit"] < math.inf and "aten::mm" in part["profile"] for part in parts.values())


@pytest.mark.parametrize("wrong", [["--only", "batch7"], ["--counterfact", "x.json"]])
def test_a_part_that_is_not_there_and_records_without_a_tokenizer(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["cpu", "--json", str(tmp_path / "x.json"), *wrong])
    assert "batch100" in capsys.readouterr().err or wrong[0] == "--counterfact"


def test_drawn_requests_have_counterfacts_lengths():
    rows = requests.drawn(400, 50257, 5, 0)
    assert rows == requests.drawn(400, 50257, 5, 0) != requests.drawn(400, 50257, 5, 1)
    subject = sum(len(row.kl.ids) for row in rows) / 400
    assert subject == pytest.approx(4.13, abs=0.3) and all(len(row.rewriting) == 6 for row in rows)
    for row in rows:
        for one in row.rewriting:
            assert one.ids[one.subject - len(row.kl.ids) + 1 : one.subject + 1] == row.kl.ids
            assert one.labels[0][0] == len(one.ids) - 1
