"""What an `MTPCausalLM` cannot be made of."""

from keras_mtp.layers.mtp_head import MTPHead
from keras_mtp.quantised import is_quantised

VIEWS = ("logits", "hidden_states")
PREFIX_KINDS = ("embeddings", "key_values")


def check_arguments(backbone, prefix_length, prefix_kind, heads, outputs, draft_vocabulary) -> None:
    """Raises a `ValueError` for an argument out of range, a head that is no `MTPHead`, a backbone that is no Llama."""
    missing = [a for a in ("token_embedding", "transformer_layers", "layer_norm") if not hasattr(backbone, a)]
    if missing:
        raise ValueError(
            "`backbone` must be a keras-hub Llama backbone such as `keras_hub.models.Llama3Backbone`. "
            f"Received: {type(backbone).__name__}, which has no `{missing[0]}`."
        )
    if prefix_length < 0:
        raise ValueError(f"`prefix_length` must be at least 0. Received: prefix_length={prefix_length}")
    if prefix_kind not in PREFIX_KINDS:
        raise ValueError(
            f"`prefix_kind` must be one of {PREFIX_KINDS}. Received: prefix_kind={prefix_kind!r}"
        )
    for head in heads:
        if not isinstance(head, MTPHead):
            raise ValueError(f"`heads` must be a list of `MTPHead` layers. Received: {head!r}")
    if len({id(head) for head in heads}) < len(heads):
        raise ValueError(
            "`heads` must be different layers. Received the same one twice: make one for each place."
        )
    if outputs not in VIEWS:
        raise ValueError(f"`outputs` must be one of {VIEWS}. Received: outputs={outputs!r}")
    if any(not 0 <= token < backbone.vocabulary_size for token in draft_vocabulary):
        raise ValueError(
            f"`draft_vocabulary` must hold token ids from 0 to {backbone.vocabulary_size - 1}. Received: "
            f"{min(draft_vocabulary)} to {max(draft_vocabulary)}."
        )


def check_trained(backbone, freeze_backbone: bool, lora_rank: int) -> None:
    """Raises a `ValueError` where the backbone is to be trained and cannot be."""
    if lora_rank < 0:
        raise ValueError(f"`lora_rank` must be at least 0. Received: lora_rank={lora_rank}")
    if freeze_backbone:
        return
    if is_quantised(backbone.token_embedding):
        raise ValueError(
            "`freeze_backbone=False` needs a backbone that is not quantised: int8 and int4 have no room for a step of training. "
            f"Received: a backbone in {backbone.token_embedding.quantization_mode}. Train LoRA (`lora_rank`) or a prefix."
        )
    if lora_rank:
        raise ValueError(
            "`freeze_backbone` must be True with `lora_rank`, which trains a change of frozen matrices. Received: "
            f"freeze_backbone=False, lora_rank={lora_rank}"
        )
    stored = backbone.token_embedding.variable_dtype
    if stored != "float32":
        raise ValueError(
            "`freeze_backbone=False` needs a backbone whose weights are stored in float32: in anything shorter most steps "
            f'of training are rounded away. Received: weights in {stored}. Load it with dtype="mixed_{stored}".'
        )
