"""Attention, in the form that each backend is fastest at."""


def attention(query, key, value, visible, scale: float):
    """Softmax attention, the softmax in float32, in the form that the backend trains fastest on a CPU.

    Args:
        query: (B, H, R, E). key, value: (B, H, S, E). visible: bool (B or 1, 1, R, S), true somewhere in every row.
        scale: usually 1 / sqrt(E).

    Returns:
        (B, H, R, E).
    """
    import keras
    from keras import ops

    name = keras.config.backend()
    if name == "torch" and keras.backend.standardize_dtype(query.dtype) == "float32":
        import torch

        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scale
        )
    scores = ops.cast(ops.matmul(query * scale, ops.transpose(key, (0, 1, 3, 2))), "float32")
    scores = ops.where(visible, scores, -1e9)
    if name == "jax":  # normalised after the product with the values, whose rows are shorter
        powers = ops.exp(scores - ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True)))
        total = ops.cast(ops.sum(powers, axis=-1, keepdims=True), value.dtype)
        return ops.matmul(ops.cast(powers, value.dtype), value) / total
    return ops.matmul(ops.cast(ops.softmax(scores, axis=-1), value.dtype), value)
