"""Comparing the maps of a feedback gain with the data."""

import itertools

import numpy as np

from keras_examples.studies._data import Data


def nearest_pair(image: np.ndarray, data: Data) -> tuple[float, int, int]:
    """The two classes whose mean images differ most nearly along an image.

    Args:
        image: of the data's shape.
        data: gives the means.

    Returns:
        Absolute cosine, and the two classes.
    """
    means = [data.x_train[data.y_train == label].mean(axis=0) for label in range(10)]
    found = []
    for a, b in itertools.combinations(range(10), 2):
        difference = means[a] - means[b]
        cosine = np.sum(image * difference) / (np.linalg.norm(image) * np.linalg.norm(difference))
        found.append((abs(float(cosine)), a, b))
    return max(found)
