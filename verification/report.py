"""Results as one self-contained HTML page: tables, a histogram of errors per claim, every misprint in numbers.

On a screen narrower than 50 em a row of a table becomes a block with its headings in it.
"""

import html

import numpy as np

from verification.claim import Claim, Counterexample, Paper, Verdict
from verification.run import Result
from verification.table import found

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin-bottom: 2em; }
td, th { border-bottom: 1px solid #8885; padding: .3em .6em; text-align: left; vertical-align: top; }
th:nth-child(2) { width: 45%; } td:nth-child(1), td:nth-child(3) { overflow-wrap: normal; }
tr.contradicted { background: #f005; }
pre { background: #8882; padding: .6em; overflow-x: auto; white-space: pre-wrap; }
svg { max-width: 100%; } svg rect { fill: #58b; } svg text { font: 9px sans-serif; fill: #888; }
.small { opacity: .7; font-size: .85em; }
@media (max-width: 50em) {
  body { margin: 1em auto; } h1 { font-size: 1.4em; } h2 { font-size: 1.2em; } h3 { font-size: 1em; }
  table, tbody, tr, td { display: block; } th { display: none; }
  tr { border-bottom: 2px solid #8888; padding: .6em 0; } td { border: 0; padding: .15em 0; }
  td:empty { display: none; } td[data-label]::before { content: attr(data-label) ": "; opacity: .7; font-size: .85em; }
}
"""
HEADS = ("claim", "statement", "verdict", "worst error, or median [quartiles]", "errors", "examples")
LOWEST, HIGHEST, BARS = -17.0, 1.0, 36  # of the histograms: log10 of the error


def _text(value: object) -> str:
    return html.escape(str(value))


def histogram(errors: np.ndarray) -> str:
    """An SVG histogram of log10 errors; zero counts as the lowest.

    Args:
        errors: not negative.

    Returns:
        The element.
    """
    logs = np.log10(np.maximum(errors, 10**LOWEST))
    counts, _ = np.histogram(np.clip(logs, LOWEST, HIGHEST), bins=BARS, range=(LOWEST, HIGHEST))
    tallest, width = max(counts.max(), 1), 4
    bars = "".join(
        f'<rect x="{width * i}" y="{30 - 30 * n / tallest:.1f}" width="{width - 1}" height="{30 * n / tallest:.1f}"/>'
        for i, n in enumerate(counts)
        if n
    )
    marks = "".join(
        f'<text x="{width * BARS * (at - LOWEST) / (HIGHEST - LOWEST):.0f}" y="41">1e{at}</text>'
        for at in (-16, -8, -2)
    )
    return f'<svg viewBox="0 0 {width * BARS} 44" width="{width * BARS}" height="44" role="img">{bars}{marks}</svg>'


def numbers(value: object) -> str:
    """An array with four significant digits, on one line.

    Args:
        value: array or number.

    Returns:
        The text.
    """
    array = np.asarray(value, np.float64)
    return " ".join(np.array2string(array + 0.0, precision=4, suppress_small=True, separator=", ").split())


def _row(claim: Claim, result: Result) -> str:
    errors = np.array([m.error for m in result.measurements])
    cells = [
        f"<b>{_text(claim.id)}</b><br><span class=small>{_text(claim.place)}</span>",
        _text(claim.statement)
        + (f"<br><span class=small>Assumes: {_text(claim.assumes)}</span>" if claim.assumes else "")
        + (f"<br><span class=small>{_text(claim.remark)}</span>" if claim.remark else ""),
        _text(claim.verdict),
        _text(result.contradiction or found(claim, result)),
        histogram(errors) if len(errors) else "",
        f"{result.examples}<br><span class=small>{result.seconds:.2f} s</span>",
    ]
    mark = ' class="contradicted"' if result.contradiction else ""
    labels = ("", "", *(f' data-label="{_text(head)}"' for head in HEADS[2:]))  # shown where a row is a block
    return f"<tr{mark}>" + "".join(f"<td{x}>{cell}</td>" for x, cell in zip(labels, cells, strict=True)) + "</tr>"


def _misprint(claim: Claim, example: Counterexample) -> str:
    shown = "\n".join(
        f"{name:9} {numbers(value)}"
        for name, value in (("printed", example.printed), ("corrected", example.corrected), ("truth", example.truth))
    )
    return (
        f"<h3>{_text(claim.id)} ({_text(claim.place)}; origin: {_text(claim.origin)})</h3>"
        f"<p>Printed: <code>{_text(claim.printed)}</code><br>Correct: <code>{_text(claim.corrected)}</code></p>"
        f"<p>{_text(claim.derivation)}</p><p>Counterexample: {_text(example.setting)}</p><pre>{_text(shown)}</pre>"
    )


def page(papers: dict[str, Paper], results: dict[str, Result], settings: dict[str, str], line: str) -> str:
    """The whole page.

    Args:
        papers: tag to paper.
        results: identifier to result.
        settings: versions, seed, profile.
        line: the summary.

    Returns:
        HTML.
    """
    parts = ["<h1>Claims of the four papers, checked</h1>", f"<p>{_text(line)}</p>"]
    parts.append("<p class=small>" + "; ".join(f"{_text(k)} {_text(v)}" for k, v in settings.items()) + "</p>")
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in HEADS) + "</tr>"
    for paper in papers.values():
        rows = [_row(claim, results[name]) for name, claim in paper.claims.items() if name in results]
        if rows:
            parts.append(f"<h2>{_text(paper.title)}</h2><p class=small>{_text(paper.authors)}</p>")
            parts.append(f"<table>{head}{''.join(rows)}</table>")
    wrong = [
        _misprint(claim, results[name].counterexample)
        for paper in papers.values()
        for name, claim in paper.claims.items()
        if claim.verdict == Verdict.MISPRINT and name in results and results[name].counterexample is not None
    ]
    if wrong:
        parts.append("<h2>Misprints, with the smallest counterexample</h2>" + "".join(wrong))
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>bellman_tf: claims</title>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"{head}<style>{STYLE}</style><body>{''.join(parts)}</body></html>"
