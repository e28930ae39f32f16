"""Python for a page: how a prompt becomes token ids, as the model was trained to read it."""

from keras_mtp.data.tokenizer import Tokenizer

_CHAT = """question = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many has he now?"}]
ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)"""
_TEXT = 'ids = tokenizer.encode("Tom has 3 apples and")'


def prompt_code(tokenizer: Tokenizer) -> str:
    """Lines that make `ids` with transformers' `tokenizer`: of a chat, where the tokenizer has a template for it."""
    return _TEXT if tokenizer.chat_template is None else _CHAT
