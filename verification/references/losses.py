"""Terminal losses in float64 NumPy, written from their formulas: one position at a time, dense Hessians.

Every loss is a function of one vector `z`; a sample's cost is the sum of `weight * loss(z)` over its positions, and the
weights are what the training objective J makes of the loss values.
"""

import numpy as np


def _log_softmax(z):
    z = np.asarray(z, np.float64)
    top = z.max()
    return z - top - np.log(np.sum(np.exp(z - top)))


def categorical(z, target):
    """Cross-entropy of softmax(z): value, gradient, Hessian.

    The Hessian is written as the graph Laplacian sum_{j<k} p_j p_k (e_j - e_k)(e_j - e_k)', which has no cancellation
    off the diagonal and shows that it is positive semidefinite.

    Args:
        z: `[C]`, logits.
        target: `[C]`, probabilities.

    Returns:
        value, gradient `[C]`, Hessian `[C, C]`.
    """
    log_p = _log_softmax(z)
    target = np.asarray(target, np.float64)
    classes = len(log_p)
    H = np.zeros((classes, classes))
    for j in range(classes):
        for k in range(classes):
            if j != k:
                pair = np.exp(log_p[j] + log_p[k])
                H[j, k] -= pair
                H[j, j] += pair
    return -np.sum(target * log_p), np.exp(log_p) - target, H


def categorical_half(p):
    """Scores of the labels by the roots of their chances: Z with Z Z' = diag(p) - p p'.

    The Fisher matrix of the label is sum_k p_k (e_k - p)(e_k - p)'. Of the likeliest class 1 - p_k is the sum of the
    others, which does not cancel.

    Args:
        p: `[C]`, probabilities.

    Returns:
        `[C, C]`, column k is sqrt(p_k) (e_k - p).
    """
    p = np.asarray(p, np.float64)
    columns = []
    for k, chance in enumerate(p):
        score = -p.copy()
        score[k] = np.delete(p, k).sum()
        columns.append(np.sqrt(chance) * score)
    return np.stack(columns, axis=1)


def binary(z, target):
    """Mean over the entries of the cross-entropy of 1 / (1 + exp(-z)): value, gradient, Hessian.

    Args:
        z: `[C]`, logits.
        target: `[C]`, probabilities.

    Returns:
        value, gradient `[C]`, Hessian `[C, C]`.
    """
    z, target = np.asarray(z, np.float64), np.asarray(target, np.float64)
    softplus = np.logaddexp(0.0, z)
    p = np.exp(z - softplus)
    count = len(z)
    return np.mean(softplus - target * z), (p - target) / count, np.diag(np.exp(z - 2.0 * softplus)) / count


def square(z, target):
    """Mean of (z - target)^2: value, gradient, Hessian.

    Args:
        z: `[C]`.
        target: `[C]`.

    Returns:
        value, gradient `[C]`, Hessian `[C, C]`.
    """
    gap = np.asarray(z, np.float64) - np.asarray(target, np.float64)
    return np.mean(gap**2), 2.0 * gap / len(gap), 2.0 * np.eye(len(gap)) / len(gap)


def huber(z, target, delta=1.0):
    """Mean of gap^2 / 2 inside [-delta, delta] and its tangents outside: value, gradient, Hessian.

    Args:
        z: `[C]`.
        target: `[C]`.
        delta: where the parabola ends.

    Returns:
        value, gradient `[C]`, Hessian `[C, C]`.
    """
    gap = np.asarray(z, np.float64) - np.asarray(target, np.float64)
    inside = np.abs(gap) <= delta
    value = np.where(inside, gap**2 / 2, delta * np.abs(gap) - delta**2 / 2)
    slope = np.where(inside, gap, delta * np.sign(gap))
    return np.mean(value), slope / len(gap), np.diag(inside / len(gap))


def log_cosh(z, target):
    """Mean of log cosh(z - target): value, gradient, Hessian.

    Args:
        z: `[C]`.
        target: `[C]`.

    Returns:
        value, gradient `[C]`, Hessian `[C, C]`.
    """
    gap = np.asarray(z, np.float64) - np.asarray(target, np.float64)
    value = np.logaddexp(gap, -gap) - np.log(2.0)
    return np.mean(value), np.tanh(gap) / len(gap), np.diag(np.exp(-2.0 * value)) / len(gap)


def poisson(rate, count, epsilon=1e-7):
    """Mean of rate - count log(rate + epsilon): value, gradient, Hessian.

    Args:
        rate: `[C]`, positive.
        count: `[C]`.
        epsilon: Keras's, added before the logarithm.

    Returns:
        value, gradient `[C]`, Hessian `[C, C]`.
    """
    rate, count = np.asarray(rate, np.float64), np.asarray(count, np.float64)
    shifted = rate + epsilon
    size = len(rate)
    return (
        np.mean(rate - count * np.log(shifted)),
        (1.0 - count / shifted) / size,
        np.diag(count / shifted**2) / size,
    )


def smooth(target, label_smoothing, classes):
    """Labels mixed with the uniform distribution over `classes` (2 for binary labels).

    Args:
        target: labels.
        label_smoothing: weight of the uniform distribution.
        classes: how many classes share it.

    Returns:
        The mixed labels.
    """
    return (1.0 - label_smoothing) * np.asarray(target, np.float64) + label_smoothing / classes


def block_diagonal(blocks, weights):
    """Hessian of one sample: weighted Hessians of its positions along the diagonal.

    Args:
        blocks: list of `[C, C]`.
        weights: list of numbers.

    Returns:
        `[P C, P C]`.
    """
    size = len(blocks[0])
    H = np.zeros((size * len(blocks),) * 2)
    for k, (block, weight) in enumerate(zip(blocks, weights, strict=True)):
        H[k * size : (k + 1) * size, k * size : (k + 1) * size] = weight * block
    return H


def value_weights(shape, reduction, sample_weight=None, mask=None, loss_weight=1.0):
    """B dJ/d(loss value), B the batch size, for each reduction of Keras.

    Args:
        shape: shape of the loss values, samples first.
        reduction: name of the reduction.
        sample_weight: weights that broadcast against the values from the left, or None.
        mask: booleans shaped like the values, or None.
        loss_weight: weight of this output in J.

    Returns:
        Array of the given shape.
    """
    weight = np.ones(shape)
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight, np.float64)
        weight = weight * sample_weight.reshape(sample_weight.shape + (1,) * (len(shape) - sample_weight.ndim))
    valid = np.ones(shape) if mask is None else np.asarray(mask, np.float64)
    weight = weight * valid
    if reduction == "sum":
        divisor = 1.0
    elif reduction == "mean_with_sample_weight":
        divisor = np.sum(weight)
    else:
        divisor = np.sum(valid)  # the mean is over the entries that count
    return loss_weight * shape[0] * weight / divisor


def matched_coefficient(g, H):
    """The beta^2 for which beta^2 g g' has the curvature of H along g; 0 if that is negative or g = 0.

    Args:
        g: `[D]`.
        H: `[D, D]`.

    Returns:
        A number.
    """
    g, H = np.asarray(g, np.longdouble), np.asarray(H, np.longdouble)
    length = np.sqrt(np.sum(g**2))
    if length == 0:
        return 0.0
    u = g / length
    return float(max(u @ H @ u, 0.0) / length**2)


def best_approximation(H, rank):
    """Positive semidefinite matrix of the given rank nearest to H.

    Args:
        H: `[D, D]`, symmetric.
        rank: its rank at most.

    Returns:
        `[D, D]`.
    """
    eigenvalues, vectors = np.linalg.eigh(H)
    keep = np.argsort(eigenvalues)[::-1][:rank]
    return (vectors[:, keep] * np.maximum(eigenvalues[keep], 0.0)) @ vectors[:, keep].T


def sigmoid(z):
    """1 / (1 + exp(-z)); complex arguments pass.

    Args:
        z: any shape.

    Returns:
        Shaped like `z`.
    """
    return 1.0 / (1.0 + np.exp(-z))


def softmax(z):
    """Softmax over the last axis; complex arguments pass.

    Args:
        z: `[..., C]`.

    Returns:
        Shaped like `z`.
    """
    e = np.exp(z - np.max(np.real(z), axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def tversky(y, p, alpha=0.5, beta=0.5, epsilon=1e-7):
    """One minus the Tversky index of a whole batch; Dice for alpha = beta = 1/2 up to Keras's epsilon.

    Args:
        y: labels, any shape.
        p: probabilities, the same shape.
        alpha: weight of labels that were missed.
        beta: weight of probability where no label is.
        epsilon: Keras's, added to the denominator.

    Returns:
        A number.
    """
    common = np.sum(y * p)
    return 1.0 - common / (common + alpha * np.sum((1 - p) * y) + beta * np.sum(p * (1 - y)) + epsilon)


def dice(y, p, epsilon=1e-7):
    """One minus the Dice coefficient of a whole batch.

    Args:
        y: labels, any shape.
        p: probabilities, the same shape.
        epsilon: Keras's, added to the denominator.

    Returns:
        A number.
    """
    return 1.0 - 2.0 * np.sum(y * p) / (np.sum(y) + np.sum(p) + epsilon)


def cosine(y, z):
    """Minus the cosine of the angle between each row of labels and output.

    Args:
        y: `[..., C]`.
        z: `[..., C]`.

    Returns:
        `[...]`.
    """
    return -np.sum(y * z, axis=-1) / np.sqrt(np.sum(y * y, axis=-1) * np.sum(z * z, axis=-1))


def derivatives(function, z, step=1e-5):
    """Gradient and Hessian of a function of several arrays: complex steps, then central differences of those.

    The error of the Hessian is step^2 times fourth derivatives plus eps / step, some 1e-10 for functions of size one.

    Args:
        function: real-analytic, of a list of arrays shaped like `z`; returns a number.
        z: list of arrays.
        step: of the central differences.

    Returns:
        gradient `[n]` and Hessian `[n, n]`, n running over all arrays one after the other.
    """
    shapes, sizes = [np.shape(x) for x in z], [np.size(x) for x in z]
    places = np.cumsum([0, *sizes])
    point = np.concatenate([np.ravel(x) for x in z]).astype(np.float64)

    def gradient(flat):
        found = np.zeros(len(flat))
        for k in range(len(flat)):
            moved = flat.astype(np.complex128)
            moved[k] += 1e-30j
            parts = [moved[a:b].reshape(s) for a, b, s in zip(places[:-1], places[1:], shapes, strict=True)]
            found[k] = np.imag(function(parts)) / 1e-30
        return found

    units = step * np.eye(len(point))
    H = np.stack([(gradient(point + e) - gradient(point - e)) / (2.0 * step) for e in units])
    return gradient(point), 0.5 * (H + H.T)
