"""Random inputs: shapes, types, and the seed."""

import numpy as np

from onnxvitq.core.tensors import InputSpec
from onnxvitq.runtime.noise import random_feed


def test_random_feed_fills_in_unknown_sizes() -> None:
    specs = (
        InputSpec(name="image", dtype="float32", shape=(None, None, None, 32)),
        InputSpec(name="fixed", dtype="float64", shape=(1, 3, 16, 16)),
        InputSpec(name="mask", dtype="int64", shape=(None, 7)),
        InputSpec(name="flag", dtype="bool", shape=()),
    )
    feed = random_feed(specs, 5, 0)
    shapes = {name: values.shape for name, values in feed.items()}
    assert shapes == {"image": (5, 3, 224, 32), "fixed": (1, 3, 16, 16), "mask": (5, 7), "flag": ()}
    assert [values.dtype for values in feed.values()] == [np.float32, np.float64, np.int64, np.bool_]
    assert set(np.unique(feed["mask"])) <= {0, 1}


def test_random_feed_depends_on_the_seed_alone() -> None:
    spec = (InputSpec(name="x", dtype="float32", shape=(2, 3)),)
    assert np.array_equal(random_feed(spec, 1, 7)["x"], random_feed(spec, 9, 7)["x"])
    assert not np.array_equal(random_feed(spec, 1, 7)["x"], random_feed(spec, 1, 8)["x"])


def test_the_size_of_a_dynamic_side_can_be_chosen() -> None:
    spec = (InputSpec(name="x", dtype="float32", shape=(None, 3, None, None)),)
    assert random_feed(spec, 2, 0, side=8)["x"].shape == (2, 3, 8, 8)
