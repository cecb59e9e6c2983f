"""Terminal gradients and Hessian factors of losses.

The terminal cost of sample `i` is phi_i = B x (its contribution to J), a function of `z`: the network's output, or the
input of its last activation. A training step calls, in this order:

    record_loss             while J is computed: which losses were called on what, and tapes for second derivatives
    terminal_cost           which outputs carry a loss, where each is cut (`cost.z`), which closed form applies
    terminal_curvature      from the cotangents of `cost.z` and `cost.values`: beta^2 per sample, or columns of a factor
    cost.draw               a random cotangent of `cost.z` whose second moment is the Hessian

`exclude_losses` takes the losses of some outputs out of J, for players that do not feel them.

Underneath: `observe_losses`, `curvature_tapes`, `recognise` and the registry `CLOSED_FORMS`, one `Head` per output,
`hessian_factor` and `matched_coefficient` over all outputs.
"""

from bellman_tf.losses.automatic import AutomaticHead
from bellman_tf.losses.closed_form import ClosedForm, LossForm
from bellman_tf.losses.diagonal import DiagonalHead, ElementwiseForm
from bellman_tf.losses.ends import OutputEnd, carried_logits, find_end, looks_through
from bellman_tf.losses.excluded_losses import ExcludedLosses, exclude_losses, named_losses
from bellman_tf.losses.forms import CLOSED_FORMS, agree, recognise, terminal_head
from bellman_tf.losses.head import Head
from bellman_tf.losses.joint import hessian_factor, matched_coefficient
from bellman_tf.losses.observe import Observation, observe_losses
from bellman_tf.losses.probe import CurvatureTapes, LossCurvature, curvature_tapes
from bellman_tf.losses.samples import top_factor
from bellman_tf.losses.signs import Signs
from bellman_tf.losses.softmax import SoftmaxHead, softmax_factor, softmax_half_times, softmax_hessian_times
from bellman_tf.losses.sum import SumOfHeads
from bellman_tf.losses.terminal import (
    LossRecord,
    TerminalCost,
    TerminalCurvature,
    TerminalHessian,
    find_ends,
    keras_computes_loss,
    record_loss,
    terminal_cost,
    terminal_curvature,
)
