"""Captions from the columns of the data, and the tokenizer and text encoder that read them."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stsl.options import nearest

SLOT = re.compile(r"\{([^{}]*)\}")
END, START = "<|endoftext|>", "<|startoftext|>"
VOCABULARY = 4096  # tokens at most, for captions written freely


@dataclass(frozen=True)
class Captions:
    """Texts made of templates such as `a {color} {photo|picture} of a {emotion} face`.

    A slot with `|` is one of its alternatives; any other is a column of the data, whose value may have words of its
    own. An unknown value leaves its slot empty. Where there are several templates or words, one is drawn each time.

    Args:
        templates: at least one; a bare column name is a template, too.
        words: by column and value, what to say for it.
    """

    templates: tuple[str, ...]
    words: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.templates:
            raise ValueError("captions need a template such as 'a photo of a {label}', or the name of a column")

    def check(self, columns: Iterable[str]) -> "Captions":
        """These captions for data with these columns; a template that is a column's name becomes a slot.

        Raises:
            ValueError: a column is missing.
        """
        known = list(columns)
        templates = tuple(f"{{{text}}}" if text in known else text for text in self.templates)
        asked = {slot for text in templates for slot in SLOT.findall(text) if "|" not in slot} | self.words.keys()
        for slot in sorted(asked):
            if slot not in known:
                have = f"it has {', '.join(known)}" if known else "it has none"
                raise ValueError(f"the data has no column {slot!r}{nearest(slot, known)}; {have}")
        if not any(SLOT.search(text) for text in templates) and len(templates) == 1:
            near = nearest(templates[0], known)
            raise ValueError(
                f"the caption {templates[0]!r} is the same for every picture: it is neither a column{near} nor has it "
                f"a slot such as {{{known[0] if known else 'label'}}}"
            )
        return Captions(templates, self.words)

    def draw(self, row: Mapping[str, str], source: torch.Generator) -> str:
        """A caption of a picture of which this is known."""

        def one(values: Sequence[str]) -> str:
            return values[int(torch.randint(len(values), (), generator=source))]

        return tidy(SLOT.sub(lambda slot: one(self._choices(slot[1], row)), one(self.templates)))

    def all(self, rows: Iterable[Mapping[str, str]]) -> list[str]:
        """Every caption that these pictures may get."""
        found = dict[str, None]()
        for row in {tuple(sorted(row.items())): row for row in rows}.values():
            for template in self.templates:
                pieces = SLOT.split(template)
                slots = [self._choices(slot, row) for slot in pieces[1::2]]
                for chosen in itertools.product(*slots):
                    mixed = itertools.chain.from_iterable(itertools.zip_longest(pieces[::2], chosen, fillvalue=""))
                    found[tidy("".join(mixed))] = None
        return list(found)

    def _choices(self, slot: str, row: Mapping[str, str]) -> Sequence[str]:
        if "|" in slot:
            return slot.split("|")
        value = row[slot]
        return self.words.get(slot, {}).get(value, (value,))


def tidy(text: str) -> str:
    """One space between words, and `an` before a vowel."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def read_words(texts: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Read `column: value=word|word, value=word`.

    Raises:
        ValueError: a text of another form.
    """
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    for text in texts:
        column, colon, rest = text.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",")]
        if not colon or not all(equals for _, equals, _ in pairs):
            raise ValueError(f"words are written 'column: value=word|word, value=word', got {text!r}")
        of = words.setdefault(column.strip(), {})
        of.update({value.strip(): tuple(word.strip() for word in said.split("|")) for value, _, said in pairs})
    return words


def make_tokenizer(texts: Iterable[str], length: int) -> CLIPTokenizer:
    """CLIP's tokenizer for `length` tokens, whose vocabulary has these texts' words, the commonest first.

    Each word is merged from its first letter on, so that it is one token unless a commoner word begins inside it.
    (Training byte pairs in the `tokenizers` library breaks ties by chance: two runs would not agree on the numbers.)
    """
    split = BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text.lower()))
    letters = sorted(ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    bytes_of = ByteLevel(add_prefix_space=False, use_regex=False)
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        *head, last = list(bytes_of.pre_tokenize_str(word)[0][0])
        pieces, done = [*head, f"{last}</w>"], ""
        if len(tokens) + len(pieces) > VOCABULARY:
            break
        for piece in pieces:
            if done:
                merges[done, piece] = None
            done += piece
            tokens[done] = None
    numbers = {token: index for index, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(numbers, [*merges], model_max_length=length)


def make_text_encoder(tokenizer: CLIPTokenizer, length: int, width: int, depth: int = 2) -> CLIPTextModel:
    """CLIP's text encoder, small and without weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            max_position_embeddings=length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int) -> Tensor:
    """Tokens of texts, cut or padded to `length`, shape (B, length)."""
    return tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
