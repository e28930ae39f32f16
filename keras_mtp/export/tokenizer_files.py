"""A tokenizer in Hugging Face's files, so that `AutoTokenizer.from_pretrained` reads it and gives the ids of training."""

import json
from pathlib import Path

import tokenizers
from tokenizers import processors

from keras_mtp.data.encoding import encode_raw
from keras_mtp.data.tokenizer import Tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, what it leaves open, the chat template, and the tokens that end an answer.

    Args:
        folder: that is there.
    """
    (folder / "tokenizer.json").write_text(_with_bos(tokenizer).to_str(pretty=True), encoding="utf-8")
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    texts = {f"{name}_token": tokenizer.backend.id_to_token(i) for name, i in ids.items() if i is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": tokenizer.add_bos} | texts
    for name, content in (
        ("tokenizer_config.json", config),
        ("generation_config.json", {"eos_token_id": list(tokenizer.eos_ids)}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if tokenizer.chat_template is not None:
        template = _template(tokenizer.chat_template, tokenizer)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _with_bos(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The backend, which puts bos in front of a text if the model expects it, else not.

    transformers 5.23 does not look at `add_bos_token` (test_tokenizer_files.py::test_upstream_still_ignores_add_bos_token).
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    if backend.encode("a").ids == encode_raw("a", tokenizer):
        return backend
    first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    texts = [backend.id_to_token(index) for index in first]
    backend.post_processor = processors.TemplateProcessing(
        single=[*texts, "$A"], pair=[*texts, "$A", "$B"], special_tokens=[*zip(texts, first, strict=True)]
    )
    return backend


def _template(template: str, tokenizer: Tokenizer) -> str:
    """The chat template, which begins with bos if the model expects it: transformers puts nothing in front of a chat."""
    chat = tokenizer.render_chat([{"role": "user", "content": "a"}], add_generation_prompt=True)
    begins = tokenizer.encode(chat, special=True)[:1] == [tokenizer.bos_id]
    return template if begins or not tokenizer.add_bos else "{{ bos_token }}" + template
