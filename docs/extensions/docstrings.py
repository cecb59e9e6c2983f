"""Docstrings of the package as reStructuredText: they are plain text with code in single backticks.

What reStructuredText would read into the rest is escaped, and `Source:`, `Numerics:` and `Checked against:` become
paragraphs of their own. Google's sections are left to napoleon, which runs afterwards.
"""

import re

from sphinx.application import Sphinx

CODE = re.compile(r"(?<![`:\w])`([^`]+)`(?!`)")
MARKUP = re.compile(r"([\\*|]|(?<=\w)_(?!\w))")
REMARK = re.compile(r"(Source|Numerics|Checked against): ")
ATTACHED = re.compile(r"[^\s'\").,:;!?/\\\]}>-]")  # right after code only behind an escaped space, as in `x`^2
PREFIX = re.compile(r"\b(?:bellman_tf\._typing|collections\.abc|typing)\.")
STARRED = re.compile(r"(\s*\*{1,2}\w+: )(.*)")  # an argument `**options:` of Google's sections


def escaped(line: str) -> str:
    """A line in which only code is marked up.

    Args:
        line: of a docstring.

    Returns:
        The same in reStructuredText.
    """
    starred = STARRED.fullmatch(line)
    if starred:
        return starred[1] + escaped(starred[2])
    parts = CODE.split(line)
    parts[::2] = [MARKUP.sub(r"\\\1", part) for part in parts[::2]]
    for k in range(1, len(parts), 2):
        parts[k] = f"``{parts[k]}``" + (r"\ " if ATTACHED.match(parts[k + 1]) else "")
    return "".join(parts)


def as_rest(docstring: str) -> list[str]:
    """A docstring in reStructuredText.

    Args:
        docstring: without the indentation of its source.

    Returns:
        Its lines.
    """
    joined = CODE.sub(lambda found: "`" + " ".join(found[1].split()) + "`", docstring)  # code over a line's end
    lines, example, remark = [], False, False
    for line in joined.split("\n"):
        example = line.strip().startswith(">>>") or (example and bool(line.strip()))
        if REMARK.match(line):
            remark = True
            lines += ["", re.sub(REMARK, r"**\1:** ", escaped(line))]
            continue
        remark = remark and bool(line.strip())
        lines.append(line if example else escaped(line.strip() if remark else line))
    return lines


def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrites a docstring in place.

    Args:
        app: the build.
        what: kind of the object.
        name: of the object.
        obj: its description.
        options: of the directive.
        lines: the docstring.
    """
    lines[:] = as_rest("\n".join(lines))


def shorten(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A signature whose annotations are named as readers know them.

    Args:
        app: the build.
        what: kind of the object.
        name: of the object.
        obj: its description.
        options: of the directive.
        signature: its arguments.
        returns: its return annotation.

    Returns:
        Both.
    """
    return tuple(part and PREFIX.sub("", part).replace("tensorflow.", "tf.") for part in (signature, returns))


def skip(app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: object) -> bool | None:
    """Whether a member is left out: attributes are, which their class's docstring describes."""
    return True if getattr(obj, "type", what) == "attribute" else None


def setup(app: Sphinx) -> dict:
    """Connects all three, the rewriting before napoleon's."""
    app.connect("autodoc-process-docstring", rewrite, priority=100)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
