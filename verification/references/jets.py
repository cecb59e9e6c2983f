"""Second-order forward differentiation: arrays that carry their first and second derivatives in d variables.

A function written with the operations below, and with NumPy's tanh, exp, log, where and concatenate, takes a `Jet` for
an array; `expansion` differentiates it twice without being told any derivative.
"""

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class Jet(NDArrayOperatorsMixin):
    """Entries with their gradients and Hessians: value `[...]`, J `[..., d]`, H `[..., d, d]`."""

    def __init__(self, value, J, H):
        self.value, self.J, self.H = value, J, H

    @classmethod
    def variables(cls, z):
        """The variables themselves, at z `[d]`."""
        z = np.asarray(z, np.float64)
        return cls(z, np.eye(len(z)), np.zeros((len(z),) * 3))

    shape = property(lambda self: self.value.shape)
    real = property(lambda self: self.value)
    T = property(lambda self: Jet(self.value.T, np.swapaxes(self.J, 0, -2), np.swapaxes(self.H, 0, -3)))

    def __len__(self):
        return len(self.value)

    def __getitem__(self, index):
        return Jet(self.value[index], self.J[index], self.H[index])

    def reshape(self, *shape):
        """Of the value; the derivatives follow."""
        d = self.J.shape[-1]
        return Jet(self.value.reshape(shape), self.J.reshape(*shape, d), self.H.reshape(*shape, d, d))

    def __array_ufunc__(self, ufunc, method, *inputs, **_):
        return OPERATIONS[ufunc](*inputs)

    def __array_function__(self, function, _, inputs, options):
        return FUNCTIONS[function](*inputs, **options)


def _lift(x, like):
    if isinstance(x, Jet):
        return x
    x, d = np.asarray(x, np.float64), like.J.shape[-1]
    return Jet(x, np.zeros((*x.shape, d)), np.zeros((*x.shape, d, d)))


def _both(x, y):
    return _lift(x, y), _lift(y, x)


def _add(x, y):
    x, y = _both(x, y)
    return Jet(x.value + y.value, x.J + y.J, x.H + y.H)


def _scale(x, factor):
    return Jet(factor * x.value, factor * x.J, factor * x.H) if isinstance(x, Jet) else factor * np.asarray(x)


def _multiply(x, y):
    x, y = _both(x, y)
    cross = x.J[..., :, None] * y.J[..., None, :]
    return Jet(
        x.value * y.value,
        x.value[..., None] * y.J + y.value[..., None] * x.J,
        x.value[..., None, None] * y.H + y.value[..., None, None] * x.H + cross + np.swapaxes(cross, -1, -2),
    )


def _matmul(x, y):
    x, y = _both(x, y)
    if y.value.ndim == 1:  # [n, k] @ [k] or [k] @ [k]
        return _sum(_multiply(x, y), -1)
    return _sum(_multiply(x.reshape(len(x), 1), y), 0)  # [k] @ [k, n]


def _apply(x, value, first, second):
    curved = second[..., None, None] * x.J[..., :, None] * x.J[..., None, :]
    return Jet(value, first[..., None] * x.J, first[..., None, None] * x.H + curved)


def _sum(x, axis=None):
    if axis is None:
        axis = tuple(range(x.value.ndim))
    if axis == -1:
        axis = x.value.ndim - 1
    return Jet(np.sum(x.value, axis), np.sum(x.J, axis), np.sum(x.H, axis))


def _tanh(x):
    y = np.tanh(x.value)
    return _apply(x, y, 1 - y**2, -2 * y * (1 - y**2))


def _exp(x):
    y = np.exp(x.value)
    return _apply(x, y, y, y)


def _log(x):
    return _apply(x, np.log(x.value), 1 / x.value, -1 / x.value**2)


def _where(condition, x, y):
    x, y = _both(x, y)
    parts = zip((x.value, x.J, x.H), (y.value, y.J, y.H), range(3), strict=True)
    return Jet(*[np.where(condition.reshape(*condition.shape, *[1] * more), a, b) for a, b, more in parts])


def _concatenate(parts, axis=0):
    like = next(part for part in parts if isinstance(part, Jet))
    parts = [_lift(part, like) for part in parts]
    return Jet(*[np.concatenate([getattr(part, name) for part in parts], axis) for name in ("value", "J", "H")])


def _divide(x, y):
    y = _lift(y, x)
    return _multiply(x, _apply(y, 1 / y.value, -1 / y.value**2, 2 / y.value**3))


OPERATIONS = {
    np.add: _add,
    np.subtract: lambda x, y: _add(x, _scale(y, -1.0)),
    np.multiply: _multiply,
    np.matmul: _matmul,
    np.divide: _divide,
    np.negative: lambda x: _scale(x, -1.0),
    np.tanh: _tanh,
    np.exp: _exp,
    np.log: _log,
}
FUNCTIONS = {np.where: _where, np.concatenate: _concatenate, np.sum: _sum}


def expansion(function, z):
    """Value, gradient and Hessian at z `[d]`; of a vector function, one more leading axis each.

    Args:
        function: of a `Jet`.
        z: `[d]`.

    Returns:
        The three arrays.
    """
    jet = function(Jet.variables(z))
    return jet.value, jet.J, jet.H
