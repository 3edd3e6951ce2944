"""How settings are told where there is little room."""

from lit_edit.editors import MEMIT
from lit_edit.guards import REVIVE, Guard
from lit_edit.runs.run_settings import called, method_of, settings_of

SETTINGS = settings_of(
    {
        "model": {
            "editor": {"class_path": "MEMIT", "init_args": {"lam": 1000.0, "history": True}},
            "guards": [
                {"class_path": "REVIVE", "init_args": {"tau": 0.1, "mode": "project"}},
                {"class_path": "REVIVE", "init_args": {"tau": 0.25, "mode": "constrain"}},
            ],
        }
    }
)


def test_a_part_is_told_with_what_is_not_its_default():
    assert called(MEMIT(), "model.editor", SETTINGS) == "MEMIT(lam=1000, history=True)"
    assert called(MEMIT(), "model.editor", SETTINGS, ("lam",)) == "MEMIT(history=True)"
    assert called(REVIVE(), "model.guards.0", SETTINGS) == "REVIVE"
    assert called(REVIVE(), "model.guards.1", SETTINGS) == "REVIVE(tau=0.25, mode=constrain)"


def test_a_method_is_its_editor_and_its_guards():
    assert method_of(MEMIT(), [REVIVE(), REVIVE()], SETTINGS) == (
        "MEMIT(lam=1000, history=True) + REVIVE + REVIVE(tau=0.25, mode=constrain)"
    )
    assert method_of(MEMIT(), [], {}) == "MEMIT + no guard"


def test_without_settings_there_is_only_the_class():
    assert called(REVIVE(tau=0.3), "model.guards.0", {}) == "REVIVE"


class Quiet(Guard):
    """A guard of somebody's own, without options."""

    def forward(self, layer, delta, weight):
        return delta


def test_options_of_another_class_are_not_told():
    assert called(Quiet(), "model.guards.1", SETTINGS) == "Quiet"
