"""Text of others, made safe to print and to write: labels, names of files, folders and plugins, arguments, records.

A terminal obeys control characters. Characters without width, and those that change the direction of text, make two names look the same.
All of them are shown as escapes. Other characters stay as they are, in every script.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable

# Control characters, characters that Unicode lets a display ignore (without width, direction of text, tags), separators of lines and
# paragraphs, halves of characters (a byte of a file name that is not UTF-8), and code points that are no characters.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufdd0-\ufdef"
    r"\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
    + "".join(f"\\U{plane:04x}fffe\\U{plane:04x}ffff" for plane in range(17))
    + "]"
)
# Two of them are part of the spelling in scripts without capital letters, such as Persian and Hindi, and of emoji.
JOINERS, JOINED = ("\u200c", "\u200d"), ("Lo", "Mn", "Mc", "So", "Sk")
MARKDOWN = re.compile(r"[\\`*_\[\]<>|~#&]")
FORMULA = ("=", "+", "-", "@")


def printable(text: object, *, keep: str = "") -> str:
    r"""Return text in one line that is safe on a terminal: `\n`, `\x1b`, `\u202e` instead of the characters.

    Args:
        text: The text.
        keep: Characters to leave as they are, such as the line breaks of a text of several lines.
    """
    return _escape(str(text), lambda found: found if found in keep else found.encode("unicode_escape").decode())


def escape_json(text: str) -> str:
    """Return JSON that contains the same values and is safe on a terminal. Its line breaks stay."""
    return _escape(text, lambda found: found if found == "\n" else json.dumps(found)[1:-1])


def escape_markdown(text: object) -> str:
    """Return text for a line or table cell of Markdown: neither markup nor HTML."""
    return MARKDOWN.sub(r"\\\g<0>", printable(text))


def csv_cell(value: object) -> object:
    """Return a value for a cell of a CSV file. Spreadsheets compute text that begins like a formula, so it gets an apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def shorten(text: str, length: int) -> str:
    """Return text of at most this length; the middle of a longer one is left out."""
    end = length // 4
    return text if len(text) <= length else f"{text[: length - end - 5]} ... {text[-end:]}"


def _escape(text: str, escape: Callable[[str], str]) -> str:
    def replace(match: re.Match[str]) -> str:
        found, place = match[0], match.start()
        around = text[place - 1 : place + 2]
        if found in JOINERS and place and len(around) == 3 and all(unicodedata.category(one) in JOINED for one in (around[0], around[2])):
            return found
        return escape(found)

    return UNPRINTABLE.sub(replace, text)
