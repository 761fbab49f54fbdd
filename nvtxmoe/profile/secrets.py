"""Command lines to show, without the keys in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
_KEY = r"(?:api[-_]?key|access[-_]?key|secret|password|passwd|token|credentials?|authorization)"
#: Options whose value is a key, or headers, which carry keys.
_OPTION = re.compile(rf"--?[\w-]*(?:{_KEY}|headers?)", re.IGNORECASE)
#: NAME=VALUE, of an environment or in a shell's line.
_VARIABLE = re.compile(rf"\b(\w*(?:{_KEY}|_key|headers?))=(?!=)(\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE)
#: An option and its value within a shell's line.
_OPTION_INSIDE = re.compile(rf"(--?[\w-]*(?:{_KEY}|headers?)[ =])(\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE)
#: Headers, members of JSON objects, passwords of addresses, and keys that are known by their form.
_FORMS = (
    (re.compile(r"((?:proxy-)?authorization|cookie|x-api-key)(\s*[:=]).*", re.IGNORECASE), rf"\1\2 {HIDDEN}"),
    (re.compile(rf"(\"\w*{_KEY}\"\s*:\s*)\"[^\"]*\"", re.IGNORECASE), rf'\1"{HIDDEN}"'),
    (re.compile(r"(\w+://[^/\s:@]+:)[^/\s@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[\w-]{12,}"), HIDDEN),
    (re.compile(r"\b(bearer)\s+\S+", re.IGNORECASE), rf"\1 {HIDDEN}"),
)


def without_secrets(argv: Sequence[str]) -> list[str]:
    """Return a command line to show: stars for values of options, variables and headers that carry keys."""
    out: list[str] = []
    hide = False
    for word in argv:
        option, equals, _ = word.partition("=")
        secret = _OPTION.fullmatch(option) is not None
        if hide and not word.startswith("-"):
            out.append(HIDDEN)
        elif secret and equals:
            out.append(f"{option}={HIDDEN}")
        else:
            out.append(_hidden(word))
        hide = (secret and not equals) or (hide and not word.startswith("-"))  # vLLM takes several keys
    return out


def _hidden(word: str) -> str:
    word = _VARIABLE.sub(rf"\1={HIDDEN}", word)
    if any(character.isspace() for character in word):
        word = _OPTION_INSIDE.sub(rf"\1{HIDDEN}", word)
    for form, shown in _FORMS:
        word = form.sub(shown, word)
    return word
