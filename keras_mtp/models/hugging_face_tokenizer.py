"""The tokenizer of a Hugging Face folder: `tokenizer.json` as it is, and what the files around it say about it.

    tokenizer.json           how text becomes ids, all of it
    tokenizer_config.json    which tokens begin and end a text; the chat template (special_tokens_map.json: older)
    chat_template.jinja      the chat template, since transformers 4.50
    generation_config.json   every token at which generation stops

Reference: transformers, `tokenization_utils_base.py` and `tokenization_utils_tokenizers.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from keras_mtp.data.tokenizer import Tokenizer, refused_panics
from keras_mtp.models.json_file import Settings, read_json, read_text
from keras_mtp.models.tokenizer_parts import check_parts, check_text

TOKENIZER, CONFIG, SPECIAL_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
FILES = (TOKENIZER, CONFIG, SPECIAL_MAP, GENERATION, TEMPLATE)
_TEMPLATE_BYTES = 1 << 20
_TOKENIZER_BYTES = 64 << 20  # Llama 3's has 17 MB, the largest that is known 33
_ADVICE = "Use the files that came with the model, or save them again with transformers' `save_pretrained`."


def read_tokenizer(folder: Path, model_config: Mapping[str, Any], vocabulary_size: int) -> Tokenizer:
    """Builds a folder's tokenizer.

    Args:
        folder: where the files lie.
        model_config: the model's `config.json`, which may name end tokens as well.
        vocabulary_size: of the model; no id may reach it.

    Raises:
        UserError: a file is missing or damaged, or they contradict one another.
    """
    config = Settings(_optional(folder / CONFIG), f"{folder.name}/{CONFIG}", _ADVICE)
    backend = _backend(folder, config, vocabulary_size)
    texts = _special_texts(folder, config)
    ids = {name: _token_id(backend, config, name, text) for name, text in texts.items()}
    _mark_special(backend, texts.values())
    ends = [*_end_ids(folder / GENERATION), *_as_list(model_config.get("eos_token_id"))]
    eos_ids = [end for end in ends if type(end) is int and 0 <= end < vocabulary_size]
    if len(eos_ids) != len(ends):
        config.refuse(f"`eos_token_id` in {GENERATION} or config.json is {ends}, which are not all tokens")
    eos_id = ids.get("eos", next(iter(eos_ids), None))
    if eos_id is None:
        config.refuse("no file says which token ends a text (`eos_token`)")
    bos_id = ids.get("bos")
    return Tokenizer(
        backend,
        eos_id=eos_id,
        eos_ids=eos_ids,
        bos_id=bos_id,
        pad_id=ids.get("pad"),
        unk_id=ids.get("unk"),
        add_bos=bos_id is not None and config.get("add_bos_token", bool, _begins_with(backend, bos_id)),
        chat_template=_chat_template(folder, config),
    )


def _backend(folder: Path, config: Settings, vocabulary_size: int) -> tokenizers.Tokenizer:
    path = folder / TOKENIZER
    if not path.is_file():
        config.refuse(
            f"{folder.name} has no {TOKENIZER}"
            + (
                ", only tokenizer.model, which does not say all"
                if (folder / "tokenizer.model").exists()
                else ""
            )
        )
    text = read_text(path, limit_bytes=_TOKENIZER_BYTES)
    check_text(text, f"{folder.name}/{TOKENIZER}", config.refuse)
    try:
        with refused_panics():
            backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # which is all that tokenizers raises
        config.refuse(f"{folder.name}/{TOKENIZER} is not a tokenizer: {error!s:.200}")
    # What a training script left in the file; it would shorten or pad every text in silence.
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        config.refuse(f"{folder.name}/{TOKENIZER} drops merges at random (`dropout`)")
    check_parts(backend, config.refuse)
    ids = backend.get_vocab().values()
    if (highest := max(ids, default=-1)) >= vocabulary_size:
        config.refuse(
            f"{TOKENIZER} has the id {highest}, but the model's vocabulary ends at {vocabulary_size - 1}"
        )
    if len(set(ids)) < len(ids):
        config.refuse(f"two tokens of {TOKENIZER} have one id")
    _check_added(backend, config)
    return backend


def _check_added(backend: tokenizers.Tokenizer, config: Settings) -> None:
    """The two files list the added tokens each; where they differ, it is open which one the model saw."""
    for index, token in config.get("added_tokens_decoder", dict, {}).items():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or str(backend.token_to_id(content)) != index:
            config.refuse(f"`added_tokens_decoder` has {content!r:.40} as {index:.20}, {TOKENIZER} has not")


def _special_texts(folder: Path, config: Settings) -> dict[str, str]:
    """The texts of the tokens that have a role: {"bos": "<s>", ...}."""
    older = _optional(folder / SPECIAL_MAP)
    texts = {}
    for name in ("bos", "eos", "pad", "unk"):
        key = f"{name}_token"
        token = config.values.get(key) or older.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and not isinstance(text, str):
            config.refuse(f"`{key}` must be a token's text, but is {token!r:.60}")
        if text is not None:
            texts[name] = text
    return texts


def _token_id(backend: tokenizers.Tokenizer, config: Settings, name: str, text: str) -> int:
    index = backend.token_to_id(text)
    if index is None:
        config.refuse(f"`{name}_token` is {text!r:.40}, which {TOKENIZER} does not have")
    return index


def _mark_special(backend: tokenizers.Tokenizer, texts: Any) -> None:
    """A token with a role is special even where `tokenizer.json` forgot to say so, as in transformers."""
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in texts if text not in marked]
    )


def _begins_with(backend: tokenizers.Tokenizer, bos_id: int) -> bool:
    with refused_panics():
        return backend.encode("a", add_special_tokens=True).ids[:1] == [bos_id]


def _end_ids(path: Path) -> list[Any]:
    return _as_list(_optional(path).get("eos_token_id"))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _chat_template(folder: Path, config: Settings) -> str | None:
    if (path := folder / TEMPLATE).is_file():
        return read_text(path, limit_bytes=_TEMPLATE_BYTES)
    template = config.values.get("chat_template")
    if isinstance(template, list):  # several by name, of which "default" is the chat's
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if template is not None and not isinstance(template, str):
        config.refuse(f"`chat_template` must be a text, but is {template!r:.40}")
    return template


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
