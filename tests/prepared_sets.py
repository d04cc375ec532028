"""Small data sets, prepared as tensorflow-datasets would, for the tests."""

from image_files import encoded, pixels


def prepare_fake(tfds, folder, name, splits, shape, num_classes, encode=encoded):
    """Writes a small data set as tensorflow-datasets would; without TensorFlow.

    Args:
      tfds: tensorflow-datasets.
      folder: its data folder.
      name: of the data set.
      splits: name of a split to its labels.
      shape: of the images.
      num_classes: that its labels are encoded with.
      encode: makes the file of an image.
    """

    def examples(labels):
        for index, label in enumerate(labels):
            yield index, {"image": encode(pixels(index, shape)), "label": label}

    with tfds.core.registered.skip_registration():

        class Fake(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.3")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="Random images.",
                    features=tfds.features.FeaturesDict(
                        {
                            "image": tfds.features.Image(shape=shape),
                            "label": tfds.features.ClassLabel(num_classes=num_classes),
                        }
                    ),
                )

            def _split_generators(self, dl_manager):
                return {split: examples(labels) for split, labels in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        Fake.name = name
        builder = Fake(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return folder / name / "1.2.3"


def prepare_mnist(tfds, folder):
    """Sixty training and twenty test images in the guise of MNIST."""
    labels = [index % 10 for index in range(60)]
    splits = {"train": labels, "test": labels[:20]}
    return prepare_fake(tfds, folder, "mnist", splits, (28, 28, 1), 10)
