"""How much is computed at once: programs are made by these numbers, and the memory that they will take is predicted by them."""

# Logits of so many rows stay in a CPU's cache. An accelerator wants more at a time: each chunk waits for the one before.
CHUNK_ROWS, CHUNK_ROWS_ON_ACCELERATOR = 128, 1024
PREFILL = 64  # tokens of a prompt read in one pass
CHUNK = 128  # slots of a cache attended to together; a cache has a multiple of this
INT4_BLOCK = 32  # inputs of a matrix in int4 that share a scale and a zero point
AHEAD = 512  # new tokens for which a cache has room from the start, where so many are allowed
# A batch of answers is computed over a multiple of so many rows: no score depends on the batch size.
ROWS = 32
ADMITTED = 8  # rows whose answers have ended that are given the next prompts, which are read together


def answered_rows(batch_size: int) -> int:
    """Rows that a batch of so many prompts is filled up to."""
    return -(-batch_size // ROWS) * ROWS


def cache_slots(prefix_length: int, prompt_tokens: int, new_tokens: int, reach: int) -> int:
    """Slots that a cache has for a prefix, prompts of at most so many tokens, and answers to them.

    Args:
        reach: of the `Decoding`.
    """
    return slots_for(prefix_length + -(-prompt_tokens // PREFILL) * PREFILL + new_tokens + reach)


def slots_for(needed: int) -> int:
    """The next size of a cache: CHUNK times 1, 2, 3, 4, 6, 8, 12, ..., few enough to compile for each."""
    chunks = 1
    while chunks * CHUNK < needed:
        chunks += 2 ** chunks.bit_length() // 4 or 1  # half the largest power of two that is in it
    return chunks * CHUNK
