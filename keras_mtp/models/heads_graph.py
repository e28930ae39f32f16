"""The functional graph of an `MTPCausalLM`: from token ids to what every head gives."""

from collections.abc import Sequence
from functools import partial

from keras_mtp.layers.mtp_head import MTPHead, next_embeddings, tokens_ahead
from keras_mtp.layers.prefix_embedding import PrefixEmbedding
from keras_mtp.layers.prefix_key_values import PrefixedBlock, PrefixKeyValues
from keras_mtp.layers.untrained import Untrained


def heads_graph(backbone, prefix, heads: Sequence[MTPHead], token_ids, view: str) -> dict:
    """The picture at the top of mtp_causal_lm.py, as code."""

    def readout(state, norm, unembedding):
        state = norm(state[:, in_front:])
        return state if view == "hidden_states" else unembedding(state, reverse=True)

    embeds = isinstance(prefix, PrefixEmbedding)
    in_front = prefix.length if embeds else 0  # states of the prefix, which predicts nothing
    x = backbone.token_embedding(token_ids)
    if embeds:
        x = prefix(x)
    states = _trunk(backbone, x, None if embeds else prefix)
    outputs = {"head_1": readout(states["last_block"], backbone.layer_norm, backbone.token_embedding)}
    for k, head in enumerate(heads, start=2):
        shared = Untrained(backbone.layer_norm), Untrained(backbone.token_embedding)
        seen = [states[head.reads]]
        if head.reads_tokens:
            ahead = tokens_ahead(token_ids, k - 1)
            seen.append(next_embeddings(backbone.token_embedding, ahead, in_front))
        if prefix is None or embeds:
            state = head(*seen)
        else:
            state = head.advance(
                seen[0], partial(_applied, prefix, len(backbone.transformer_layers) - 1), *seen[1:]
            )
        outputs[f"head_{k}"] = readout(state, *shared)
    return outputs


def _trunk(backbone, x, key_values: PrefixKeyValues | None) -> dict:
    """The states that heads may read: each (B, T, D), or (B, P + T, D) where the prefix is embeddings."""
    *blocks, last_block = backbone.transformer_layers
    for place, block in enumerate(blocks):
        x = _applied(key_values, place, block, x)
    return {"before_last_block": x, "last_block": _applied(key_values, len(blocks), last_block, x)}


def _applied(key_values: PrefixKeyValues | None, place: int, block, x):
    """A block, behind the keys and values of a place if there are any."""
    return block(x) if key_values is None else PrefixedBlock(block, key_values, place)(x)
