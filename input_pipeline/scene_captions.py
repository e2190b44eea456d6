"""How does somebody describe a simulated scene in one sentence, who names some of what is in it?

A caption has at least one word (or phrase) of each label to be named and none of any other: `NOUNS` of different labels
share no word, and all other words belong to no label. So what is named can be read from the caption, by whoever knows
the synonyms; some are rare, and some words are misspelt.
"""

import string
from collections.abc import Sequence

import numpy as np

NOUNS = {
    "person": "man woman person boy girl lady guy child player tourist farmer fellow",
    "bicycle": "bicycle bike cycle tandem",
    "car": "car sedan taxi automobile hatchback",
    "motorcycle": "motorcycle motorbike scooter chopper",
    "airplane": "airplane plane jet airliner glider",
    "bus": "bus coach minibus double_decker",
    "train": "train locomotive tram freight_wagon",
    "truck": "truck lorry pickup dumper",
    "boat": "boat sailboat ship dinghy yacht",
    "traffic light": "traffic_light stoplight traffic_signal",
    "fire hydrant": "fire_hydrant hydrant standpipe",
    "stop sign": "stop_sign red_octagon halt_sign",
    "parking meter": "parking_meter coin_meter meter",
    "bench": "bench park_seat plank_seat",
    "bird": "bird pigeon duck sparrow finch",
    "cat": "cat kitten tabby tomcat",
    "dog": "dog puppy terrier hound",
    "horse": "horse pony stallion mare",
}
"""Synonyms of each label, the frequent ones first; `_` stands for a blank."""

_PLACES = ("street", "park", "field", "beach", "road", "square", "hill", "yard", "market", "shore", "village", "lawn")
_OTHERS = ("tree", "house", "ball", "cloud", "fence", "parasol", "wall", "bush", "tent", "basket")
_ADJECTIVES = ("", "", "", "small", "big", "old", "lone", "tall", "distant", "nearby")
_MOODS = ("", "", "wide", "quiet", "busy", "sunny", "wet", "empty")
_VERBS = ("stands", "waits", "is", "can be seen", "sits", "moves along")
_ENDS = (
    "", "", "", "on a sunny day", "in the rain", "at night", "in black and white", "in front of a {other}",
    "with a {other} in the background", "next to a {other} and a {other}", "near some food on a table",
)  # fmt: skip
_SIGNS = ("Open late", "Main Square", "welcome", "no entry", "Sale, today only!", "keep left")

QUOTED_EVERY, BROKEN_EVERY, NEWLINE_EVERY = 30, 120, 90
"""How often a caption has inner quotes, inner quotes before a comma, and a newline."""

_MISSPELT = 0.04
_LETTERS = frozenset(string.ascii_lowercase)


def _noun(name: str, rng: np.random.Generator) -> str:
    """A noun phrase for a label: the second synonym is half as frequent as the first, and so on."""
    words = NOUNS[name].split()
    shares = 0.5 ** np.arange(len(words))
    noun = words[rng.choice(len(words), p=shares / shares.sum())].replace("_", " ")
    adjective = _ADJECTIVES[rng.integers(len(_ADJECTIVES))]
    phrase = f"{adjective} {noun}".strip()
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _joined(phrases: Sequence[str], rng: np.random.Generator) -> str:
    if len(phrases) == 1:
        return phrases[0]
    link = (" and ", " next to ", " behind ", " with ")[rng.integers(4)]
    return ", ".join(phrases[:-1]) + link + phrases[-1]


def _misspelt(text: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters of a longer word change places."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 5 and set(word) <= _LETTERS]
    if not long:
        return text
    place = long[rng.integers(len(long))]
    at = int(rng.integers(1, len(words[place]) - 2))
    word = words[place]
    words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def write(names: Sequence[str], rng: np.random.Generator, number: int) -> str:
    """A caption.

    Args:
        names: labels to name, keys of `NOUNS`, each once; none gives a caption that names no label.
        rng: the only source of randomness.
        number: of the record; it decides whether quotes or a newline stand in the caption.
    """
    place, mood = (words[rng.integers(len(words))] for words in (_PLACES, _MOODS))
    place = f"{mood} {place}".strip()
    article = "an" if place[0] in "aeiou" else "a"
    if len(names):
        subject = _joined([_noun(names[i], rng) for i in rng.permutation(len(names))], rng)
        verb = _VERBS[rng.integers(len(_VERBS))]
        text = (f"{subject} {verb} in {article} {place}", f"there is {subject} near {article} {place}", subject)[
            rng.choice(3, p=[0.5, 0.3, 0.2])
        ]
    else:
        text = (
            f"a view of {article} {place}",
            f"{article} {place} with a {{other}}",
            f"a picture of {article} {place}",
        )[rng.integers(3)]
    parts = [text, _ENDS[rng.integers(len(_ENDS))]]
    if number % QUOTED_EVERY == QUOTED_EVERY // 2:
        sign = _SIGNS[rng.integers(len(_SIGNS))]
        close = ',"' if number % BROKEN_EVERY == QUOTED_EVERY // 2 else '"'
        parts.insert(1, f'with "{sign}{close} written on a wall')
    text = " ".join(part for part in parts if part)
    while "{other}" in text:
        text = text.replace("{other}", _OTHERS[rng.integers(len(_OTHERS))], 1)
    if rng.random() < _MISSPELT:
        text = _misspelt(text, rng)
    if number % NEWLINE_EVERY == NEWLINE_EVERY // 3:
        text = text.replace(" ", "\n", 1) if number % 2 else f"{text}\n\nSeen from afar"
    text = text[0].upper() + text[1:] if rng.random() < 0.6 else text
    return text + ("." if rng.random() < 0.7 else "")
