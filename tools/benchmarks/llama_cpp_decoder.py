"""llama.cpp through the C functions of `llama-cpp-python`, whose own `Llama` takes one prompt at a time."""

import time
from collections.abc import Sequence

import numpy as np

from tools.benchmarks.decoded import Decoded, Prompts


class LlamaCpp:
    """A model in llama.cpp, with a context for the latest number and length of prompts.

    Args:
        path: of the GGUF file. dtype: keys and values are kept in float32 for "float32", else as llama.cpp does it.
        new_tokens: per row, after the one that reading gives. threads: to compute with.
    """

    def __init__(self, path: str, dtype: str, new_tokens: int, threads: int):
        import llama_cpp

        self.api = llama_cpp
        self.new_tokens, self.threads = new_tokens, threads
        self.cache_type = llama_cpp.GGML_TYPE_F32 if dtype == "float32" else llama_cpp.GGML_TYPE_F16
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.shape, self.context = None, None
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def decode(self, prompts: Prompts, mode: str) -> Decoded:
        """Reads the prompts one after the other, then makes a pass per token for all rows."""
        context = self._context(len(prompts), len(prompts[0]))
        begun = time.perf_counter()
        tokens = [self._read(context, row, prompt) for row, prompt in enumerate(prompts)]
        first = time.perf_counter()
        first_row = [tokens[0]]
        for i in range(self.new_tokens):
            tokens = self._pass(context, tokens, len(prompts[0]) + i)
            first_row.append(tokens[0])
        ended = time.perf_counter()
        return Decoded(
            tokens=self.new_tokens * len(prompts),
            passes=self.new_tokens,
            seconds=ended - first,
            prefill_seconds=first - begun,
            first_row=first_row,
        )

    def _context(self, rows: int, length: int):
        """An empty one; the last is used again if it fits, since its first pass takes its memory."""
        if (rows, length) != self.shape:
            if self.context:
                self.api.llama_free(self.context)
            self.shape, self.context = (rows, length), self._new_context(rows, length)
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        return self.context

    def _new_context(self, rows: int, length: int):
        settings = self.api.llama_context_default_params()
        settings.n_ctx = rows * -(-(length + self.new_tokens + 1) // 256) * 256  # shared evenly by the rows
        settings.n_batch = max(length, rows)
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.type_k = settings.type_v = self.cache_type
        context = self.api.llama_init_from_model(self.model, settings)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context; its reason stands above")
        return context

    def _read(self, context, row: int, prompt: Sequence[int]) -> int:
        self._decode(context, [(token, i, row) for i, token in enumerate(prompt)], only_last=True)
        return self._best(context, len(prompt) - 1)

    def _pass(self, context, tokens: Sequence[int], position: int) -> list[int]:
        self._decode(context, [(token, position, row) for row, token in enumerate(tokens)], only_last=False)
        return [self._best(context, row) for row in range(len(tokens))]

    def _decode(self, context, entries: Sequence[tuple[int, int, int]], *, only_last: bool) -> None:
        """One pass over (token, position, row)."""
        batch = self.api.llama_batch_init(len(entries), 0, 1)
        for i, (token, position, row) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = not only_last or i == len(entries) - 1
        batch.n_tokens = len(entries)
        status = self.api.llama_decode(context, batch)
        self.api.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode failed with {status}")

    def _best(self, context, index: int) -> int:
        logits = self.api.llama_get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary_size,)).argmax())
