"""Every check that looks at the model is seen to find what it is there to find, and to leave a healthy model alone."""

import pytest

from lit_edit.doctor.finding import Verdict
from tests.doctor import broken
from tests.doctor.cases import all_checks, finding, opened, with_logits
from tests.doctor.test_broken_tokenizers import BROKEN as TOKENIZERS
from tests.tiny import tiny_model

BROKEN = {
    ("parts", "class"): [(broken.saved_as_a_classifier, "note", "saved as LlamaForSequenceClassification")],
    ("parts", "blocks"): [(broken.a_block_without_mlp, "off", "only layers 0 to 1, 3")],
    ("parts", "down-projection"): [(broken.a_scaled_down_projection, "off", "not W k + b")],
    ("parts", "norm behind MLP"): [(broken.a_layer_norm_behind_the_mlp, "off", "no RMS norm")],
    ("parts", "final norm"): [(broken.a_scale_before_the_head, "note", "reads something else")],
    ("parts", "head"): [(broken.an_untied_copy_of_the_embeddings, "note", "tie_word_embeddings = True")],
    ("parts", "logits"): [
        (lambda _: opened(with_logits(broken.llama(), lambda x, _: x.sin())), "note", "way of the model's own")
    ],
    ("shape", "attention"): [
        (broken.no_cache, "note", "no attention that keeps"),
        (broken.a_cache_that_fails, "note", "no attention that keeps"),
    ],
    ("shape", "MLP"): [(broken.an_mlp_of_its_own, "note", "not recognised")],
    ("shape", "vocabulary"): [(lambda _: opened(broken.llama(vocab_size=1000)), "note", "ids up to 319")],
    ("shape", "positions"): [(lambda _: opened(broken.llama(max_position_embeddings=40)), "note", "40")],
    ("shape", "dtype"): [(broken.a_parameter_in_another_dtype, "note", "1 in bfloat16")],
    ("shape", "memory"): [(broken.a_full_device, "off", "has 0.0 MiB left")],
    ("shape", "layers"): [
        (lambda _: opened(layers=[1, 2]), "off", "the last one is the last block"),
        (lambda _: opened(broken.llama(num_hidden_layers=1)), "cannot", "single block"),
        (broken.another_choice_was_published, "note", "published: 1 for Llama 3 tiny (a paper)"),
    ],
    ("padding", "right, masked"): [(broken.masked_padding_counts, "cannot", "masked padding on the right")],
    ("padding", "right, unmasked"): [(broken.length_counts, "cannot", "padding on the right")],
    ("padding", "left"): [(broken.positions_are_ignored, "note", "not exact")],
    ("padding", "generation"): [
        (broken.positions_are_ignored, "note", "moves with padding"),
        (broken.generate_fails, "off", "generate() fails (ValueError: no such cache)"),
        (broken.no_generate, "note", "no generate()"),
    ],
    ("inside", "block output"): [(broken.the_last_block_returns_a_tuple, "off", "layers 2 return something else")],
    ("inside", "hooks"): [(broken.an_mlp_that_goes_round_its_down_projection, "off", "ran 0 times")],
    ("inside", "residual stream"): [(broken.a_scaled_mlp, "off", "in layer 1, 50.0 % of a wanted change arrives")],
    ("partial passes", "causal"): [(broken.looks_ahead, "cannot", "sees what comes after it")],
    ("partial passes", "stopped early"): [(broken.noisy, "cannot", "the output of block 0")],
    ("partial passes", "in a batch"): [(broken.rows_of_a_batch_meet, "cannot", "in a batch")],
    ("partial passes", "started late"): [(broken.something_is_added_behind_a_block, "cannot", "started behind block 0")],
    ("partial passes", "picked logits"): [(broken.logits_are_centred_over_positions, "cannot", "at some positions only")],
    ("partial passes", "packs"): [
        (broken.a_window_shorter_than_a_row, "note", "not used: off by"),
        (broken.a_window_that_the_trial_missed, "off", "used, but off by"),
    ],
    ("partial passes", "continuation"): [
        (broken.a_cache_that_forgets, "note", "not used: off by"),
        (broken.a_cache_that_forgets_unnoticed, "off", "used behind block 0, but off by"),
    ],
    ("edit and undo", "target"): [(broken.no_attention_behind_the_edit, "off", "at the target")],
    ("edit and undo", "written"): [(broken.a_weight_that_is_not_read, "off", "0 % of the hidden state's change is there")],
    ("edit and undo", "weights undone"): [(broken.weights_finer_than_float32, "off", "weights differ")],
    ("edit and undo", "logits undone"): [(broken.a_model_that_counts, "off", "logits differ")],
    ("numbers", "weights"): [(broken.a_nan_weight, "cannot", "NaN or Inf in model.layers.1.mlp.up_proj.weight (1 of them)")],
    ("numbers", "device"): [(broken.a_part_elsewhere, "cannot", "spread over cpu, meta")],
    ("numbers", "logits"): [(broken.infinite_logits, "cannot", "logits are NaN or Inf")],
    ("numbers", "hidden states"): [(broken.huge_hidden_states, "off", "float16 holds 6.6e+04")],
    ("numbers", "precision"): [(lambda _: opened(broken.llama().bfloat16()), "note", "bfloat16 shows changes")],
    ("numbers", "the same twice"): [(broken.noisy, "off", "other logits the second time")],
    ("numbers", "float64"): [(broken.no_float64, "cannot", "has no float64")],
}


def test_every_check_has_a_model_or_a_tokenizer_that_it_finds_fault_with():
    assert {*BROKEN, *TOKENIZERS} == set(all_checks())


@pytest.mark.parametrize(
    ("check", "make", "verdict", "phrase"), [(check, *case) for check, cases in BROKEN.items() for case in cases]
)
def test_a_broken_model_is_found_out(check, make, verdict, phrase, monkeypatch):
    found = finding(*check, make(monkeypatch))
    assert (found.verdict, found.group, found.name) == (verdict, *check), found
    assert phrase in found.found, found
    assert found.advice.endswith("."), "and what to do about it"
    assert "could not be made" not in found.found


@pytest.mark.parametrize("check", BROKEN)
def test_a_healthy_model_is_not(check):
    model = tiny_model("gemma2") if check[1] == "norm behind MLP" else broken.llama()
    assert finding(*check, opened(model)).verdict is Verdict.OK


def test_a_check_that_fails_itself_is_told_and_ends_nothing():
    case = opened()
    case.model.get_input_embeddings = None
    found = finding("shape", "vocabulary", case)
    assert found.verdict is Verdict.OFF and "could not be made (TypeError" in found.found
