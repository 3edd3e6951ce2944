"""What cannot be loaded is refused in one sentence with the way out, for every command that loads a model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors
from transformers import LlamaForSequenceClassification

from tests.doctor.refusing import refused
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere")

# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("typed", ["./models/world-gtp2", "models/wrld-gpt2", "./model/World-GPT2", "modells/world-gpt2"])
def test_a_misspelt_folder_is_told_with_the_nearest(typed):
    save_tiny("models/world-gpt2", "gpt2")
    Path("models/world-notes").mkdir()
    sentence = refused(typed)
    assert sentence.endswith("did you mean models/world-gpt2?") and repr(typed)[1:-1] in sentence


def test_a_folder_that_nothing_is_like():
    assert refused("./nowhere").endswith("or the name of one that comes with lit_edit (world-gpt2, world-llama)")


def test_the_folder_above_the_models():
    save_tiny("models/small", "gpt2")
    assert refused("./models").endswith("did you mean models/small?")


def test_a_file():
    Path("model.safetensors").touch()
    assert "is a file" in refused("./model.safetensors")


def test_a_downloaded_model_whose_id_is_misspelt(tmp_path):
    (tmp_path / "hub" / "models--meta-llama--Llama-3.2-1B").mkdir(parents=True)
    sentence = refused("meta-lama/Llama-3.2-1b")
    assert "HF_HUB_OFFLINE is set" in sentence and sentence.endswith("did you mean meta-llama/Llama-3.2-1B?")
    assert "'hf download nobody/else'" in refused("nobody/else") and "(downloaded: meta-llama/Llama-3.2-1B)" in refused(
        "nobody/else"
    )


HUB = {
    "gated": (errors.GatedRepoError, "is gated: accept its terms at https://huggingface.co/some/model and log in"),
    "unknown": (errors.RepositoryNotFoundError, "neither as a folder nor on the hub; a private one needs 'hf auth login'"),
    "revision": (errors.RevisionNotFoundError, "has no revision 'v9'"),
}


@pytest.mark.parametrize("case", HUB)
def test_what_the_hub_refuses(case, monkeypatch):
    kind, phrase = HUB[case]
    response = SimpleNamespace(headers={}, request=None, status_code=403)

    def download(*_args, **_kwargs):
        raise kind("no", response=response)

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    assert phrase in refused("some/model", "v9")


def test_a_hub_that_does_not_answer(monkeypatch):
    def download(*_args, **_kwargs):
        raise errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert "and the hub does not answer" in refused("some/model")


# ------------------------------------------------------------------------------------------------ folders


def test_no_configuration():
    Path("empty").mkdir()
    assert "holds no config.json" in refused("empty")


def test_a_configuration_that_is_no_json():
    folder = save_tiny("model", "gpt2")
    (folder / "config.json").write_text("{")
    assert f"the configuration {folder / 'config.json'} cannot be read" in refused(folder)


def test_no_weights():
    folder = save_tiny("model", "gpt2")
    (folder / "model.safetensors").unlink()
    assert "no weights (model.safetensors)" in refused(folder)


def test_weights_that_git_did_not_fetch():
    folder = save_tiny("model", "gpt2")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    assert "fetch them with 'git lfs pull'" in refused(folder)


def test_weights_that_are_cut_off():
    folder = save_tiny("model", "gpt2")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "cannot be loaded: SafetensorError" in refused(folder)


def test_a_head_that_would_be_random():
    LlamaForSequenceClassification(tiny_model("llama").config).save_pretrained("classifier")
    tiny_tokenizer().save_pretrained("classifier")
    sentence = refused("classifier")
    assert "(LlamaForSequenceClassification) lacks lm_head.weight, which would be random" in sentence


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_tokenizer(family):
    tiny_model(family).save_pretrained("model")
    assert "comes without a tokenizer" in refused("model")


def test_a_tokenizer_that_has_to_be_converted(monkeypatch):
    def convert(*_args, **_kwargs):
        raise ValueError("You need to have sentencepiece or tiktoken installed to convert a slow tokenizer to a fast one.")

    tiny_model("llama").save_pretrained("model")
    Path("model/tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", convert)
    sentence = refused("model")
    assert "'pip install sentencepiece tiktoken'" in sentence and "put a tokenizer.json there" in sentence


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter(whole):
    folder = save_tiny("adapter", "gpt2") if whole else Path("adapter")
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"}))
    sentence = refused(folder)
    assert "adapter (adapter_config.json) on top of some/base; merge it first" in sentence and "merge_and_unload" in sentence
