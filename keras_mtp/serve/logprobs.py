"""How likely the model found the tokens of a text, in the two shapes that OpenAI's API has for it."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_mtp import backend
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.export.served_model import ServedModel
from keras_mtp.generation.stream import UNFINISHED


class Place(NamedTuple):
    """A token, its log-probability in nats, None for a text's first, and the likeliest tokens there with theirs."""

    token: int
    logprob: float | None
    likeliest: list[tuple[int, float]]


def score(model: ServedModel, ids: Sequence[int], most: int) -> list[Place]:
    """Every token of a text, with the `most` likeliest of its place."""
    said = model.signatures["score"](token_ids=backend.tensorflow().constant([ids], "int32"))
    logprobs, likeliest, values = (
        said[name].numpy()[0] for name in ("logprobs", "likeliest", "likeliest_logprobs")
    )
    places = [Place(ids[0], None, [])]
    for at, token in enumerate(ids[1:]):
        best = zip(likeliest[at, :most].tolist(), values[at, :most].tolist(), strict=True)
        places.append(Place(token, float(logprobs[at]), list(best)))
    return places


def of_completion(places: Sequence[Place], tokenizer: Tokenizer, most: int) -> dict[str, Any]:
    """`logprobs` of a choice of /v1/completions."""
    texts = [spelled(place.token, tokenizer) for place in places]
    offsets = [0, *itertools.accumulate(map(len, texts))][: len(texts)]
    return {
        "tokens": texts,
        "token_logprobs": [place.logprob for place in places],
        "top_logprobs": [_named(place, tokenizer) for place in places] if most else None,
        "text_offset": offsets,
    }


def of_chat(places: Sequence[Place], tokenizer: Tokenizer) -> dict[str, Any]:
    """`logprobs` of a choice of /v1/chat/completions."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = _text_of(token, tokenizer)
        spelling = {"token": spelled(token, tokenizer), "logprob": logprob}
        return spelling | {"bytes": None if text is None else list(text.encode())}

    return {
        "content": [
            entry(place.token, place.logprob) | {"top_logprobs": [entry(*best) for best in place.likeliest]}
            for place in places
        ],
        "refusal": None,
    }


def _named(place: Place, tokenizer: Tokenizer) -> dict[str, float] | None:
    """By text; the token itself is always among them. None for a text's first."""
    if place.logprob is None:
        return None
    named: dict[str, float] = {spelled(place.token, tokenizer): place.logprob}
    for token, logprob in place.likeliest:
        if token != place.token:
            text = spelled(token, tokenizer)
            named[f"token_id:{token}" if text in named else text] = logprob
    return named


def spelled(token: int, tokenizer: Tokenizer) -> str:
    """A token's text; its entry in the vocabulary where its bytes are no text by themselves."""
    text = _text_of(token, tokenizer)
    return tokenizer.backend.id_to_token(token) or f"token_id:{token}" if text is None else text


def _text_of(token: int, tokenizer: Tokenizer) -> str | None:
    """None where its bytes are no text by themselves."""
    text = tokenizer.decode([token], skip_special=False, continues=True)
    return None if UNFINISHED in text or not text else text
