"""Terminal gradients and Hessian factors of Keras losses.

The terminal cost of sample `i` is phi_i = B x (its contribution to J), a function of `z`: the network's output, or the
input of its last activation. A training step asks, in this order:

    observe_losses          which losses were called, on what, with which values per sample
    recognise               which closed form applies, and where to cut the network (`form.before_activation`)
    terminal_head           the Hessian of one output's terminal cost, as products and as factors
    hessian_times, hessian_factor, curvature_along_gradient     the same over all outputs
"""

from bellman_tf.losses.automatic import AutomaticHead, hessian_by_ad, hessian_factor_by_ad, hessian_times_by_ad
from bellman_tf.losses.forms import LossForm, agree, recognise
from bellman_tf.losses.heads import DiagonalHead, SoftmaxHead, softmax_factor, softmax_hessian_times, top_factor
from bellman_tf.losses.observe import Observation, observe_losses
from bellman_tf.losses.terminal import (
    SumOfHeads,
    curvature_along_gradient,
    hessian_factor,
    hessian_times,
    matched_coefficient,
    terminal_head,
)
