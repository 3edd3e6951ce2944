"""Words and sentences as the editing literature counts them: Penn Treebank rules, without any data to download.

The rules are those of NLTK's word tokenizer (``NLTKWordTokenizer``, an extension of Robert MacIntyre's Treebank script; Apache
2.0) and of its sentence tokenizer Punkt (Kiss & Strunk 2006) without a trained model, written down again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_CLOSING = r"\]\)}>\"'\xbb\u201d\u2019"
# In this order; each works on what the one before it left.
_TREEBANK: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # opening quotes
        (r"([\xab\u201c\u2018\u201e]|`+)", r" \1 "),
        (r'^"', "``"),
        (r"(``)", r" \1 "),
        (r"([ (\[{<])(\"|'{2})", r"\1 `` "),
        (r"(?i)(?<!\w)(')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"\1 "),
        # punctuation; a period only at the end, since earlier ones belong to abbreviations
        (rf"([^.])(\.)([{_CLOSING} ]*+)\s*$", r"\1 \2 \3 "),
        (r"([:,])([^\d])", r" \1 \2"),
        (r"([:,])$", r" \1 "),
        (r"\.{2,}", r" \g<0> "),
        (r"[;@#$%&]", r" \g<0> "),
        (r"[\u2012-\u2015]", r" \g<0> "),
        (r"([^.])(\.)([\])}>\"']*)\s*$", r"\1 \2\3 "),
        (r"[?!]", r" \g<0> "),
        (r"([^'])' ", r"\1 ' "),
        (r"[*]", r" \g<0> "),
        (r"[\]\[(){}<>]", r" \g<0> "),
        (r"--", " -- "),
        (r"^(?s:(.*))\Z", r" \1 "),  # the rest needs a blank at both ends
        # closing quotes and clitics
        (r"([\xbb\u201d\u2019])", r" \1 "),
        (r"''", " '' "),
        (r'"', " '' "),
        (r"\s+", " "),
        (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
        (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
        # contractions
        (r"(?i)\b(can)(not)\b", r" \1 \2 "),
        (r"(?i)\b(d)('ye)\b", r" \1 \2 "),
        (r"(?i)\b(gim)(me)\b", r" \1 \2 "),
        (r"(?i)\b(gon)(na)\b", r" \1 \2 "),
        (r"(?i)\b(got)(ta)\b", r" \1 \2 "),
        (r"(?i)\b(lem)(me)\b", r" \1 \2 "),
        (r"(?i)\b(more)('n)\b", r" \1 \2 "),
        (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
        (r"(?i) ('t)(is)\b", r" \1 \2 "),
        (r"(?i) ('t)(was)\b", r" \1 \2 "),
    )
)

_BREAKS = r"[)\";}\]*:@'({\[\u2018\u2019\u201c\u201d\xab\xbb?!]"
_RUNS = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
_PUNKT_WORD = re.compile(
    rf"({_RUNS}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_BREAKS}|{_RUNS}|,(?=$|\s|{_BREAKS}|{_RUNS}))|\S)"
)
_CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_BREAKS}|\s+(?P<next>\S+)))")
_REALIGN = re.compile(r"[\"')\]}\u2018\u2019\u201c\u201d\xab\xbb]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*\.?$")


def words(text: str, sentences_first: bool = True) -> list[str]:
    """Words and punctuation marks of a text, Treebank style.

    Args:
        text: any text.
        sentences_first: cut it into sentences before, so that every sentence's last period is a mark of its own; otherwise
            only the text's very last one is, and ``"mat."`` in the middle stays one word.

    Example:
        >>> words("It's 3.5 km. Isn't it?")
        ['It', "'s", '3.5', 'km', '.', 'Is', "n't", 'it', '?']
        >>> words("It's 3.5 km. Isn't it?", sentences_first=False)
        ['It', "'s", '3.5', 'km.', 'Is', "n't", 'it', '?']
    """
    found = []
    for part in sentences(text) if sentences_first else [text]:
        for pattern, replacement in _TREEBANK:
            part = pattern.sub(replacement, part)
        found += part.split()
    return found


def sentences(text: str) -> list[str]:
    """Sentences of a text by Punkt's rules without a trained model.

    ``.``, ``?`` and ``!`` end a sentence; not so an ellipsis, a period after one letter or a number that goes on in lower
    case, and one after an initial before a capital. No abbreviation is known: ``"No. 1"`` is cut, which a trained model
    would not do.

    Example:
        >>> sentences("He met J. Doe. They left!")
        ['He met J. Doe.', 'They left!']
    """
    found: list[str] = []
    realigned = 0
    spans = list(_spans(text))
    for at, (start, end) in enumerate(spans):
        start += realigned
        if at + 1 == len(spans):
            if start < end:
                found.append(text[start:end])
            break
        after, after_end = spans[at + 1]
        # Quotes and brackets that close a sentence belong to it, though they follow its period.
        closing = _REALIGN.match(text[after:after_end])
        realigned = closing.end() if closing else 0
        if closing:
            found.append(text[start : after + len(closing.group().rstrip())])
        elif start < end:
            found.append(text[start:end])
    return found


def _spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match, context in _contexts(text):
        if _has_break(context):
            yield start, match.end()
            start = match.start("next") if match.group("next") else match.end()
    yield start, len(text.rstrip())


def _contexts(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Possible ends, the last one of each word, with the word before and what follows."""
    word_start = word_end = 0
    before: re.Match[str] | None = None
    for match in _CANDIDATE.finditer(text):
        between = text[word_end : match.start()]
        blank = max((between.rfind(character) for character in " \t\n\r\x0b\x0c"), default=-1)
        this_start = word_end + blank + 1 if blank > 0 else word_start
        if before is not None and word_end <= this_start:
            yield before, text[word_start:word_end] + before.group() + before.group("after")
        before, word_start, word_end = match, this_start, match.start()
    if before is not None:
        yield before, text[word_start:word_end] + before.group() + before.group("after")


def _has_break(context: str) -> bool:
    tokens = [token for line in context.split("\n") if line.strip() for token in _PUNKT_WORD.findall(line)]
    return any(_ends(token, following) for token, following in pairwise(tokens))


def _ends(token: str, following: str) -> bool:
    """Whether a token ends a sentence, given the next one."""
    if token in ("?", "!", "."):
        return True
    if not token.endswith(".") or token.endswith(".."):
        return False
    initial = len(token) == 2 and token[0].isalpha()
    if initial or _NUMBER.match(token):
        goes_on = following in tuple(";:,.!?") or following[0].islower()
        return not (goes_on or (initial and following[0].isupper()))
    return True
