"""What training and held-out evaluation run: hidden states of every head, with what all rows share computed once.

    token_ids (B, T)    every row begins with the same S tokens (the chat template's opening)
    packed (1, N, D)    [ prefix | S tokens ] [ row 1's own | row 2's own | ... ]     N = P + S + B * (T - S)

Under a causal mask the states of the prefix and of those S tokens are the same in every row, so a batch needs them once.
Everything but attention sees one long row, which also makes matrix products large. In attention, a row's own positions
look at the shared keys and at its own.

Where the prefix is keys and values it has no states: P is 0 in these counts, and its keys and values stand before the shared
ones. Heads look at those of the last block.

A head that also sees the token before its target sees, at the last of the S tokens, one that is a row's own: with such a
head as `head_k`, k - 1 tokens fewer are shared.
"""

from functools import partial

import keras
from keras import ops

from keras_mtp import backend, distribution
from keras_mtp.layers.block import BlockWeights, Rotation, grouped_attention, run_block
from keras_mtp.layers.mtp_head import next_embeddings, tokens_ahead
from keras_mtp.layers.untrained import Untrained
from keras_mtp.quantised import embedded, is_quantised


class TrainingView(keras.Model):
    """The layers of an `MTPCausalLM`, applied to a batch whose rows begin alike.

    Args:
        model: the `MTPCausalLM`. Its layers are shared, not copied.
        shared_tokens: int. S: every row of every batch must begin with the same S tokens. 0 is always right.
        only_heads: leave `head_1` out, as when the heads are warmed up.
        detach: cut the gradient between the heads and the trunk, so that the heads learn but do not teach.
        remat: compute a block's inside again in the backward pass instead of keeping it (rematerialisation).
        fused: fuse the elementwise work of the blocks, see `backend.fused`; for views that are run many times.

    Call arguments:
        token_ids: int tensor (B, T), T > S, padded on the right.

    Returns:
        Dict `{"head_1": ..., "head_2": ...}` of hidden states (B, T, D) after the final norm, in the compute dtype.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        shared_tokens: int = 0,
        only_heads: bool = False,
        detach: bool = False,
        remat: bool = False,
        fused: bool = False,
    ):
        embedding = model.backbone.token_embedding
        # A quantised trunk's policy is mixed: Keras would round its scales, and torch, when it computes a block's inside again,
        # would find them as they are.
        policy = embedding.compute_dtype if is_quantised(embedding) else embedding.dtype_policy
        super().__init__(name="training_view", dtype=policy)
        self.backbone = model.backbone
        self.prefix_embedding = model.prefix_embedding
        self.prefix_key_values = model.prefix_key_values
        self.heads = list(model.heads)
        self.head_names = model.head_names
        places_ahead = [places for places, head in enumerate(self.heads, start=1) if head.reads_tokens]
        self.shared_tokens = max(shared_tokens - max(places_ahead, default=0), 0)
        self.only_heads = only_heads
        self.detach = detach
        self.remat = remat
        self.fused = fused
        self.run_block = backend.fused(run_block) if fused else run_block
        self.untrained_norm = Untrained(model.backbone.layer_norm)
        self.built = True

    def call(self, token_ids):
        return distribution.active().by_rows(self._states)(token_ids)

    def _states(self, token_ids):
        packed = _Packed(token_ids, self)
        *blocks, last_block = self.backbone.transformer_layers
        x = packed.embeddings
        for place, block in enumerate(blocks):
            x = packed.block(block, x, place)
        states = {"before_last_block": x}
        if not self.only_heads or any(head.reads == "last_block" for head in self.heads):
            states["last_block"] = packed.block(last_block, x, len(blocks))
        outputs = {}
        if not self.only_heads:
            outputs["head_1"] = packed.rows(self.backbone.layer_norm(packed.answers(states["last_block"])))
        detached = self.detach or self.only_heads
        if detached:
            states = {name: ops.stop_gradient(state) for name, state in states.items()}
        behind_trunk = partial(packed.block, place=len(blocks), detached=detached)
        for places, (name, head) in enumerate(zip(self.head_names[1:], self.heads, strict=True), start=1):
            tokens = [packed.next_embeddings(places)] if head.reads_tokens else []
            state = head.advance(states[head.reads], behind_trunk, *tokens)
            outputs[name] = packed.rows(self.untrained_norm(packed.answers(state)))
        return outputs


class _Packed:
    """A batch as one row, and how its positions attend to one another."""

    def __init__(self, token_ids, view: TrainingView):
        backbone, prefix_embedding, shared_tokens = view.backbone, view.prefix_embedding, view.shared_tokens
        self.batch_size, self.own = ops.shape(token_ids)[0], ops.shape(token_ids)[1] - shared_tokens
        self.token_ids = token_ids
        self.token_embedding = backbone.token_embedding
        self.shared_tokens = shared_tokens
        self.prefix_length = 0 if prefix_embedding is None else prefix_embedding.length
        self.key_values = view.prefix_key_values
        first_position = 0 if self.key_values is None else self.key_values.length
        self.shared = self.prefix_length + shared_tokens
        self.remat, self.run_block = view.remat, view.run_block
        x = embedded(self.token_embedding, self.pack(token_ids))
        self.embeddings = x if prefix_embedding is None else prefix_embedding(x)
        shared_positions = first_position + ops.arange(self.shared, dtype="int32")
        own_positions = first_position + self.shared + ops.arange(self.own, dtype="int32")
        positions = ops.concatenate([shared_positions, ops.tile(own_positions, [self.batch_size])])
        first = backbone.transformer_layers[0]
        self.rotation = Rotation(first, positions[None])
        self.scale = first._self_attention_layer._inv_norm_factor
        keys = ops.arange(first_position + self.shared + self.own, dtype="int32")
        self.visible = (keys[None] <= own_positions[:, None])[None]
        self.visible_shared = (keys[None, : first_position + self.shared] <= shared_positions[:, None])[None]

    def next_embeddings(self, places):
        """The embeddings of the tokens so many places ahead, (1, N, D)."""
        ahead = self.pack(tokens_ahead(self.token_ids, places))
        return next_embeddings(self.token_embedding, ahead, self.prefix_length)

    def block(self, block, x, place: int, detached: bool = False):
        """A block of the trunk, or a head's, behind the prefix's keys and values of a place in the trunk."""

        def apply(x):
            before = None if self.key_values is None else self.key_values.of_block(place)
            if before is not None and detached:
                before = tuple(ops.stop_gradient(each) for each in before)
            attend = self.attend if before is None else partial(self.attend, before=before)
            return self.run_block(BlockWeights.of(block), x, self.rotation, attend)

        # TensorFlow gives what `apply` merely captures no gradient: rotation and mask need none.
        return keras.remat(apply)(x) if self.remat else apply(x)

    def attend(self, query, key, value, before=None):
        """Attention; `before` is the keys and values that stand before all others, each (1, P, H, E)."""
        (q_shared, q), (k_shared, k), (v_shared, v) = self.split(query), self.split(key), self.split(value)
        if before is not None:
            k_shared, v_shared = (
                ops.concatenate([first, own], axis=1)
                for first, own in zip(before, (k_shared, v_shared), strict=True)
            )
        elif not self.shared:
            return self.join(grouped_attention(q, k, v, self.visible, self.scale))
        keys, values = self.with_shared(k_shared, k), self.with_shared(v_shared, v)
        if not self.shared:
            return self.join(grouped_attention(q, keys, values, self.visible, self.scale))
        of_shared = grouped_attention(q_shared, k_shared, v_shared, self.visible_shared, self.scale)
        of_own = grouped_attention(q, keys, values, self.visible, self.scale)
        return ops.concatenate([of_shared, self.join(of_own)], axis=1)

    def pack(self, token_ids):
        """(B, T) -> (1, S + B * (T - S))."""
        own = ops.reshape(token_ids[:, self.shared_tokens :], (1, -1))
        return (
            ops.concatenate([token_ids[:1, : self.shared_tokens], own], axis=1) if self.shared_tokens else own
        )

    def split(self, x):
        """(1, N, ...) -> (1, P + S, ...) and (B, T - S, ...)."""
        return x[:, : self.shared], ops.reshape(
            x[:, self.shared :], (self.batch_size, self.own, *x.shape[2:])
        )

    def join(self, own):
        """(B, T - S, ...) -> (1, B * (T - S), ...)."""
        return ops.reshape(own, (1, -1, *own.shape[2:]))

    def with_shared(self, shared, own):
        """Every row's keys, or values: the shared ones, then its own."""
        spread = ops.broadcast_to(shared, (self.batch_size, *ops.shape(shared)[1:]))
        return ops.concatenate([spread, own], axis=1)

    def answers(self, x):
        """Without the prefix, which predicts nothing: (1, S + B * (T - S), D)."""
        return x[:, self.prefix_length :]

    def rows(self, x):
        """(1, S + B * (T - S), D) -> (B, T, D)."""
        own = ops.reshape(x[:, self.shared_tokens :], (self.batch_size, self.own, x.shape[-1]))
        return self.with_shared(x[:, : self.shared_tokens], own) if self.shared_tokens else own
