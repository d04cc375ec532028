"""Streamed data sets: order, crops, resumption, worker processes."""

import io
import itertools
import multiprocessing
from dataclasses import dataclass

import numpy as np
import pytest
from image_files import encoded
from PIL import Image

from experiments.data import Stream, StreamedDataset, validation_split
from experiments.data.crops import central_crop, random_mirror, random_resized_crop
from experiments.errors import UsageError


@dataclass(frozen=True)
class Numbers:
    """Images of one colour: their index; the label is the index too."""

    count: int
    broken: int | None = None

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            return b"no image", index
        return encoded(np.full((40, 50, 3), index, np.uint8)), index

    def where(self, index):
        return f"numbers: image {index}"


def stream(count=20, size=8, **options):
    return Stream(
        Numbers(count, **options), np.arange(count), num_classes=count, size=size
    )


def labels(batches):
    return [batch_labels.tolist() for _, batch_labels in batches]


def test_an_epoch_has_every_image_once_and_an_order_of_its_own():
    batches = list(stream().train_batches(4, seed=1, start=0, stop=10, workers=0))
    assert all(images.shape == (4, 8, 8, 3) for images, _ in batches)
    assert all(images.dtype == np.uint8 for images, _ in batches)
    assert all((images == part[:, None, None, None]).all() for images, part in batches)
    first, second = np.ravel(labels(batches[:5])), np.ravel(labels(batches[5:]))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist() != sorted(second)


def test_the_incomplete_batch_of_an_epoch_is_left_out():
    batches = stream(10).train_batches(4, seed=0, start=0, stop=4, workers=0)
    first, second = np.reshape(labels(batches), (2, 8))
    assert len(set(first)) == len(set(second)) == 8


@pytest.fixture(scope="module")
def photographs():
    """A stream of random images, whose crops all differ."""

    @dataclass(frozen=True)
    class Photographs:
        def __len__(self):
            return 12

        def __getitem__(self, index):
            rng = np.random.default_rng(index)
            return encoded(rng.integers(0, 256, (30, 40, 3), np.uint8)), index % 3

        def where(self, index):
            return f"photograph {index}"

    return Stream(Photographs(), np.arange(12), num_classes=3, size=16)


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


def test_a_step_depends_on_the_seed_and_its_number_alone(photographs):
    def steps(start, stop, seed=5):
        options = {"seed": seed, "start": start, "stop": stop, "workers": 0}
        return list(photographs.train_batches(4, **options))

    whole = steps(0, 7)
    same(whole, steps(0, 7))
    same(whole[4:], steps(4, 7))
    assert steps(7, 7) == []
    assert not np.array_equal(whole[0][0], steps(0, 1, seed=6)[0][0])


def test_an_image_is_cropped_anew_in_each_epoch_whatever_the_batch_size(photographs):
    def by_image(batch_size, epoch):
        steps = 12 // batch_size
        start, stop = epoch * steps, (epoch + 1) * steps
        options = {"seed": 0, "start": start, "stop": stop, "workers": 0}
        batches = photographs.train_batches(batch_size, **options)
        return {image.tobytes() for images, _ in batches for image in images}

    assert by_image(4, 0) == by_image(6, 0)
    assert not by_image(4, 0) & by_image(4, 1)


def test_without_augmentation_images_are_cropped_as_for_the_test(photographs):
    options = {"seed": 0, "start": 0, "stop": 3, "workers": 0, "augment": False}
    train = photographs.train_batches(4, **options)
    test = photographs.test_batches(5, workers=0)
    train, test = (
        {image.tobytes() for images, _ in batches for image in images}
        for batches in (train, test)
    )
    assert train == test


def test_the_test_is_in_order_and_complete():
    assert labels(stream(10).test_batches(4, workers=0)) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert labels(stream(10).test_batches(4, start=1, workers=0))[0] == [4, 5, 6, 7]


def test_processes_decode_their_rows_of_the_same_batches(photographs):
    """Two of them together have what one has, and neither decodes a row too much."""
    few = photographs.take(np.arange(11))
    whole = list(few.train_batches(4, seed=3, start=1, stop=5, workers=0))
    tested = list(few.test_batches(4, workers=0))
    for rows in (np.array([0, 3]), np.array([1, 2])):
        decoded = []

        class Counting(Stream):
            def image(self, index, rng=None):
                decoded.append(index)  # noqa: B023
                return super().image(index, rng)

        mine = Counting(**vars(few))
        parts = mine.train_batches(4, seed=3, start=1, stop=5, rows=rows, workers=0)
        same(list(parts), [(images[rows], which[rows]) for images, which in whole])
        assert len(decoded) == 2 * len(whole)
        there = [rows[rows < len(which)] for _, which in tested]  # the last is short
        same(
            list(mine.test_batches(4, rows=rows, workers=0)),
            [
                (images[here], which[here])
                for here, (images, which) in zip(there, tested, strict=True)
            ],
        )


def test_a_process_may_have_no_row_of_the_last_batch():
    images, labels = list(stream(5).test_batches(4, rows=np.array([2, 3])))[-1]
    assert images.shape == (0, 8, 8, 3)
    assert labels.shape == (0,)


def test_validation_split_of_a_stream():
    dataset = StreamedDataset("x", 40, stream(40), stream(40), (0.0,), (1.0,))
    train, validation = validation_split(dataset, seed=3)
    assert (len(train), len(validation)) == (38, 2)
    both = [part.test_batches(2, workers=0) for part in (train, validation)]
    assert sorted(np.ravel(labels(itertools.chain(*both)))) == list(range(40))


def test_errors_name_the_image():
    batches = stream(8, broken=5).test_batches(4, workers=0)
    next(batches)
    with pytest.raises(UsageError, match="numbers: image 5: unreadable image"):
        next(batches)
    few = Stream(Numbers(8), np.arange(8), num_classes=3, size=8)
    with pytest.raises(UsageError, match="image 3: label 3; the labels of 3 classes"):
        list(few.test_batches(8, workers=0))
    with pytest.raises(UsageError, match=r"--batch-size must be from 1 to 8, .* got 9"):
        few.train_batches(9, seed=0, start=0, stop=1)


def test_workers_make_the_same_batches_and_end_with_the_iterator():
    pytest.importorskip("grain")
    options = {"seed": 2, "start": 2, "stop": 8}
    alone = list(stream().train_batches(4, **options, workers=0))
    batches = stream().train_batches(4, **options, workers=2)
    begun = [next(batches) for _ in range(5)]
    same(begun, alone[:5])
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def test_central_crop():
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, 20:80] = 255
    cropped = central_crop(Image.fromarray(image), 21)  # 40 x 24, then 21 x 21
    assert cropped.size == (21, 21)
    assert (np.asarray(cropped)[:, 2:-2] == 255).all()
    assert central_crop(Image.fromarray(image[:5, :5]), 224).size == (224, 224)


def gradient(width, height):
    """Red rises from left to right, green from top to bottom, 0 to 200."""
    red = np.linspace(0, 200, width)[None, :].repeat(height, 0)
    green = np.linspace(0, 200, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8))


def test_random_resized_crop_takes_parts_of_all_allowed_sizes():
    areas, ratios, corners = [], [], []
    image = gradient(400, 300)
    for seed in range(400):
        crop = random_resized_crop(image, np.random.default_rng(seed), 64)
        values = np.asarray(crop).astype(float)
        width = (values[:, -1, 0] - values[:, 0, 0]).mean() / 200 * 400 * 64 / 63
        height = (values[-1, :, 1] - values[0, :, 1]).mean() / 200 * 300 * 64 / 63
        areas.append(width * height / (400 * 300))
        ratios.append(width / height)
        corners.append((values[0, 0, 0], values[0, 0, 1]))
    assert 0.06 < min(areas) < 0.12
    assert 0.85 < max(areas) < 1.1
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.4
    assert np.ptp(corners, axis=0).min() > 100
    # Below the largest part that fits in either shape, areas are uniform.
    share = np.mean([area < 0.39 for area in areas])
    assert 0.27 < share < 0.45


def test_random_resized_crop_of_a_narrow_image_is_its_middle():
    crop = random_resized_crop(gradient(1000, 10), np.random.default_rng(0), 32)
    assert crop.size == (32, 32)
    assert abs(np.asarray(crop)[..., 0].mean() - 100) < 3


def test_mirror():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    seen = [
        np.asarray(random_mirror(image, np.random.default_rng(seed)))[0, 0, 0]
        for seed in range(200)
    ]
    assert set(seen) == {0, 3}
    assert 70 < seen.count(3) < 130


def test_jpeg_in_gray_becomes_coloured():
    @dataclass(frozen=True)
    class Gray(Numbers):
        def __getitem__(self, index):
            file = io.BytesIO()
            Image.new("L", (30, 30), 77).save(file, "JPEG")
            return file.getvalue(), 0

    gray = Stream(Gray(1), np.arange(1), num_classes=1, size=8)
    ((images, _),) = gray.test_batches(1, workers=0)
    assert images.shape == (1, 8, 8, 3)
    assert (images == 77).all()
