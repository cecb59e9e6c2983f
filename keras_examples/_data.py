"""The data: scikit-learn's DIGITS, which it carries, and TFDS MNIST, from a prepared directory."""

import dataclasses
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Data:
    """Images scaled to [0, 1] with a channel axis, and their labels.

    Attributes:
        x_train: `[N, h, w, 1]`, float32.
        y_train: `[N]`, int32.
        x_test: as `x_train`.
        y_test: as `y_train`.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits() -> Data:
    """DIGITS, 8 x 8 pixels: 1437 images to train on and 360 to test on, the same for every seed."""
    from sklearn.datasets import load_digits  # an extra: `pip install "bellman_tf[examples]"`

    loaded = load_digits()
    x = (loaded.images[..., None] / 16).astype("float32")
    y = loaded.target.astype("int32")
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1437], order[1437:]
    return Data(x[train], y[train], x[test], y[test])


def mnist(data_dir: str | None) -> Data:
    """MNIST as TensorFlow Datasets prepares it, 28 x 28 pixels: 60,000 images to train on and 10,000 to test on.

    Args:
        data_dir: the directory that holds `mnist/`, as `tfds.load` takes it.

    Returns:
        The images and labels.

    Raises:
        ValueError: if there is no such directory or MNIST is not in it.
    """
    advice = (
        'Pass `--data-dir` or set TFDS_DATA_DIR; `python -c "import tensorflow_datasets as tfds; '
        "tfds.load('mnist', data_dir='DIRECTORY')\"` prepares one."
    )
    if not data_dir or not (pathlib.Path(data_dir) / "mnist").is_dir():
        raise ValueError(
            f"`data_dir` must be a TFDS directory that holds mnist. Received: data_dir={data_dir!r}. {advice}"
        )
    import tensorflow_datasets as tfds  # an extra: `pip install "bellman_tf[examples]"`

    parts = []
    for split in ("train", "test"):
        whole = tfds.load("mnist", data_dir=data_dir, download=False, split=split, batch_size=-1)
        parts += [whole["image"].numpy().astype("float32") / 255, whole["label"].numpy().astype("int32")]
    return Data(*parts)
