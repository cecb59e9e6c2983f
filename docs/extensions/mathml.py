"""Formulas as MathML, made while the site is built: a page needs no script and no network to show them."""

from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def _inline(translator: object, node: object) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext()))


def _block(translator: object, node: object) -> None:
    text = node.astext()
    lines = rf"\begin{{aligned}} {text} \end{{aligned}}" if r"\\" in text else text
    formula = latex2mathml.tex2mathml(lines, as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div>')


def _visit_inline(translator: object, node: object) -> None:
    from docutils import nodes

    _inline(translator, node)
    raise nodes.SkipNode


def _visit_block(translator: object, node: object) -> None:
    from docutils import nodes

    _block(translator, node)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    """Registers the renderer."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True}
