"""A tokenizer in Hugging Face's files, so that `AutoTokenizer.from_pretrained` reads it."""

import json
from pathlib import Path

from keras_mtp.data.tokenizer import Tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, what it leaves open, the chat template, and the tokens that end an answer.

    Args:
        folder: that is there.
    """
    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str(pretty=True), encoding="utf-8")
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    texts = {f"{name}_token": tokenizer.backend.id_to_token(i) for name, i in ids.items() if i is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": tokenizer.add_bos} | texts
    for name, content in (
        ("tokenizer_config.json", config),
        ("generation_config.json", {"eos_token_id": list(tokenizer.eos_ids)}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
