"""What a plan takes the machine to be."""

import pytest
import torch

from lit_edit.errors import EditError
from lit_edit.plan import machine


@pytest.mark.parametrize(("there", "auto"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch, there, auto):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert machine.device_of("auto") == auto and machine.device_of("cpu") == "cpu"


@pytest.mark.parametrize("wanted", ["gpu", "cuda"])
def test_a_gpu_that_is_asked_for_has_to_be_there(monkeypatch, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EditError, match=f"--trainer.accelerator is {wanted}, and this machine has no GPU that torch can use"):
        machine.device_of(wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.device_of(wanted) == "cuda"


@pytest.mark.parametrize("wanted", ["tpu", "mps", ""])
def test_edits_run_on_cpu_or_gpu(wanted):
    with pytest.raises(EditError, match="edits run on cpu or gpu"):
        machine.device_of(wanted)


def test_memory_that_is_left_counts_what_the_process_holds_already(monkeypatch):
    monkeypatch.setattr(machine, "_of_machine", lambda: 0)
    held = machine.resident()
    assert 0 < held < 2**45 and machine.available("cpu") == pytest.approx(held, rel=0.1)


def test_a_machine_without_meminfo_is_asked_for_its_pages(monkeypatch):
    told = machine._of_machine()
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: "MemTotal: 1 kB")
    assert machine._of_machine() >= told, "what is there is at least what is free"
