"""Text to token ids and back, by Hugging Face `tokenizers`: byte_level_bpe.py and sentencepiece.py set them up.

Special tokens are read in a text only where they are asked for: nobody can end a turn by writing its name.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import tokenizers

from keras_mtp.data.chat_template import compile_template
from keras_mtp.data.sentencepiece import without_prefix
from keras_mtp.errors import UserError

# Where llama.cpp stops whatever the file says, and what it then treats as special: the names that Llamas use.
END_TEXTS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "</s>"}
)


class Tokenizer:
    """A `tokenizers.Tokenizer` with the model's special tokens and chat template.

    Args:
        backend: `tokenizers.Tokenizer`. Its special tokens are marked `special=True`.
        eos_id: int. The token that ends an answer.
        eos_ids: every id at which generation stops; `eos_id` is always among them.
        bos_id: int or None. The token that begins a text.
        pad_id: int or None.
        unk_id: int or None.
        add_bos: bool. Whether the model expects `bos_id` in front of every text. `encode` leaves it out: the
            chat template often has it already.
        chat_template: str or None. Jinja2 text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        eos_ids: Sequence[int] = (),
        bos_id: int | None = None,
        pad_id: int | None = None,
        unk_id: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
    ) -> None:
        self.backend = backend
        self.eos_id = eos_id
        self.eos_ids = tuple(sorted({eos_id, *eos_ids}))
        self.bos_id = bos_id
        self.pad_id = pad_id
        self.unk_id = unk_id
        self.add_bos = add_bos
        self.chat_template = chat_template
        self._render = compile_template(chat_template) if chat_template is not None else None
        self._starting = backend, _blind_to_special(backend)

    @functools.cached_property
    def _continuing(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        continuing = without_prefix(self.backend)
        return continuing, _blind_to_special(continuing)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON has them, so that a saved model keeps its tokenizer."""
        return {
            "backend": self.backend.to_str(),
            "eos_id": self.eos_id,
            "eos_ids": list(self.eos_ids),
            "bos_id": self.bos_id,
            "pad_id": self.pad_id,
            "unk_id": self.unk_id,
            "add_bos": self.add_bos,
            "chat_template": self.chat_template,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The tokenizer that `get_config` described."""
        return cls(**{**config, "backend": tokenizers.Tokenizer.from_str(config["backend"])})

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, special tokens included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, *, special: bool = False, continues: bool = False) -> list[int]:
        """Token ids of a text; nothing is added in front or behind.

        Args:
            text: str.
            special: bool. True reads "<|im_end|>" and the like as the tokens they name. False, for text that
                others wrote, reads them as plain characters: nobody can end a turn by writing its name.
            continues: bool. Whether the text goes on where other text ended, as an answer after its prompt. Then
                SentencePiece's space in front of a text is left out; other tokenizers make no difference.
        """
        seeing, blind = self._continuing if continues else self._starting
        try:
            with refused_panics():
                return (seeing if special else blind).encode(text, add_special_tokens=False).ids
        except TypeError as error:  # half of a surrogate pair, as JSON may hold, has no UTF-8
            raise UserError(
                f"`text` must be valid Unicode. Received: {text!r:.60}. Mend the text."
            ) from error

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of some token ids. Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: list of int. skip_special: bool. Whether special tokens are left out.
            continues: bool. Whether other tokens stand before these. Then SentencePiece's space in front of the first is kept, as
                it is in front of every other; other tokenizers make no difference.
        """
        before, text_before = self._before if continues else ([], "")
        with refused_panics():
            return self.backend.decode([*before, *ids], skip_special_tokens=skip_special)[len(text_before) :]

    @functools.cached_property
    def _before(self) -> tuple[list[int], str]:
        """Some tokens to stand before others, and their text."""
        ids = self.encode("a")
        return ids, self.decode(ids)

    def with_template(self, source: str) -> "Tokenizer":
        """A copy that renders conversations by another chat template, Jinja2 text."""
        other = copy.copy(self)
        other.chat_template, other._render = source, compile_template(source)
        return other

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The conversation as the model was trained to see it; encode it with `special=True`.

        Args:
            messages: dicts with "role" ("system", "user" or "assistant") and "content".
            add_generation_prompt: bool. True ends with the opening of the assistant's turn.
        """
        if self._render is None:
            raise UserError("The model has no chat template. Use an instruct model, whose files hold one.")
        ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.unk_id}
        texts = {f"{name}_token": self.backend.id_to_token(i) for name, i in ids.items() if i is not None}
        return self._render(messages=messages, add_generation_prompt=add_generation_prompt, **texts)


@contextlib.contextmanager
def refused_panics() -> Iterator[None]:
    """Where its Rust code gives up, `tokenizers` raises what is no `Exception` and passes every handler: a `UserError` here.

    The commonest reason is a regular expression that goes back and forth for ever: after ten million steps it is stopped.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"The tokenizer must be able to read every text. Received: one that gives up ({error!s:.200}). Use another file."
        ) from error


def _blind_to_special(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy, since `encode_special_tokens` belongs to the object and not to a call."""
    blind = copy.deepcopy(backend)
    blind.encode_special_tokens = True
    return blind
