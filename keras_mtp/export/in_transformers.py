"""Reads an export with transformers, and PEFT, and answers what `another_program.py` asks. A program of its own.

python -m keras_mtp.export.in_transformers questions.npz answers.npz TOKENIZER MODEL [ADAPTER]
"""

import sys

import numpy as np

from keras_mtp import backend


def main(questions: str, answers: str, tokenizer: str, model: str, adapter: str = "") -> None:
    """Answers in NumPy's file `answers`.

    Args:
        questions: .npz with `texts`, `token_ids/...`, and the `dtype` to load the model in.
        tokenizer, model, adapter: folders; the last for PEFT, if there is one.
    """
    with np.load(questions) as file:
        asked = {name: file[name] for name in file.files}
    said = _token_ids(tokenizer, asked["texts"]) | _logits(model, adapter, asked)
    np.savez(answers, allow_pickle=False, **said)


def _token_ids(folder: str, texts: np.ndarray) -> dict[str, np.ndarray]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = {f"plain/{place}": tokenizer.encode(text) for place, text in enumerate(texts.tolist())}
    if tokenizer.chat_template is not None:
        for place, text in enumerate(texts.tolist()):
            turns = [{"role": "user", "content": text}]
            said[f"chat/{place}"] = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_dict=False
            )
    return {name: np.array(ids) for name, ids in said.items()}


def _logits(folder: str, adapter: str, asked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from transformers import AutoModelForCausalLM

    torch = backend.torch()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=str(asked["dtype"]))
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    said = {}
    with torch.no_grad():
        for name, ids in asked.items():
            kind, _, which = name.partition("/")
            if kind == "token_ids":
                logits = model(input_ids=torch.tensor(ids, dtype=torch.long)).logits
                said[f"logits/{which}"] = logits[:, -ids.shape[1] :].float().numpy()  # behind a prefix
    return said


if __name__ == "__main__":
    main(*sys.argv[1:])
