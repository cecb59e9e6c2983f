"""One look for all figures: no background, colours that both themes of the site can show, the same file every run."""

import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

FOLDER = pathlib.Path(__file__).parent
INK, BLUE, ORANGE, GREEN = "#7b8089", "#3a86d0", "#d9730d", "#2f9e5b"

plt.rcParams.update(
    {
        "svg.hashsalt": "bellman_tf",
        "font.size": 12,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "mathtext.fontset": "cm",
    }
)


def save(figure: Figure, name: str, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Writes a figure.

    Args:
        figure: what was drawn.
        name: of the file, without its ending.
        folder: where it goes.

    Returns:
        The file.
    """
    path = folder / f"{name}.svg"
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = path.read_text()
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    return path
