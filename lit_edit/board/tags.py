"""What the numbers of a run are called in TensorBoard, where the first word of a name makes a group, and what they mean."""

from __future__ import annotations

GROUPS = {
    "edit/before/": "before/",
    "edit/final/": "final/",
    "edit/retention/": "retention/",
    "probe/": "ability/",
    "drift/": "spectral/",
}
"""Beginnings of logged names that are something else in TensorBoard. A tab of sixty cards has no beginning: protocols that are
measured once stand beside those that go on along the stream."""

PROTOCOLS = {
    "before": "A sample of the stream's edits on the unedited model.",
    "immediate": "Each batch right after it was written.",
    "so_far": "A sample of the edits made up to then, on the weights of then.",
    "final": "All edits of the stream on the final weights.",
    "retention": "Cohorts of earlier edits, scored again along the stream.",
}
METRICS = {
    "efficacy": "The edit prompt; the new answer is wanted.",
    "paraphrase": "The edit prompt in other words; the new answer is wanted.",
    "neighbourhood": "Other subjects, whose own answers should survive.",
    "portability": "What follows from the edit.",
    "locality": "Prompts that the edit should leave alone.",
    "score": "Harmonic mean of efficacy, paraphrase and neighbourhood.",
    "negation": "The negated edit prompt, after which the new answer is wrong: low is good.",
    "fluency": "Free texts: entropy of their bi- and trigrams, in bits.",
    "consistency": "Free texts: similarity to texts about the new answer.",
}
SCORINGS = {
    "accuracy": "Accuracy: every token of the answer is the likeliest one.",
    "token_accuracy": "Token accuracy: share of the answer's tokens that are the likeliest ones.",
    "success": "Success: the wanted answer is likelier than the one that it competes with.",
    "difference": "Difference: probability of the wanted answer less that of the other one.",
    "probability": "Probability of the new answer.",
    "agreement": "Share of the tokens that are what the unedited model would say.",
    "exact": "Exact: the answer is the new one and nothing else.",
    "contains": "Contains: the new answer is in what was said.",
}
ENDS = {
    "first": "First: the oldest cohort now.",
    "latest": "Latest: the newest cohort now.",
    "mean": "Mean over all cohorts now.",
    "auc": "Area under the retention curve over the age of the edits.",
}
OTHERS = {
    "edit/count": "Requests written so far; the horizontal axis also counts those that were refused or rejected.",
    "spectral/norm": "Frobenius norm of the edited weight.",
    "spectral/relative_norm": "Frobenius norm of the edited weight over that of the original one.",
    "spectral/delta_norm": "Frobenius norm of everything that was changed so far.",
    "spectral/last_delta_norm": "Frobenius norm of what the latest batch changed.",
    "spectral/condition_number": "Largest over smallest singular value.",
    "spectral/ls": "Similarity of the dominant subspaces, original and edited, in order of size: 1 = unturned.",
    "spectral/ss": "Similarity of the dominant singular vectors of equal rank: 1 = unturned.",
    "spectral/triple_drift": "How far the weight has left the original dominant singular triples: 0 = not at all.",
    "spectral/protected_share": "Share of the change that meets the dominant directions.",
    "spectral": "See docs/spectra.md, under the name of the measure.",
    "guard": "What the guard found in the batch's change of this layer; removed_share is what it took away.",
    "delta/norm": "Frobenius norm of the batch's change of this layer.",
    "delta/residual_norm": "What the layer still had to move at the subject, mean over the batch.",
    "target/loss": "Loss at the optimised target values, mean over the batch.",
    "target/probability": "Probability of the new answer at the optimised target values: what the edit can reach at best.",
    "time/targets_seconds": "Seconds of the batch that went into target optimisation.",
    "time/walk_seconds": "Seconds of the batch that went into keys, solves and guards.",
    "moments/convergence": "Change of the second moment over the last half of its text.",
    "moments/effective_tokens": "Tokens that the second moment is worth.",
    "ability": "General ability, or facts that nobody edited.",
    "final/relative_norm": "Frobenius norm of the edited weight over that of the original one, worst layer, at the end.",
    "final/triple_drift": "How far the weight has left the original dominant singular triples, worst layer, at the end.",
}


def shown(name: str) -> str:
    """A logged name as TensorBoard has it.

    Cards cut long titles in the middle, where metric and scoring are, so that the usual decoding is left to the description.

    Example:
        >>> shown("edit/final/efficacy/accuracy/teacher_forced"), shown("probe/grammar/accuracy/teacher_forced")
        ('final/efficacy/accuracy', 'ability/grammar/accuracy')
        >>> shown("drift/ls/layer_3"), shown("edit/so_far/efficacy/accuracy/teacher_forced")
        ('spectral/ls/layer_3', 'edit/so_far/efficacy/accuracy')
    """
    name = name.replace("/teacher_forced", "")
    for logged, group in GROUPS.items():
        if name.startswith(logged):
            return group + name.removeprefix(logged)
    return name


def description(tag: str) -> str:
    """What a number means, as a sentence or some; empty where nothing is known of it.

    Args:
        tag: as :func:`shown` gives it.

    Example:
        >>> description("edit/immediate/efficacy/exact/generated").split(". ")[1:]
        ['The edit prompt; the new answer is wanted', 'Exact: the answer is the new one and nothing else.']
    """
    for length in (2, 1):
        beginning = "/".join(tag.split("/")[:length])
        if beginning in OTHERS:
            return OTHERS[beginning] + "".join(f" {SCORINGS[part]}" for part in tag.split("/") if part in SCORINGS)
    parts = [part for word in tag.split("/") for part in (word, word.split("_")[0])]
    found = [words[part] for words in (PROTOCOLS, METRICS, SCORINGS, ENDS) for part in parts if part in words]
    if found and "generated" not in tag:
        found.append("Teacher-forced: the model is shown the answer up to each token that it is asked for.")
    return " ".join(dict.fromkeys(found))


def glossary() -> str:
    """What all names mean, as a Markdown table: some of TensorBoard's servers do not hand on the sentences of the numbers.

    Example:
        >>> glossary().splitlines()[2]
        "| before | A sample of the stream's edits on the unedited model. |"
    """
    words = {**PROTOCOLS, **METRICS, **SCORINGS, **ENDS, **OTHERS}
    return "\n".join(("| name | means |", "|---|---|", *(f"| {word} | {told} |" for word, told in words.items())))
