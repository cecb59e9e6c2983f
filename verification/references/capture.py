"""Per-sample gradients from the definition of each layer, position by position; reference for `bellman_tf/layers`.

Everything returns one array per variable, the sample first. Convolutions are read as a dense layer that is applied to
patches: row (tap, channel) of a patch is what the tap sees of that channel, zero outside the image.
"""

import itertools

import numpy as np


def linear(x, c):
    """Kernel and bias of `h_l = W' x_l + b`: `sum_l x_l c_l'` and `sum_l c_l`, for x `[B, L, d]`, c `[B, L, e]`."""
    kernel = [sum(np.outer(x_l, c_l) for x_l, c_l in zip(x_i, c_i, strict=True)) for x_i, c_i in zip(x, c, strict=True)]
    return np.stack(kernel), c.sum(axis=1)


def lower_padding(size, out, kernel, stride, dilation, padding):
    """Zeros before the first pixel of one axis."""
    if padding == "valid":
        return 0
    reach = dilation * (kernel - 1)
    if padding == "causal":
        return reach
    return max((out - 1) * stride + reach + 1 - size, 0) // 2


def patches(x, out, kernel, strides, dilation, padding):
    """What every tap sees at every output position, `[B, L, taps, c_in]`, from x `[B, *spatial, c_in]`."""
    sizes = x.shape[1:-1]
    pads = [lower_padding(*axis, padding) for axis in zip(sizes, out, kernel, strides, dilation, strict=True)]
    rows = []
    for position in itertools.product(*map(range, out)):
        row = []
        for tap in itertools.product(*map(range, kernel)):
            pixel = tuple(
                p * s + t * d - low for p, s, t, d, low in zip(position, strides, tap, dilation, pads, strict=True)
            )
            inside = all(0 <= k < size for k, size in zip(pixel, sizes, strict=True))
            row.append(x[(slice(None), *pixel)] if inside else np.zeros((len(x), x.shape[-1])))
        rows.append(np.stack(row, axis=1))
    return np.stack(rows, axis=1)


def convolution(p, c, groups=1):
    """Kernel `[B, taps, c_in / groups, c_out]` and bias, from patches `[B, L, taps, c_in]` and c `[B, L, c_out]`."""
    per_in, per_out = p.shape[-1] // groups, c.shape[-1] // groups
    kernel = np.zeros((len(p), p.shape[2], per_in, c.shape[-1]))
    for o in range(c.shape[-1]):
        seen = p[..., (o // per_out) * per_in : (o // per_out + 1) * per_in]
        kernel[..., o] = np.einsum("bltc,bl->btc", seen, c[..., o])
    return kernel, c.sum(axis=1)


def depthwise(p, c):
    """Kernel `[B, taps, c_in, multiplier]` and bias, channel k feeding outputs k multiplier, ..."""
    channels, multiplier = p.shape[-1], c.shape[-1] // p.shape[-1]
    kernel = np.zeros((len(p), p.shape[2], channels, multiplier))
    for k, n in itertools.product(range(channels), range(multiplier)):
        kernel[:, :, k, n] = np.einsum("blt,bl->bt", p[..., k], c[..., k * multiplier + n])
    return kernel, c.sum(axis=1)


def embedding(tokens, c, vocabulary):
    """Table `[B, vocabulary, e]`: the row of a token collects the cotangents of its positions."""
    table = np.zeros((len(tokens), vocabulary, c.shape[-1]))
    for i, l in np.ndindex(*tokens.shape):
        table[i, tokens[i, l]] += c[i, l]
    return table


def scale_shift(normalised, c, axes):
    """Scale and shift of `y = gamma xhat + beta` that live on the given axes."""
    rest = tuple(k for k in range(1, c.ndim) if k not in axes)
    return (normalised * c).sum(axis=rest), c.sum(axis=rest)


def flatten(parts):
    """Per-sample gradients side by side, `[B, P]`."""
    return np.concatenate([np.reshape(part, (len(part), -1)) for part in parts], axis=1)
