"""Tables, code and lists of numbers inside a text: what a rewrite must not lose."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from instructgym.metrics.text import STOP_WORDS, words

__all__ = ["Block", "coverage", "structured_blocks"]


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of data in a text. `kind` is ``code``, ``table``, ``json``, ``xml`` or ``numbers``."""

    kind: str
    text: str


_FENCED = re.compile(r"(?P<mark>```|~~~)[^\n]*\n(?P<body>.*?)(?:\n[ \t]*(?P=mark)|\Z)", re.S)
_JSON = re.compile(r"\{\s*[\"'][^\n{}]{0,200}?[\"']\s*:.*\}|\[\s*\{.*\}\s*\]", re.S)
_XML = re.compile(r"<(?P<tag>[A-Za-z][\w:-]*)(?:\s[^<>]*)?>.{0,4000}?</(?P=tag)>", re.S)
# Four numbers or more in a row, whole and apart: "3, 5.5, -7 and 9", "[1 2 3 4]"; a date or a price is not a list.
_NUMBERS = re.compile(
    r"(?<![\w.])[-+$€£]?\d+(?:\.\d+)?%?(?:(?:\s*[,;|]\s*(?:and\s+|&\s*)?|\s+(?:and\s+)?)[-+$€£]?\d+(?:\.\d+)?%?){3,}(?![\w])"
)
_TABLE_ROW = re.compile(r"[ \t]*\|?[^|\n]*\|[^\n]*")
_CODE_LINE = re.compile(
    r"[ \t]*(?:(?:def|class|import|from|for|while|if|elif|else|return|public|private|static|const|let|var|function|func"
    r"|fn|#include|using|package|try|except|catch|print|SELECT|INSERT|UPDATE|DELETE|CREATE|WHERE|GROUP BY"
    r"|ORDER BY|JOIN)\b[^\n]*[:;{(=]|[^\n]*[;{}][ \t]*$|[\w.\[\]\"']+[ \t]*(?:[-+*/]?=)[ \t]*[^\n=]+$"
    r"|[\w.]+\([^\n]*\)[ \t]*$|(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE|FROM|WHERE|GROUP BY|ORDER BY)"
    r"[ \t][^\n]*$)"
)
_SQL = re.compile(r"\b(?:SELECT\b[^\n]+?\bFROM|INSERT INTO\b[^\n]+?\bVALUES|CREATE TABLE)\b[^\n]*")
_ROW_SEPARATORS = ("\t", ",", ";")
_MIN_ROWS = 2
_MAX_CHARACTERS = 20_000  # what lies beyond is not searched: unclosed tags by the thousand would cost seconds


def structured_blocks(text: str) -> list[Block]:
    """The tables, code, JSON, XML and lists of four or more numbers in `text`, in the first 20,000 characters.

    A part of the text is in one block at most: what a fence holds is code, not also a table.
    """
    blocks: list[Block] = []
    text = text[:_MAX_CHARACTERS]
    if "```" in text or "~~~" in text:
        blocks += [Block("code", match["body"]) for match in _FENCED.finditer(text) if match["body"].strip()]
        text = _FENCED.sub("\n", text)
    for kind, pattern, hint in (("json", _JSON, "}"), ("xml", _XML, "</")):
        if hint in text:
            blocks += [Block(kind, match[0]) for match in pattern.finditer(text)]
            text = pattern.sub("\n", text)
    if "\n" in text:
        text = _take_lines(text, blocks)
    if "SELECT" in text or "INSERT" in text or "CREATE" in text:
        blocks += [Block("code", match[0]) for match in _SQL.finditer(text)]
    blocks += [Block("numbers", match[0]) for match in _NUMBERS.finditer(text)]
    return blocks


def _take_lines(text: str, blocks: list[Block]) -> str:
    """Move runs of table rows and code lines from `text` into `blocks`; returns what is left."""
    left: list[str] = []
    run: list[str] = []
    kind = ""
    for line in [*text.split("\n"), ""]:
        here = _line_kind(line)
        if here != kind:
            _close(kind, run, blocks, left)
            run, kind = [], here
        run.append(line)
    _close(kind, run, blocks, left)
    return "\n".join(left)


def _line_kind(line: str) -> str:
    """``table|`` and the like (with the number of columns for separated values), ``code`` or nothing."""
    if "|" in line and _TABLE_ROW.fullmatch(line):
        return "table|"
    if _CODE_LINE.match(line):
        return "code"
    for separator in _ROW_SEPARATORS:
        columns = line.count(separator)
        # Prose has commas too; a row of data has short cells and does not end like a sentence.
        if columns and line[-1] not in ".!?:" and all(len(cell.split()) <= 4 for cell in line.split(separator)):
            return f"table{separator}{columns}"
    return ""


def _close(kind: str, run: list[str], blocks: list[Block], left: list[str]) -> None:
    rows = _MIN_ROWS if kind.startswith(("table|", "code")) else _MIN_ROWS + 1
    if kind and len(run) >= rows:
        blocks.append(Block("code" if kind == "code" else "table", "\n".join(run)))
    else:
        left += run


def coverage(data: str, text: str) -> float:
    """The share of the words and numbers of `data` (function words aside, with repeats) that stand in `text`, 0..1."""
    wanted = Counter(word for word in words(data) if word not in STOP_WORDS)
    if not wanted:
        return 1.0
    there = Counter(words(text))
    return sum(min(count, there[word]) for word, count in wanted.items()) / wanted.total()
