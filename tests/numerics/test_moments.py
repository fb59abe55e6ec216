import numpy as np
import pytest

from onnxvitq.numerics.moments import CHUNK, Moments, add, centred, empty, merge, output_error


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    x.setflags(write=False)
    return x


def case(rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (N, 5), correlated and off zero, targets (N, 3), weights (N,) of 0 to 32."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, 5)) @ rng.standard_normal((5, 5)) + 3
    t = a @ rng.standard_normal((5, 3)) + rng.standard_normal((rows, 3)) - 2
    return read_only(a), read_only(t), read_only(rng.choice([0.0, 0.5, 1.0, 32.0], rows))


def same(left: Moments, right: Moments) -> None:
    for name in ("gram", "cross", "sum_a", "sum_t", "t2", "mass"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=1e-12, atol=1e-12)


def test_moments_worked() -> None:
    a, t = read_only(np.array([[1, 2], [3, 0]])), read_only(np.array([[1], [-1]]))
    moments = add(empty(2, 1), a, t, read_only(np.array([1, 4])))
    assert moments.gram.tolist() == pytest.approx(np.array([[37, 2], [2, 4]]))
    assert moments.cross.tolist() == pytest.approx(np.array([[-11], [2]]))
    assert moments.sum_a.tolist() == pytest.approx([13, 2])
    assert (moments.sum_t[0], moments.t2[0], moments.mass) == pytest.approx((-3, 5, 5))


def test_batches_and_merge_are_the_whole() -> None:
    a, t, w = case(CHUNK + 100)
    whole = add(empty(5, 3), a, t, w)
    batches = add(add(empty(5, 3), a[:700], t[:700], w[:700]), a[700:], t[700:], w[700:])
    same(whole, batches)
    same(whole, merge(add(empty(5, 3), a[:9], t[:9], w[:9]), add(empty(5, 3), a[9:], t[9:], w[9:])))
    same(whole, merge(whole, empty(5, 3)))
    assert (whole.gram == whole.gram.T).all()


def test_add_leaves_its_argument() -> None:
    a, t, w = case()
    first = add(empty(5, 3), a, t, w)
    before = first.gram.copy()
    add(first, a, t, w)
    assert (first.gram == before).all()
    with pytest.raises(ValueError, match="read-only"):
        first.gram[0, 0] = 0


def test_a_weight_is_a_repetition() -> None:
    a, t, _ = case()
    twice = add(empty(5, 3), np.concatenate([a, a]), np.concatenate([t, t]), np.ones(120, np.float32))
    same(twice, add(empty(5, 3), a, t, np.full(60, 2, np.float32)))


def test_centred_is_about_the_weighted_means() -> None:
    a, t, w = case()
    about = centred(add(empty(5, 3), a, t, w))
    mean_a, mean_t = np.average(a, axis=0, weights=w), np.average(t, axis=0, weights=w)
    np.testing.assert_allclose(about.mean_a, mean_a, rtol=1e-6)  # numpy averages in float32 here
    np.testing.assert_allclose(about.gram, (w[:, None] * (a - mean_a)).T @ (a - mean_a), rtol=1e-4)
    np.testing.assert_allclose(about.cross, (w[:, None] * (a - mean_a)).T @ (t - mean_t), rtol=1e-4)


def test_centred_has_no_noise_where_an_input_never_varies() -> None:
    a, t, w = case()
    a = np.concatenate([a, np.full((60, 1), 1000.1, np.float32), np.zeros((60, 1), np.float32)], axis=1)
    about = centred(add(empty(7, 3), a, t, w))
    assert not about.gram[5:].any()
    assert not about.gram[:, 5:].any()
    assert not about.cross[5:].any()
    assert about.gram.diagonal()[:5].all()


@pytest.mark.parametrize("noise", [1.0, 1e-3], ids=["0 dB", "60 dB"])
def test_output_error_is_the_direct_sum(noise: float) -> None:
    a, _, w = case(5000)
    rng = np.random.default_rng(1)
    weight, bias = read_only(rng.standard_normal((5, 3))), read_only(rng.standard_normal(3))
    t = read_only(a.astype(np.float64) @ weight + bias + noise * rng.standard_normal((5000, 3)))
    direct = (w[:, None] * (a.astype(np.float64) @ weight + bias - t) ** 2).sum(axis=0)
    moments = add(empty(5, 3), a, t, w)
    found = output_error(moments, weight, bias)
    assert found.dtype == np.float64
    # The expanded square loses digits in proportion to what cancels, the targets' own square.
    np.testing.assert_allclose(found, direct, rtol=1e-12, atol=1e-14 * moments.t2.max())
    both = output_error(moments, weight, np.stack([bias, bias + 1]))
    assert np.array_equal(both, [found, output_error(moments, weight, bias + 1)])
    assert (both[0] < both[1]).all()


def test_output_error_of_the_layer_itself_is_nothing() -> None:
    a, _, w = case()
    weight = np.eye(5, 3, dtype=np.float32)
    bias = np.full(3, 4, np.float32)
    moments = add(empty(5, 3), a, a[:, :3] + 4, w)
    assert (output_error(moments, weight, bias) <= 1e-12 * moments.t2).all()  # the sum a + 4 was rounded to float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((60, 4), np.float32)}, "expected rows"),
        ({"t": np.zeros((59, 3), np.float32)}, "expected rows"),
        ({"w": np.zeros((60, 1), np.float32)}, "expected rows"),
        ({"w": np.full(60, -1, np.float32)}, "negative"),
        ({"a": np.full((60, 5), np.nan, np.float32)}, "not finite"),
        ({"t": np.full((60, 3), np.nan, np.float32)}, "not finite"),
        ({"w": np.full(60, np.nan, np.float32)}, "not finite"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    a, t, w = case()
    with pytest.raises(ValueError, match=message):
        add(empty(5, 3), **{"a": a, "t": t, "w": w} | change)


def test_shapes_and_emptiness_are_checked() -> None:
    with pytest.raises(ValueError, match="no row has weight"):
        centred(empty(5, 3))
    with pytest.raises(ValueError, match="different layers"):
        merge(empty(5, 3), empty(5, 2))
    with pytest.raises(ValueError, match="expected a layer"):
        output_error(empty(5, 3), np.zeros((3, 5), np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="got gram"):
        Moments(gram=np.eye(3), cross=np.eye(2), sum_a=np.ones(2), sum_t=np.ones(2), t2=np.ones(2), mass=1.0, rows=3)
