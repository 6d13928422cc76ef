"""What a tokenizer does, as one text: the same for tokenizers that give every text the same ids, however written.

A tokenizer.json can be written in many ways that mean the same, and is written anew by whoever saves a model again. So
it counts by its vocabulary and by the ids of texts that show how it cuts, not by its words.

The module is also a program of its own, for those who do not trust the file: ``python tokenizer_behaviour.py`` reads a
line of JSON (the special tokens of the folder) and then tokenizer.json from standard input, keeps itself to limits of
processor time and memory, and prints one JSON object, ``{"fingerprint"}`` or ``{"problem"}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

PROCESSOR_SECONDS = 30
MEMORY_BYTES = 4 << 30

_TEXTS = (
    "The quick brown fox, 12345 times; isn't it?\n\n\tdef f(x): return x ** 2",
    "Straße, naïve café, Ελλάδα, 東京, 🙂  two  spaces",
    # normalisation: composed and not, ligatures, widths, case, signs that some leave out
    "é e\u0301 Å A\u030a \u212b ﬁ ﬃ Ａｂｃ ① ² ½ ™ ℌ İ ı ẞ ß Σ ς \u1e9b\u0323 가 \u1100\u1161 ﷺ",
    "a\u00adb c\u200bd e\u200df g\ufeffh i\u00a0j k\u3000l m\u2028n o\x00p q\x07r s\ufffdt \u202eabc",
    "“quoted” ‘single’ – — … ´ ` ~ ¿ ¡ ·",
    # digits
    "1 12 123 1234 12345 123456 1234567 0.5 1,000,000 3.14159e-10 0x1F 2024-11-27 12:34 a1b22c333 ٣٤٥ १२३ ４５６",
    # spaces and ends of lines
    " leading",
    "  two",
    "   three ",
    "trailing  ",
    "\ttab\t\ttabs",
    "a\nb\n\nc\n\n\nd\r\ne\r\n\r\nf\n g \n  h",
    " ",
    "    ",
    "\n",
    "",
    # words
    "don't I'M we'll YOU'RE they'd it's '90s rock'n'roll o’clock",
    "camelCase PascalCase snake_case kebab-case UPPER lower __init__ e.g. U.S.A. www.example.com/a?b=c&d=e#f user@host",
    'hello Hello HELLO hello, hello. hello! hello? (hello) [hello] {hello} "hello" hello-hello',
    "!!! ??? ... ---- ==== //// #### $$$ %%% ^^^ &&& *** ((( ))) <<< >>> ||| ~~~ !?!? :-) ;-) <|x|> </s> <s> [INST]",
    "if (x == y) {\n    return x->z[i++];\n}\n  // comment\n\t\tfoo();",
    # scripts
    "Привет, мир! Как дела? Ёлка",
    "Γειά σου Κόσμε",
    "مرحبا بالعالم، كيف حالك؟ مَرْحَبًا",
    "שלום עולם שָׁלוֹם",
    "नमस्ते दुनिया क्षत्रिय",
    "สวัสดีชาวโลก",
    "こんにちは世界。カタカナ、ひらがな",
    "你好,世界!今天天气怎么样?请重复（0）",
    "안녕하세요 세계",
    "Xin chào thế giới, tiếng Việt",
    # bytes that few vocabularies have whole
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ 🙂🙂 𝔘𝔫𝔦 𐍈 𠀀 \U000e0041 \ue000 \U0010fffd",
    "a" * 300,
    "ab" * 100,
    "x" + " " * 100 + "y",
    "=" * 80,
)
_MOST_TOKENS = 1 << 14
_MOST_ADDED = 1 << 12
_JOINED = 8


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 (hex), the same for tokenizers that do the same; what is put around a text does not count."""
    return _fingerprint(Tokenizer.from_str(_without_chance(tokenizer.to_str())))


def _fingerprint(tokenizer: Tokenizer) -> str:
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: (item[1], item[0]))
    texts = [*_TEXTS, *_of_vocabulary([token for token, _ in vocabulary])]
    # Every token that may be cut out of a text: one that is added to one of two tokenizers alone shows here.
    added = [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]
    texts += [f"a {token} b{token}c  {token}{token}\n{token.swapcase()}" for token in _spread(added, _MOST_ADDED)]
    digest = hashlib.sha256(json.dumps([vocabulary, sorted(added)]).encode())
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        digest.update(json.dumps(encoding.ids).encode())
    return digest.hexdigest()


def from_file(content: str, special: Iterable[str | dict[str, Any]]) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with those of ``special`` that it knows as special tokens.

    ``special`` are texts or objects of tokenizer_config.json: a loader makes them special too. Tokens that the file
    does not have are none of it. Raises whatever the library raises for a file that it does not take.
    """
    tokenizer = Tokenizer.from_str(_without_chance(content))
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in special:
        given = {"content": token} if isinstance(token, str) else token
        text = given.get("content")
        if isinstance(text, str) and text and text not in known and tokenizer.token_to_id(text) is not None:
            flags = {name: bool(given[name]) for name in ("single_word", "lstrip", "rstrip") if name in given}
            tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True, **flags)])
            known.add(text)
    return tokenizer


def _without_chance(content: str) -> str:
    """The file without what is of one call and not of the tokenizer: lengths, and merges left out by chance."""
    tokenizer = json.loads(content)
    tokenizer.update(truncation=None, padding=None)
    if isinstance(tokenizer.get("model"), dict) and tokenizer["model"].get("dropout") is not None:
        tokenizer["model"]["dropout"] = None
    return json.dumps(tokenizer)


def _of_vocabulary(tokens: list[str]) -> list[str]:
    """Texts made of the vocabulary's own tokens: two orders of merges cut some of them differently."""
    bytes_of = _byte_alphabet()
    by_bytes = len(bytes_of.keys() & set(tokens)) > len(bytes_of) // 2
    surfaces = []
    for token in _spread(tokens, _MOST_TOKENS):
        if by_bytes and all(letter in bytes_of for letter in token):
            token = bytes(bytes_of[letter] for letter in token).decode("utf-8", "replace")
        surfaces.append(token.replace("▁", " ")[:64])
    return ["".join(surfaces[start : start + _JOINED]) for start in range(0, len(surfaces), _JOINED)]


def _spread(items: list[str], most: int) -> list[str]:
    return items if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


def _byte_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in vocabularies of bytes (GPT-2's): printable ones are themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def _main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    given = sys.stdin.buffer
    special = json.loads(given.readline())
    try:
        answer = {"fingerprint": _fingerprint(from_file(given.read().decode("utf-8"), special))}
    except MemoryError:
        answer = {"problem": f"it takes more than {MEMORY_BYTES >> 30} GiB of memory"}
    except BaseException as error:  # A panic of the library is none of Exception.
        answer = {"problem": str(error)[:300] or type(error).__name__}
    print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main()
