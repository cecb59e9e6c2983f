"""Two drawings: the recursion over three layers, and the value's Hessian in the space of samples."""

from look import BLUE, GREEN, INK, ORANGE, plt, save
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle


def box(axes: Axes, x: float, y: float, text: str, color: str, width: float = 1.7, size: float = 13) -> None:
    """A rounded box with a text in its middle."""
    style = "round,pad=0.02,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.34), width, 0.68, style, fc="none", ec=color, lw=1.8))
    axes.text(x, y, text, ha="center", va="center", color=color, fontsize=size)


def arrow(axes: Axes, start: tuple, end: tuple, color: str) -> None:
    """An arrow between two points."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, lw=1.8))


def canvas(width: float, height: float, scale: float) -> tuple:
    """A figure whose axes count in boxes."""
    figure, axes = plt.subplots(figsize=(width * scale, height * scale))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def draw_recursion() -> None:
    """`recursion.svg`: backwards the value, forwards the deviation."""
    figure, axes = canvas(11.6, 4.2, 0.86)
    places = (2.4, 5.2, 8.0)
    for t, x in enumerate(places):
        box(axes, x, 2.1, f"layer {t}\n$G_{t}=Q_{t}^T M_{t}^{{-1}} Q_{t}$", INK, 2.1, 11.5)
        arrow(axes, (x, 3.2), (x, 2.52), BLUE)
        arrow(axes, (x, 1.68), (x, 1.0), GREEN)
        axes.text(x, 0.72, f"$w_{t}=a_{t}+S_{t}d_{t}$", ha="center", color=GREEN, fontsize=13)
        axes.text(x, 3.42, f"$a_{t},\\;S_{t}$", ha="center", color=BLUE, fontsize=14)
    axes.text(10.6, 3.42, "$a_3,\\;S_3$", ha="center", color=BLUE, fontsize=14)
    box(axes, 10.6, 2.1, "loss", ORANGE, 1.1)
    arrow(axes, (10.6, 2.5), (10.6, 3.25), ORANGE)
    for start, end in ((10.05, 8.6), (7.4, 5.8), (4.6, 3.0)):
        arrow(axes, (start, 3.5), (end, 3.5), BLUE)
    for start, end in ((3.5, 4.1), (6.3, 6.9), (9.1, 10.0)):
        arrow(axes, (start, 2.1), (end, 2.1), INK)
    axes.text(0.55, 2.1, "batch", ha="center", va="center", color=INK)
    arrow(axes, (0.95, 2.1), (1.3, 2.1), INK)
    axes.text(0.1, 3.95, "backwards: what a change of the samples' losses is worth", color=BLUE, fontsize=12)
    axes.text(
        0.1, 0.1, "forwards: what the layers before have changed, $d_{t+1}=d_t-G_t w_t$", color=GREEN, fontsize=12
    )
    for x in (3.8, 6.6):
        arrow(axes, (x - 0.32, 0.83), (x + 0.28, 0.83), GREEN)
    print(save(figure, "recursion"))


def draw_value() -> None:
    """`value.svg`: V_XX of a batch of four samples as C S C'."""
    figure, axes = canvas(13.2, 4.6, 0.72)

    def matrix(x: float, height: float, width: float, label: str) -> None:
        axes.add_patch(Rectangle((x, 4.2 - height), width, height, fc="none", ec=INK, lw=1.2))
        axes.text(x + width / 2, 4.2 - height - 0.34, label, ha="center", color=INK, fontsize=12)

    def block(x: float, y: float, width: float, height: float, color: str) -> None:
        axes.add_patch(Rectangle((x, 4.2 - y - height), width, height, fc=color, ec="none", alpha=0.75))

    matrix(0.2, 3.6, 3.6, "$V_{XX}$:  $Bn \\times Bn$")
    for i in range(4):
        for j in range(4):
            block(0.25 + 0.9 * j, 0.05 + 0.9 * i, 0.8, 0.8, ORANGE if i == j else BLUE)
    axes.text(4.2, 2.4, "=", fontsize=22, va="center", ha="center", color=INK)
    matrix(4.6, 3.6, 1.2, "$C$:  $Bn \\times B$")
    for i in range(4):
        block(4.6 + 0.3 * i + 0.03, 0.05 + 0.9 * i, 0.24, 0.8, ORANGE)
    matrix(6.6, 1.2, 1.2, "$S$:  $B \\times B$")
    for i in range(4):
        for j in range(4):
            block(6.6 + 0.3 * j + 0.03, 0.03 + 0.3 * i, 0.24, 0.24, GREEN)
    matrix(8.6, 1.2, 3.6, "$C^T$")
    for i in range(4):
        block(8.65 + 0.9 * i, 0.03 + 0.3 * i, 0.8, 0.24, ORANGE)
    axes.text(
        6.6, 1.5, "one column per sample: its gradient,\ncarried back by back-propagation", color=INK, fontsize=12
    )
    print(save(figure, "value"))


if __name__ == "__main__":
    draw_recursion()
    draw_value()
