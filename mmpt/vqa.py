"""The soft accuracy of VQAv2 (Antol et al., 2015; rules of the official `vqaEval.py`) and how it reads answers."""

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = ("a", "an", "the")
# Words whose apostrophes the official table puts back: where all are missing, and where one of several is. Left out
# are its entries with capitals, which never match, and those that change nothing.
_WITH_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
_WITH_SEVERAL = """
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've
""".split()
_CONTRACTIONS = (
    {word.replace("'", ""): word for word in _WITH_APOSTROPHE}
    | {word[:i] + word[i + 1 :]: word for word in _WITH_SEVERAL for i, letter in enumerate(word) if letter == "'"}
    | {"somebody'd": "somebodyd"}  # as it stands there
)


@lru_cache(maxsize=1 << 16)  # people's answers are few, and each is compared again and again
def normalise(text: str) -> str:
    """An answer as VQA compares it.

    >>> normalise("The two dogs, wont.")
    "2 dogs won't"
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in _PUNCTUATION:
        deleted = f"{mark} " in text or f" {mark}" in text or re.search(r"\d,\d", text)
        out = out.replace(mark, "" if deleted else " ")
    out = re.sub(r"\.(?!\d)", "", out)
    words = (_NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(prediction: str, answers: tuple[str, ...]) -> float:
    """Mean, over all ways to leave one person out, of min(1, how many of the others gave this answer / 3).

    >>> soft_accuracy("red", ("red", "red") + ("blue",) * 8)
    0.6
    """
    prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    same = answers.count(prediction)
    parts = [min(1.0, (same - (answer == prediction)) / 3) for answer in answers]
    return sum(parts) / len(parts)
