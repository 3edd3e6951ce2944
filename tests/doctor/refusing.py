"""Models that are refused, and the sentence that they are refused with."""

import json

import pytest
import torch

from lit_edit import EditError
from lit_edit.models.identity import load_pretrained
from tests.tiny import save_tiny


def refused(pretrained, revision=None, **options):
    """The sentence that a model is refused with."""
    with pytest.raises(EditError) as caught:
        load_pretrained(str(pretrained), revision, torch.float32, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400
    return sentence


def configured(name="model", family="llama", **entries):
    """A folder whose configuration says something else."""
    folder = save_tiny(name, family)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder
