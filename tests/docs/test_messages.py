"""What the page on troubleshooting quotes of errors, warnings and reasons is what the package says."""

import ast
import re

import pytest

from tests.docs.pages import DOCS, ROOT

HEADERS = ("message has", "warning", "reason")


def quoted():
    """The first column of the tables that quote messages, as code."""
    found, reading = [], False
    for line in (DOCS / "troubleshooting.md").read_text().splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        reading = first in HEADERS or (reading and bool(first))
        if reading and first not in HEADERS:
            found += re.findall(r"`([^`]+)`", first)
    return found


def said():
    """All strings of the package, with a gap where a value is put in."""
    texts = []
    for path in (ROOT / "bellman_tf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"\{\w+\}", "\0", node.value))
    return "\n".join(texts).replace("`", "")


SAID = said()


def pieces(message):
    return [piece.strip() for piece in re.split(r"\.\.\.| must |<reason>", message) if piece.strip(" ()'\"")]


def test_the_page_quotes_messages():
    assert len(quoted()) > 25


@pytest.mark.parametrize("message", quoted())
def test_a_message_is_said(message):
    missing = [piece for piece in pieces(message) if piece.rstrip(":)").strip() not in SAID]
    assert not missing
