"""The metric that another Keras optimizer's step amounts to, read off that optimizer's own variables."""

from bellman_tf.curvature.inner.base import METRICS, InnerBlock, InnerMetric
from bellman_tf.curvature.inner.registry import make_inner_block
from bellman_tf.curvature.inner.scaled import ScaledBlock

__all__ = ["METRICS", "InnerBlock", "InnerMetric", "ScaledBlock", "make_inner_block"]
