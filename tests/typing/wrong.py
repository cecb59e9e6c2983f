"""Wrong use. The type checker must find something in every line that says so, and nowhere else; nobody runs it."""

import keras
import tensorflow as tf

import bellman_tf as btf
from bellman_tf import trajectory

one: tf.Tensor = tf.constant([[1.0]])

btf.GTDDP(information="sideways")  # wrong
btf.GTDDP(learning_rates=0.1)  # wrong
btf.GTDDP("0.1")  # wrong
btf.GTDDP(curvature="hessian")  # wrong
btf.GTDDP(step_control=True)  # wrong
btf.GTDDP(group_size="8")  # wrong
btf.DDPNOpt(0.1, value_hessian="whole")  # wrong
btf.DDPNOpt(0.1, alignment="asap")  # wrong
btf.DGNOpt(alignment="soon")  # wrong
btf.KFAC(clip=1.0)  # wrong
btf.EKFAC.as_cited(0.1, damping="much")  # wrong
btf.GTDDP.as_published(paper="ddp2")  # wrong
btf.as_game("model")  # wrong
_ = btf.as_game(keras.Sequential([])).game.player  # wrong
btf.GTDDP(coupling="all")  # wrong
btf.curvature.KFAC(damping="0.1")  # wrong
btf.curvature.KFAC(convolution="patch")  # wrong
btf.curvature.KFAC(cooperative="full")  # wrong
btf.curvature.KFAC(cooperative=True)  # wrong
btf.curvature.KFAC(cooperative_sign=0)  # wrong
btf.curvature.KFAC(fisher="true")  # wrong
btf.curvature.Full(fisher="true")  # wrong
btf.curvature.EKFAC(scalings="all")  # wrong
btf.linalg.solve_spd(one, one)  # wrong
btf.linalg.factor_spd(None)  # wrong
btf.bellman.Value(one)  # wrong
btf.bandit.Exp3(rates=1.0)  # wrong
btf.bandit.Exp3PlusPlus(analysis="2015")  # wrong
btf.bandit.get("exp4")  # wrong
btf.baselines.EMSA(0.1, curvature="kfac")  # wrong
btf.baselines.KWNG(coordinates="two")  # wrong
btf.baselines.KWNG.as_published(curvature="hessian")  # wrong
_ = btf.baselines.KWNG().damping_state.epsilon.total  # wrong
_ = btf.GTDDP().get_config()[0]  # wrong
btf.Sequential([]).game.summary(print_fn=len(one))  # wrong
trajectory.Regularization(on="costate")  # wrong
trajectory.solve(one, one, one)  # wrong
trajectory.Problem(one, one, one, horizon=3)  # wrong
