"""Data and networks of the papers."""

import math

import keras
import numpy as np
import pytest

from keras_examples.papers import data as paper_data
from keras_examples.papers import networks
from tests.tfds_directory import prepare


@pytest.mark.parametrize("name", paper_data.CARRIED)
def test_carried_data_are_standardised_and_split(name):
    data = paper_data.load(name, None)
    axes = tuple(range(data.x_train.ndim - 1))
    assert np.allclose(data.x_train.mean(axis=axes), 0, atol=1e-5)
    assert np.allclose(data.x_train.std(axis=axes), 1, atol=1e-4)
    assert len(data.x_train) + len(data.x_test) == {"digits": 1797, "wine": 178, "iris": 150}[name]
    assert set(data.y_test) == set(data.y_train) == set(range({"digits": 10}.get(name, 3)))
    half = paper_data.load(name, None, 0.5)
    assert len(half.x_train) == round(0.5 * len(data.x_train)) and len(half.x_test) == len(data.x_test)


DIRECTORIES = {
    "mnist": ("3.0.1", (28, 28, 1), 10, {}),
    "fashion-mnist": ("3.0.1", (28, 28, 1), 10, {}),
    "cifar-10": ("3.0.2", (32, 32, 3), 10, {"id": ("text", None)}),
    "cifar-100": ("3.0.2", (32, 32, 3), 100, {"id": ("text", None), "coarse_label": ("label", 20)}),
    "svhn": ("3.1.0", (32, 32, 3), 10, {"id": ("text", None)}),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_images_come_from_a_tfds_directory(name, tmp_path):
    version, shape, classes, extra = DIRECTORIES[name]
    prepare(tmp_path, paper_data.IMAGES[name], version, shape, classes, extra, counts=(120, 20))
    data = paper_data.load(name, str(tmp_path), share=0.5)
    assert data.x_train.shape == (60, *shape) and data.x_test.shape == (20, *shape)
    assert np.array_equal(data.y_train, np.arange(60) % classes)
    assert np.allclose(data.x_train.mean(axis=(0, 1, 2)), 0, atol=1e-4)


@pytest.mark.parametrize("name", ["svhn", "fashion-mnist", "cifar-100"])
def test_data_that_are_not_on_disk_are_named(name, tmp_path):
    folder = paper_data.IMAGES[name]
    with pytest.raises(ValueError, match=f"TFDS directory that holds {folder}.*--data-dir.*tfds.load.'{folder}'"):
        paper_data.load(name, str(tmp_path))


def test_sigmoid_outputs_keep_the_loss_above_its_floor():
    model = networks.fully_connected((4,), (), "tanh", classes=3, sigmoid=True)
    model.set_weights([1e3 * np.eye(4, 3), np.zeros(3)])
    x, y = np.array([[5.0, -5.0, -5.0, 0]], "float32"), np.array([0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    floor = math.log(1 + 2 / math.e)
    assert float(loss(y, model(x))) == pytest.approx(floor, abs=1e-5)
    inputs = keras.Input((4,))
    theirs = keras.Model(inputs, keras.layers.Dense(3, activation="sigmoid")(inputs))
    theirs.set_weights(model.get_weights())
    with pytest.warns(UserWarning, match="does not represent logits"):
        assert float(loss(y, theirs(x))) < 0.01  # why ours is written out


@pytest.mark.parametrize("strides", [1, 2])
def test_residual_networks_have_three_convolutions_in_a_block(strides):
    model = networks.residual_blocks((16, 16, 1), 4, 2, "relu", strides=strides)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Conv2D") == 1 + 2 * 3 and kinds.count("Add") == 2
    assert model.output_shape == (None, 10)


@pytest.mark.slow
def test_resnet18_has_eighteen_layers_with_weights():
    for trainable, shortcuts in ((False, 3), (True, 8)):
        model = networks.resnet18((32, 32, 3), width=4, trainable_shortcuts=trainable)
        players = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
        assert len(players) == 18 + shortcuts
