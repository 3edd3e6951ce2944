"""Answers without the blank in front: how the precomputation of targets that was released with NSE tokenises them."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.prompts import EditRows, Encoder
from lit_edit.prompts import Row as Tokens
from lit_edit.targets import optimise
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import THROUGH_MODEL, Tally, Tolerance

_MODEL = Tolerance(THROUGH_MODEL, "float32 model")


def without_blank(method: Method, tally: Tally) -> None:
    """Targets with answers tokenised as the released precomputation does: without the blank in front.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
    """
    recording = method.recording
    for name, match in method.file.names(r"batch(\d+)/z_as_released_without_leading_space"):
        rows = [glued(recording.encoder, row, recording.contexts) for row in recording.batches[int(match[1])]]
        recording.restore()
        found = optimise(recording.anatomy, rows, method.layers[-1], method.options, recording.encoder.pad)
        tally.tensor(method.file, name, "z, answers without a blank [original weights]", found.values_ND, _MODEL)


def glued(encoder: Encoder, row: EditRows, contexts: Sequence[str]) -> EditRows:
    """The rows of a request whose answer follows the prompt without a blank.

    Args:
        encoder: of the recorded model.
        row: the rows with a blank; what they compare with the unedited model stays.
        contexts: in front of the prompt, each with ``{}`` where it stands.
    """
    request, subject = row.request, row.request.subject.strip()
    before, after = request.prompt.split("{}")
    ids, spans = encoder.encode(request.target_new.strip())
    answer = [token for token, (start, end) in zip(ids, spans, strict=True) if end > start]  # without a BOS
    rewriting = []
    for context in ("{}", *contexts):
        head, tail = context.split("{}")
        ids, spans = encoder.encode(f"{head}{before}{subject}{after}{tail}{encoder.tokenizer.decode(answer[:-1])}")
        at = encoder.subject_index(spans, len(head) + len(before) + len(subject))
        rewriting.append(Tokens(tuple(ids), at, tuple(zip(range(len(ids) - len(answer), len(ids)), answer, strict=True))))
    return EditRows(tuple(rewriting), row.kl, request)
