"""What the numbers of a run are called in TensorBoard, where the first word of a name makes a group, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping

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
SPECTRAL = {
    "norm": "Frobenius norm of the edited weight.",
    "relative_norm": "Frobenius norm of the edited weight over that of the original one.",
    "delta_norm": "Frobenius norm of everything that was changed so far.",
    "last_delta_norm": "Frobenius norm of what the latest batch changed.",
    "sigma_max": "Largest singular value of the edited weight.",
    "delta_sigma_max": "Largest singular value of everything that was changed so far.",
    "last_delta_sigma_max": "Largest singular value of what the latest batch changed.",
    "condition_number": "Largest over smallest singular value.",
    "stable_rank": "Squared Frobenius norm over squared largest singular value.",
    "effective_rank": "Exponential of the entropy of the singular values.",
    "delta_condition_number": "Condition number of everything that was changed so far, over its rank.",
    "delta_stable_rank": "Stable rank of everything that was changed so far.",
    "delta_effective_rank": "Effective rank of everything that was changed so far.",
    "delta_rank": "Rank of everything that was changed so far, as far as float32 can tell.",
    "ls": "Similarity of the dominant subspaces, original and edited, in order of size: 1 = unturned.",
    "ls_left": "Similarity of the dominant left subspaces, original and edited, in order of size: 1 = unturned.",
    "ls_right": "Similarity of the dominant right subspaces, original and edited, in order of size: 1 = unturned.",
    "ls_matched": "ls with the dominant directions sought anywhere in the order of size: 1 = all still there.",
    "ss": "Similarity of the dominant singular vectors of equal rank: 1 = unturned.",
    "ss_left": "Similarity of the dominant left singular vectors of equal rank: 1 = unturned.",
    "ss_right": "Similarity of the dominant right singular vectors of equal rank: 1 = unturned.",
    "ss_matched": "ss with the dominant triples sought anywhere in the order of size: 1 = all still there.",
    "triple_drift": "How far the weight has left the original dominant singular triples: 0 = not at all.",
    "protected_share": "Share of the change that meets the dominant directions.",
    "angle_max_left": "Largest angle between the dominant subspaces, original and edited, in degrees; left side.",
    "angle_max_right": "Largest angle between the dominant subspaces, original and edited, in degrees; right side.",
    "angle_mean_left": "Mean angle between the dominant subspaces, original and edited, in degrees; left side.",
    "angle_mean_right": "Mean angle between the dominant subspaces, original and edited, in degrees; right side.",
    "delta_cosine": "Cosine between what the latest batch changed and what the batch before it changed.",
    "key_cosine_max": "Largest cosine of a key of the latest batch with a key of an earlier one.",
    "key_cosine_mean": "Largest cosine with a key of an earlier batch, mean over the latest batch's keys.",
    "key_memory_share": "Share of the earlier keys that is remembered for the two cosines; below 1 they are lower bounds.",
}
"""Of the weight of one layer; docs/spectra.md has the formulas."""
OTHERS = {
    "edit/count": "Requests written so far; the horizontal axis also counts those that were refused or rejected.",
    "spectral": "What editing has done to the weight of this layer.",
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
    **{f"spectral/{name}": told for name, told in SPECTRAL.items()},
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
    """What all names mean, in Markdown: some of TensorBoard's servers do not hand on the sentences of the numbers.

    Example:
        >>> glossary().splitlines()[4:8]
        ['**When**', '', '| name | means |', '|---|---|']
        >>> glossary().splitlines()[8]
        "| before | A sample of the stream's edits on the unedited model. |"
    """
    rest = {name: told for name, told in OTHERS.items() if not name.startswith("spectral/")}
    parts: dict[str, Mapping[str, str]] = {
        "When": PROTOCOLS,
        "What": METRICS,
        "Scored how": SCORINGS,
        "At the end of a name in retention/": ENDS,
        "Not of answers": rest,
        "In spectral/, of every edited layer": SPECTRAL,
    }
    lines = [
        "A name of a score is read from left to right, *when / what / scored how*: `edit/so_far/paraphrase/accuracy`. "
        "`ability/grammar/accuracy` is of the probe `grammar`.",
        "",
        "Answers are scored teacher-forced (the model is shown the answer up to each token that it is asked for), but where "
        "the name ends in `generated`: there it answers freely. The horizontal axis counts requests; 0 is the unedited model.",
    ]
    for title, words in parts.items():
        lines += ["", f"**{title}**", "", "| name | means |", "|---|---|"]
        lines += [f"| {name} | {_without(name, told)} |" for name, told in words.items()]
    return "\n".join(lines)


def _without(name: str, told: str) -> str:
    """A sentence that begins with the name, without it."""
    rest = told.removeprefix(f"{name.replace('_', ' ').capitalize()}: ")
    return rest[0].upper() + rest[1:]
