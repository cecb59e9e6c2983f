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


NAMES = ("digits", "mnist", "cifar10")


def load(name: str, data_dir: str | None, most: int | None = None) -> Data:
    """Data by name: DIGITS, or what TensorFlow Datasets has prepared.

    MNIST has 60,000 images of 28 x 28 pixels to train on and 10,000 to test on, CIFAR-10 50,000 and 10,000 of 32 x 32
    pixels in colour.

    Args:
        name: one of `NAMES`.
        data_dir: the directory that holds a folder of that name, as `tfds.load` takes it; DIGITS need none.
        most: the first so many of each part are read; `None` reads all.

    Returns:
        The images and labels.

    Raises:
        ValueError: if there is no such directory or the data are not in it.
    """
    if name == "digits":
        return digits()
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


def batch_rows(count: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Which samples make the batches of a run: each epoch in a new order; a shorter run's begin a longer one's.

    Args:
        count: N, samples to train on.
        batch_size: B.
        steps: of the run.
        seed: of the orders.

    Returns:
        `[steps, B]`.
    """
    rng, needed = np.random.default_rng(seed), steps * batch_size
    order = np.concatenate([rng.permutation(count) for _ in range(-(-needed // count))])[:needed]
    return order.reshape(steps, batch_size)


def standardised(data: Data, axes: tuple[int, ...] = (0,)) -> Data:
    """Inputs with mean 0 and deviation 1 over the training part; what is constant there becomes 0.

    Args:
        data: to scale; both parts alike.
        axes: over which mean and deviation are taken; the samples alone by default.

    Returns:
        The scaled data.
    """
    mean, deviation = (each(data.x_train, axis=axes, keepdims=True) for each in (np.mean, np.std))
    scale = np.where(deviation > 0, deviation, 1)
    parts = [((x - mean) / scale).astype("float32") for x in (data.x_train, data.x_test)]
    return dataclasses.replace(data, x_train=parts[0], x_test=parts[1])


def characters(length: int) -> tuple[Data, int]:
    """Python's own help topics, cut into pieces; the last tenth is to test on.

    Args:
        length: characters of one piece; the label of each is the one behind it.

    Returns:
        Pieces `[N, length]` and labels alike, int32, and the size of the alphabet.
    """
    from pydoc_data import topics

    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    alphabet, codes = np.unique(list(text), return_inverse=True)
    count = (len(codes) - 1) // length
    x = codes[: count * length].reshape(count, length).astype("int32")
    y = codes[1 : count * length + 1].reshape(count, length).astype("int32")
    test = count // 10
    return Data(x[:-test], y[:-test], x[-test:], y[-test:]), len(alphabet)
