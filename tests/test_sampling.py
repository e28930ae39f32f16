import numpy as np
import pytest
from keras import ops

from keras_mtp.generation.sampling import Sampling

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], "float32")


def _law(temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """By sorting, in float64."""
    p = np.exp(LOGITS.astype("float64") / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    kept = np.cumsum(p[order]) - p[order] < top_p  # as long as those before are not enough
    p[order[~kept]] = 0
    return p / p.sum()


CASES = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.7},
    {"temperature": 2.0, "top_k": 5, "top_p": 0.9},
]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_law(case):
    weights = ops.convert_to_numpy(Sampling(**({"temperature": 1.0} | case)).weights(LOGITS[None]))[0]
    np.testing.assert_allclose(weights / weights.sum(), _law(**case), atol=1e-6)


def _chi_square(counts: np.ndarray, law: np.ndarray) -> float:
    expected = counts.sum() * law[law > 0]
    assert counts[law == 0].sum() == 0
    return float(((counts[law > 0] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("draws", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_law(case, draws):
    sampling = Sampling(**({"temperature": 1.0, "seed": 3} | case))
    drawn = []
    for row in range(10):  # as rows of a batch draw, each from its own stream
        uniforms = ops.convert_to_tensor(sampling.uniforms(row, draws // 10)[None])
        logits = np.broadcast_to(LOGITS, (1, draws // 10, len(LOGITS)))
        drawn.append(ops.convert_to_numpy(sampling.choose(ops.convert_to_tensor(logits), uniforms))[0])
    law = _law(**case)
    # 99.9 % of chi-square with one degree of freedom less than there are tokens to draw.
    limit = {2: 10.83, 3: 13.82, 4: 16.27, 5: 18.47, 6: 20.52}[int((law > 0).sum())]
    assert _chi_square(np.bincount(np.concatenate(drawn), minlength=6), law) < limit


def test_the_same_numbers_whatever_is_asked_for_at_once():
    sampling = Sampling(temperature=1.0, seed=1)
    few, many = sampling.uniforms(2, 5), sampling.uniforms(2, 5000)
    np.testing.assert_array_equal(few, many[:5])
    assert many.min() > 0 and many.max() < 1
    assert not np.array_equal(few, sampling.uniforms(3, 5))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}]
)
def test_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        Sampling(**wrong)
