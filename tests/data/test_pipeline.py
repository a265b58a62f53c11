"""Batches are pure functions of (seed, step), whatever reads them."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.data import Augment, batches, eval_batches, from_arrays
from sinewich_jax.data.pipeline import example_rng
from sinewich_jax.errors import ConfigError, DataError

N = 11


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (N, 12, 10, 3), dtype=np.uint8)
    image[:, 5, 5, 0] = np.arange(N)  # the example's number
    return from_arrays(
        {
            "image": image,
            "semseg": rng.integers(0, 5, (N, 12, 10), dtype=np.uint8),
            "depth": rng.uniform(1, 3, (N, 12, 10)).astype(np.float32),
        }
    )


def equal(a: dict, b: dict) -> bool:
    def leaves(batch):
        return [batch["image"], batch["index"], *batch["labels"].values(), *batch["valid"].values()]

    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


AUGMENT = Augment(flip=True, scale=(0.8, 1.3), rotate=15)


@pytest.mark.parametrize("threads", [0, 2])
def test_resuming_equals_never_stopping(source, threads):
    stream = batches(source, batch_size=4, seed=3, augment=AUGMENT)
    whole = list(stream.iterate(0, 10, threads=threads, prefetch=3))
    assert len(whole) == 10
    fresh = batches(source, batch_size=4, seed=3, augment=AUGMENT)
    assert equal(fresh.batch_at(7), whole[7])
    resumed = list(fresh.iterate(6, 10, threads=threads))
    assert all(equal(a, b) for a, b in zip(resumed, whole[6:], strict=True))


def test_batch_has_the_stated_form(source):
    batch = batches(source, ("depth", "semseg"), batch_size=4).batch_at(2)
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (4, 12, 10, 3)
    assert list(batch["labels"]) == ["depth", "semseg"] == list(batch["valid"])
    assert batch["labels"]["depth"].dtype == np.float32
    assert batch["valid"]["semseg"].dtype == bool
    assert batch["index"].dtype == np.int32 and batch["index"].tolist() == [8, 9, 10, 11]


def numbers(batch: dict) -> list[int]:
    return batch["image"][:, 5, 5, 0].tolist()


def test_each_epoch_is_another_permutation(source):
    stream = batches(source, batch_size=1, seed=5)
    epochs = [[numbers(stream.batch_at(e * N + i))[0] for i in range(N)] for e in range(4)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = [numbers(batches(source, batch_size=1, seed=6).batch_at(i))[0] for i in range(N)]
    assert other != epochs[0]


def test_the_stream_does_not_depend_on_the_batch_size(source):
    whole = batches(source, batch_size=6, seed=1, augment=AUGMENT).batch_at(1)
    part = batches(source, batch_size=2, seed=1, augment=AUGMENT).batch_at(4)
    np.testing.assert_array_equal(whole["image"][2:4], part["image"])
    np.testing.assert_array_equal(whole["index"][2:4], part["index"])


def test_processes_read_slices_of_one_global_batch(source):
    whole = batches(source, batch_size=6, seed=1, augment=AUGMENT).batch_at(3)
    for local in (slice(0, 2), slice(2, 6), slice(4, 6)):
        part = batches(source, batch_size=6, seed=1, augment=AUGMENT, local=local).batch_at(3)
        np.testing.assert_array_equal(part["image"], whole["image"][local])
        np.testing.assert_array_equal(part["index"], whole["index"][local])
        np.testing.assert_array_equal(part["labels"]["depth"], whole["labels"]["depth"][local])


def test_without_shuffling_the_order_is_the_sources(source):
    stream = batches(source, batch_size=4, shuffle=False)
    assert numbers(stream.batch_at(0)) + numbers(stream.batch_at(1)) == list(range(8))
    assert numbers(stream.batch_at(2)) == [8, 9, 10, 0]
    assert stream.source_index(12) == 1


def test_evaluation_sees_every_example_once_and_pads(source):
    stream = eval_batches(source, 4)
    assert stream.steps == 3
    got = list(stream)
    assert [n for batch in got for n in numbers(batch)][:N] == list(range(N))
    last = got[-1]
    assert last["image"].shape == (4, 12, 10, 3)
    for task in source.tasks:
        assert last["valid"][task][:3].all() and not last["valid"][task][3].any()
        assert sum(batch["valid"][task].sum() for batch in got) == N * 120
    assert stream.source_index(N) is None
    threaded = list(eval_batches(source, 4).iterate(threads=2))
    assert all(equal(a, b) for a, b in zip(threaded, got, strict=True))
    with pytest.raises(DataError, match="no batch 3, expected a step from 0 to 2"):
        stream.batch_at(3)


def test_generators_of_positions_differ_and_repeat():
    draws = {tuple(example_rng(s, p).random(3)) for s in (0, 1) for p in (0, 1, 2**40)}
    assert len(draws) == 6
    np.testing.assert_array_equal(example_rng(4, 9).random(5), example_rng(4, 9).random(5))


def test_a_task_without_labels_is_refused(source):
    with pytest.raises(DataError, match=r"'normals' has no labels.*semseg, depth"):
        batches(source, ("semseg", "normals"))


def test_examples_of_different_sizes_are_refused():
    class Ragged:
        tasks, size, channels, class_names = (), None, {}, {}

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": np.zeros((4 + index, 5, 3), np.uint8), "labels": {}, "valid": {}}

    with pytest.raises(DataError, match="4 x 5, 5 x 5"):
        batches(Ragged(), batch_size=2).batch_at(0)
    cropped = batches(Ragged(), batch_size=2, augment=Augment(crop=(4, 4))).batch_at(0)
    assert cropped["image"].shape == (2, 4, 4, 3)


@pytest.mark.parametrize("threads", [0, 1])
def test_an_error_in_reading_reaches_the_reader(threads):
    class Broken:
        tasks, size, channels, class_names = (), (4, 4), {}, {}

        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise DataError("photo.jpg is damaged")

    with pytest.raises(DataError, match=r"photo\.jpg is damaged"):
        next(iter(batches(Broken()).iterate(threads=threads)))


@pytest.mark.parametrize(
    ("bad", "word"), [({"batch_size": 0}, "batch_size"), ({"seed": -1}, "seed")]
)
def test_impossible_settings_are_refused(source, bad, word):
    with pytest.raises(ConfigError, match=word):
        batches(source, **bad)
