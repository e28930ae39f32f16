import pytest

from keras_mtp import tuning
from keras_mtp.errors import UserError

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


def test_projections():
    assert tuning.projections("value+query") == ("query", "value")
    assert tuning.projections("all") == tuning.PROJECTIONS
    with pytest.raises(
        UserError, match=r"`tuning\.lora_targets` must be one or more of query, .*Received: .*q_proj"
    ):
        tuning.projections("q_proj")
