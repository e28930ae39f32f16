import pytest

from keras_mtp import tuning
from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe, apply_overrides

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prefix", ("prefix",)),
        ("lora+prefix", ("prefix", "lora")),
        ("prefix_kv + lora", ("prefix_kv", "lora")),
        ("full", ("full",)),
    ],
)
def test_methods_come_in_one_order(text, names):
    assert tuning.methods(text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lorra", "must be one or more of prefix, prefix_kv, lora, full, heads, joined by"),
        ("", "must be one or more of"),
        ("prefix,lora", "must be one or more of"),
        ("prefix+prefix_kv", "must not join prefix and prefix_kv: both stand in the same places"),
        ("lora+full", "must not join lora and full: full trains the matrices themselves"),
        ("full+prefix", "must not join prefix and full: a prefix wants a learning rate"),
        ("full+prefix_kv", "must not join prefix_kv and full"),
        ("heads+lora", "must not join lora and heads: heads trains nothing else"),
    ],
)
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(UserError, match=r"`tuning\.method` " + message):
        tuning.methods(text)


@pytest.mark.parametrize(
    ("names", "rate", "begin"),
    [
        (("full",), 4e-3, "4e-05"),
        (("full",), 1e-4, ""),
        (("prefix",), 4e-3, ""),
        (("prefix",), 4e-5, "0.004"),
        (("prefix", "lora"), 1.0, "0.004"),
        (("prefix_kv", "lora"), 1.0, "0.004 to 0.02"),
        (("prefix_kv", "lora"), 2e-2, ""),
        (("heads",), 1.0, ""),
    ],
)
def test_a_rate_far_from_the_usual_ones_is_noted(names, rate, begin):
    note = tuning.rate_note(names, rate)
    assert note.endswith(f"learns with, some {begin}.") if begin else note == ""


def test_no_rate_is_far_where_the_heads_learn_alone():
    far = ["training.learning_rate=5"]
    assert apply_overrides(Recipe(), far).rate_note
    assert not apply_overrides(
        Recipe(), [*far, "tuning.method=heads", "heads.count=1", "heads.freeze=false"]
    ).rate_note


def test_projections():
    assert tuning.projections("value+query") == ("query", "value")
    assert tuning.projections("all") == tuning.PROJECTIONS
    with pytest.raises(
        UserError, match=r"`tuning\.lora_targets` must be one or more of query, .*Received: .*q_proj"
    ):
        tuning.projections("q_proj")
