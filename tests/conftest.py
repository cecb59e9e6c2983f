"""Profiles, seeds and numerics shared by the whole test tree."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Some virtual machines report AMX and stop at it: bfloat16 convolutions of plain Keras die of an illegal instruction. A
# lower limit than this makes float16 fail on processors that have it, because TensorFlow asks the processor alone.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf

# Examples are traced TensorFlow code: their time says nothing about a property, so there is no deadline.
_COMMON = {"deadline": None, "derandomize": True, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("fast", max_examples=10, **_COMMON)
hypothesis.settings.register_profile("default", max_examples=14, **_COMMON)
hypothesis.settings.register_profile("thorough", max_examples=1000, **{**_COMMON, "derandomize": False})
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
# tests/replicas trains on four of them; all else runs on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def _float64():
    """Everything in float64, for comparisons with the references."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
