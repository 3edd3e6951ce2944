"""What ``lit-edit --help`` says: every verb in a line. It needs nothing that takes time to import."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

TRAINER = {
    "fit": "edit a stream of facts, batch after batch",
    "validate": "score a model, or with --ckpt_path a run, on a sample of the edits made so far, and the probes",
    "test": "the same on all edits of the stream, made or not",
    "predict": "write down what it answers to every edit prompt",
}
"""The verbs of the trainer, whose options are those of model, data and trainer."""
_GROUPS = {
    "Edit, score": TRAINER,
    "Before a run": {
        "configs": "list the configurations that --config takes by name; 'lit-edit configs NAME' prints one",
        "doctor": "can this model be edited, and what is off where not? lit-edit doctor MODEL",
        "plan": "what will a run cost? The options of fit; nothing is loaded",
    },
    "After a run": {
        "report": "one HTML page about runs: lit-edit report RUN ...",
        "journal": "show, verify, replay, take back what a run has written: lit-edit journal VERB RUN",
        "export": "the edited model as a folder, a change or an adapter for others to load: lit-edit export RUN --to DIR",
    },
    "Experiments": {
        "study": "spectra and streams, a table and a figure each: lit-edit study NAME --config NAME",
        "verify": "replay recorded numbers of reference implementations: lit-edit verify DIR",
        "pretrain": "train the embedded model anew",
        "pretrain-facts": "train a model that knows the true facts of CounterFact",
        "train-mend": "train the network that the editor MEND needs",
    },
}


def overview() -> str:
    """Text of ``lit-edit --help``.

    Example:
        >>> print(overview().splitlines()[0])
        usage: lit-edit VERB [OPTIONS]
    """
    lines = ["usage: lit-edit VERB [OPTIONS]", "", "Continual knowledge editing of language models."]
    for title, verbs in _GROUPS.items():
        lines += ["", f"{title}:", *(f"  {verb:<15} {told}" for verb, told in verbs.items())]
    return "\n".join(
        (
            *lines,
            "",
            "lit-edit VERB --help      the options of a verb",
            "lit-edit --version        the version",
            "",
            "Begin with: lit-edit fit --config quickstart",
        )
    )


def no_verb(word: str, verbs: Iterable[str]) -> str:
    """A sentence about a word that is none of the verbs.

    Example:
        >>> no_verb("studi", ["fit", "study"])
        "there is no verb 'studi'; did you mean study? See lit-edit --help"
    """
    near = get_close_matches(word, list(verbs), n=1)
    return f"there is no verb {word!r}; {f'did you mean {near[0]}? S' if near else 's'}ee lit-edit --help"
