"""How a command ends."""

import pytest

from lit_edit.errors import EditError, exit_code


def test_a_command_that_ends_well_says_nothing(capsys):
    assert exit_code("lit-edit", lambda: None) == 0 and exit_code("lit-edit", lambda: 3) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("ended", "code", "sentence"),
    [
        (EditError("there is no run"), 2, "lit-edit: error: there is no run\n"),
        (KeyboardInterrupt(), 130, "\nlit-edit: ended by Ctrl-C\n"),
    ],
)
def test_mistakes_and_ctrl_c_end_in_a_sentence(ended, code, sentence, capsys):
    def work():
        raise ended

    assert exit_code("lit-edit", work) == code
    assert capsys.readouterr().err == sentence


def test_an_error_of_the_project_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code("lit-edit", lambda: 1 // 0)
