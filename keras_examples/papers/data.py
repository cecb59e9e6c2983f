"""The papers' data by name, standardised: what scikit-learn carries, and what a TFDS directory holds."""

import dataclasses

import numpy as np

from keras_examples.studies import _data
from keras_examples.studies._data import Data

# Ours to TensorFlow Datasets'.
IMAGES = {
    "mnist": "mnist",
    "fashion-mnist": "fashion_mnist",
    "cifar-10": "cifar10",
    "cifar-100": "cifar100",
    "svhn": "svhn_cropped",
}
CARRIED = ("digits", "wine", "iris")


def load(name: str, data_dir: str | None, share: float = 1.0) -> Data:
    """Data by name, with mean 0 and deviation 1 over the training part (DGNOpt App. E.1).

    Images have one mean and deviation per channel, the measurements of WINE and IRIS one each.

    Args:
        name: one of `CARRIED` or `IMAGES`.
        data_dir: TFDS directory; what scikit-learn carries needs none.
        share: of the training part, its first samples.

    Returns:
        The data.

    Raises:
        ValueError: if the directory does not hold the data.
    """
    carried = name in ("wine", "iris")
    data = _measurements(name) if carried else _data.load(IMAGES.get(name, name), data_dir)
    count = round(share * len(data.x_train))
    data = dataclasses.replace(data, x_train=data.x_train[:count], y_train=data.y_train[:count])
    return _data.standardised(data, tuple(range(data.x_train.ndim - 1)))


def _measurements(name: str) -> Data:
    """WINE (178 samples, 13 measurements) or IRIS (150, 4); one fifth is to test on, the same for every seed."""
    from sklearn import datasets  # an extra: `pip install "bellman_tf[examples]"`

    x, y = (datasets.load_wine if name == "wine" else datasets.load_iris)(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [len(x) // 5])
    x, y = x.astype("float32"), y.astype("int32")
    return Data(x[train], y[train], x[test], y[test])
