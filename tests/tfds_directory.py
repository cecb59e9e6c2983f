"""Small directories of TensorFlow Datasets, made on the spot with random images."""

import numpy as np
import tensorflow as tf


def prepare(directory, name, version, shape, classes=10, extra=None, counts=(40, 20)):
    """A prepared data set as the builder of that name and version expects it.

    `extra` maps names of further features to ("text" | "label", number of classes).
    """
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    place = directory / name / version
    place.mkdir(parents=True)
    kinds = {"text": lambda _: tfds.features.Text(), "label": lambda n: tfds.features.ClassLabel(num_classes=n)}
    more = {key: kinds[kind](number) for key, (kind, number) in (extra or {}).items()}
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=classes), **more,
    })  # fmt: skip
    template = tfds.core.ShardedFileTemplate(str(place), dataset_name=name, filetype_suffix="tfrecord")
    splits = []
    for split, count in zip(("train", "test"), counts, strict=True):
        records = []
        for k, image in enumerate(rng.integers(0, 256, (count, *shape)).astype("uint8")):
            others = {key: str(k) if kind == "text" else k % number for key, (kind, number) in (extra or {}).items()}
            example = features.encode_example({"image": image, "label": k % classes, **others})
            records.append(features.serialize_example(example))
        with tf.io.TFRecordWriter(str(place / f"{name}-{split}.tfrecord-00000-of-00001")) as writer:
            for record in records:
                writer.write(record)
        splits.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[count], num_bytes=sum(map(len, records)), filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(place), features=features, split_infos=splits, filename_template=None, check_data=False
    )
