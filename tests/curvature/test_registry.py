"""Which block each player gets."""

import pytest

from bellman_tf.curvature import config as options
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.registry import coverage
from tests.layers.cases import CASES, draw


@pytest.mark.parametrize(
    ("config", "name", "description"),
    [
        (options.Identity(), "dense", "identity"),
        (options.RMSprop(), "dense", "rmsprop"),
        (options.Adam(), "embedding", "adam"),
        (options.KFAC(), "dense", "kfac 5 (x) 3"),
        (options.KFAC(), "conv 2d", "kfac 9 x 2 (x) 3"),
        (options.KFAC(convolution="patches"), "conv 2d", "kfac 19 (x) 3"),
        (options.KFAC(), "conv 2d groups", "kfac, 2 groups of 9 x 2 (x) 3"),
        (options.EKFAC(convolution="autocorrelation"), "conv 2d groups", "kfac, 2 groups of 19 (x) 3"),
        (options.KFAC(convolution="autocorrelation"), "transposed 2d", "kfac 19 (x) 3"),
        (options.EKFAC(), "transposed 2d", "ekfac 9 x 2 (x) 3"),
        (options.EKFAC(), "dense", "ekfac 5 (x) 3"),
        (options.EKFAC(), "layer norm", "fisher diagonal"),
        (options.Full(), "embedding", "full 15x15"),
        (options.Full(), None, "fisher diagonal"),
        (options.KFAC(), None, "fisher diagonal"),
    ],
)
def test_each_player_gets_the_block_that_suits_it(config, name, description, rng):
    if name is None:
        layout = player_layout("p", ((2, 3),), "a reason")
    else:
        sample = draw(CASES[name], rng)
        layout = player_layout("p", sample.shapes, coverage(sample.layer))
    assert make_block(config, layout).describe() == description


def test_a_player_too_large_for_the_full_matrix_is_named(rng):
    sample = draw(CASES["dense"], rng)
    layout = player_layout("big", sample.shapes, coverage(sample.layer))
    with pytest.raises(ValueError, match="max_parameters=14 parameters a player while 'big' has 15"):
        make_block(options.Full(max_parameters=14), layout)
