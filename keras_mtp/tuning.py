"""What is trained besides the heads: the methods that `tuning.method` names, one of them or several joined by `+`.

    prefix       vectors in front of the tokens' embeddings               prompt tuning, arXiv 2104.08691
    prefix_kv    keys and values in front of the tokens', in every block  prefix tuning, arXiv 2101.00190
    lora         low-rank changes of the trunk's matrices                 LoRA, arXiv 2106.09685
    full         every weight of the trunk
    heads        nothing: the heads alone learn

Here are the names and what goes with what; `layers/` has the weights, `models/tuned_weights.py` lists and switches them.
"""

import itertools

from keras_mtp.errors import UserError

METHODS = ("prefix", "prefix_kv", "lora", "full", "heads")
PREFIXES = {"prefix": "embeddings", "prefix_kv": "key_values"}  # `MTPCausalLM`'s `prefix_kind` for each
PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")  # a block's matrices
ALL_PROJECTIONS = "all"
# Learning rates to begin with, from short runs of SmolLM2-135M (recipes/gsm8k.toml).
RATES = {"prefix": 4e-3, "prefix_kv": 2e-2, "lora": 4e-3, "full": 4e-5}
FAR = 10  # times that rate, or a tenth of it

_APART = {
    ("prefix", "prefix_kv"): "both stand in the same places, in front of the text",
    ("lora", "full"): "full trains the matrices themselves",
    (
        "prefix",
        "full",
    ): "a prefix wants a learning rate a hundred times that of the trunk's weights, and there is one",
    (
        "prefix_kv",
        "full",
    ): "a prefix wants a learning rate a hundred times that of the trunk's weights, and there is one",
    **{(name, "heads"): "heads trains nothing else" for name in METHODS[:-1]},
}


def methods(text: str) -> tuple[str, ...]:
    """The methods in `tuning.method`, in the order of `METHODS`: `methods("lora+prefix")` is `("prefix", "lora")`.

    Raises:
        UserError: an unknown name, or two methods that do not go together.
    """
    names = _split("tuning.method", text, METHODS)
    for pair in itertools.combinations(names, 2):
        if pair in _APART:
            raise UserError(
                f"`tuning.method` must not join {pair[0]} and {pair[1]}: {_APART[pair]}. Received: "
                f"tuning.method={text!r:.80}. Choose one of them."
            )
    return names


def rate_note(names: tuple[str, ...], rate: float) -> str:
    """What to say of a learning rate that is far from those which are usual for these methods; "" of any other.

    >>> rate_note(("full",), 4e-3)
    'training.learning_rate=0.004 is far from what tuning.method=full usually learns with, some 4e-05.'
    """
    usual = [RATES[name] for name in names if name in RATES]
    if not usual or min(usual) / FAR < rate < max(usual) * FAR:
        return ""
    method, begin = "+".join(names), " to ".join(f"{value:g}" for value in sorted(set(usual)))
    return f"training.learning_rate={rate:g} is far from what tuning.method={method} usually learns with, some {begin}."


def projections(text: str) -> tuple[str, ...]:
    """The matrices in `tuning.lora_targets`, in the order of `PROJECTIONS`.

    Raises:
        UserError: an unknown name.
    """
    return PROJECTIONS if text == ALL_PROJECTIONS else _split("tuning.lora_targets", text, PROJECTIONS)


def _split(key: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if name not in known:
            raise UserError(
                f"`{key}` must be one or more of {', '.join(known)}, joined by `+`. Received: {key}={text!r:.80}."
            )
    return tuple(name for name in known if name in names)
