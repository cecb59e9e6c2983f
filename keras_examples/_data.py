"""The data: scikit-learn's DIGITS, which it carries, and TFDS MNIST and CIFAR-10, from a prepared directory."""

import dataclasses
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Data:
    """Images scaled to [0, 1] with an axis of c channels, and their labels.

    Attributes:
        x_train: `[N, h, w, c]`, float32.
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


def mnist(data_dir: str | None, most: int | None = None) -> Data:
    """MNIST as TensorFlow Datasets prepares it, 28 x 28 pixels: 60,000 images to train on and 10,000 to test on.

    Args:
        data_dir: the directory that holds `mnist/`, as `tfds.load` takes it.
        most: the first so many of each are read; `None` reads all.

    Returns:
        The images and labels.

    Raises:
        ValueError: if there is no such directory or MNIST is not in it.
    """
    return _prepared("mnist", data_dir, most)


def cifar10(data_dir: str | None, most: int | None = None) -> Data:
    """CIFAR-10 as TensorFlow Datasets prepares it, 32 x 32 pixels in colour: 50,000 images to train on, 10,000 to test.

    Args:
        data_dir: the directory that holds `cifar10/`, as `tfds.load` takes it.
        most: the first so many of each are read; `None` reads all.

    Returns:
        The images and labels.

    Raises:
        ValueError: if there is no such directory or CIFAR-10 is not in it.
    """
    return _prepared("cifar10", data_dir, most)


NAMES = ("digits", "mnist", "cifar10")


def load(name: str, data_dir: str | None, most: int | None = None) -> Data:
    """Data by name; arguments as for `mnist`, which DIGITS does not need."""
    return digits() if name == "digits" else _prepared(name, data_dir, most)


def _prepared(name: str, data_dir: str | None, most: int | None) -> Data:
    advice = (
        'Pass `--data-dir` or set TFDS_DATA_DIR; `python -c "import tensorflow_datasets as tfds; '
        f"tfds.load('{name}', data_dir='DIRECTORY')\"` prepares one."
    )
    if not data_dir or not (pathlib.Path(data_dir) / name).is_dir():
        raise ValueError(
            f"`data_dir` must be a TFDS directory that holds {name}. Received: data_dir={data_dir!r}. {advice}"
        )
    import tensorflow_datasets as tfds  # an extra: `pip install "bellman_tf[examples]"`

    parts = []
    for split in ("train", "test"):
        images = tfds.load(name, data_dir=data_dir, download=False, split=split)
        [whole] = images.take(-1 if most is None else most).batch(len(images))
        parts += [whole["image"].numpy().astype("float32") / 255, whole["label"].numpy().astype("int32")]
    return Data(*parts)
