"""lm-eval's own Hugging Face model on the weights of a GGUF file: the reference for the scores of its tasks."""

from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from keras_mtp.data.tokenizer import Tokenizer


def hugging_face_lm(gguf_file: Path, tokenizer: Tokenizer, **options: Any) -> HFLM:
    """The file, read by transformers, behind lm-eval's interface.

    Args:
        tokenizer: ours, whose `tokenizers.Tokenizer` is used: transformers' reader of GGUF leaves out how SmolLM2 sets digits
            apart. Encoding and truncation are lm-eval's.
        options: of `HFLM`.
    """
    config = AutoConfig.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    model = LlamaForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, config=config, dtype=torch.float32
    )
    model.to("cpu").eval()
    model.generation_config.eos_token_id = list(tokenizer.eos_ids)
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    reference = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        chat_template=tokenizer.chat_template,
        **{name: tokenizer.backend.id_to_token(id) for name, id in names.items() if id is not None},
    )
    # torch's float32 log_softmax loses the smallest of SmolLM2's 49,152 probabilities: 5e-6 nats a token, always in one direction.
    return HFLM(pretrained=model, tokenizer=reference, backend="causal", softmax_dtype="float64", **options)
