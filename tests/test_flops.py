"""The formula against what XLA and torch count in the very step that `train` makes.

A gradient of frozen weights that slips back in shows here as half as much work again. XLA counts elementwise operations
as well, about one per cent of this model; torch counts matrix products only. XLA counts what it is asked for, to within
0.4 % of what it makes of it, which takes ten times as long to find out.
"""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.data.batches import Batches
from keras_mtp.data.encoding import Encoded
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeadScore
from keras_mtp.flops import Positions, Sizes, step_flops
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, updated
from keras_mtp.training import train
from tests import tiny

BACKEND = keras.config.backend()
needs_a_counter = pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no counter of this kind")

# Wide enough for the matrices to outweigh the rest; 16 x 8 labelled rows are one full chunk of the loss, whose loop
# XLA would otherwise count once, however often it runs.
ROWS, PROMPT, ANSWER, PREFIX, VOCABULARY = 16, 24, 8, 8, 512
WIDE = {"vocabulary_size": VOCABULARY, "num_layers": 2, "hidden_dim": 256, "intermediate_dim": 768}
POSITIONS = Positions(rows=ROWS, own=PROMPT + ANSWER, shared=PREFIX)
KEPT = Positions(rows=ROWS, own=PROMPT + ANSWER, kept=PREFIX)  # where the prefix is keys and values
ALONE = Positions(rows=ROWS, own=PROMPT + ANSWER)
KINDS = {"transformer": TransformerHead, "sequential": SequentialHead, "linear": LinearHead}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A step to count: what `step_flops` is asked and what `train` is told."""

    trained: str = "prefix"
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    heads: int = 0
    kind: str = "transformer"
    attach: str = "default"
    heads_trained: bool = True
    detached: bool = False
    remat: bool = False

    @property
    def formula(self) -> float:
        outputs = self.heads if self.trained == "heads" else 1 + self.heads
        labelled_rows = outputs * ROWS * ANSWER
        positions = {"prefix_kv": KEPT, "lora": ALONE}.get(self.trained, POSITIONS)
        return step_flops(SIZES, positions, labelled_rows=labelled_rows, **dataclasses.asdict(self)).total

    @property
    def recipe(self) -> Recipe:
        values = {
            "heads.count": self.heads,
            "heads.warmup_steps": int(self.trained == "heads"),
            "heads.freeze": not self.heads_trained,
            "heads.detach": self.detached,
            "training.remat": self.remat,
            "training.steps": 1,
            "training.batch_size": ROWS,
        }
        return updated(Recipe(), values)


SIZES = Sizes(
    hidden_dim=256,
    query_dim=256,
    key_value_dim=128,
    head_dim=64,
    intermediate_dim=768,
    num_layers=2,
    vocabulary_size=VOCABULARY,
)
CASES = {
    "prefix": Case(),
    "full": Case(trained="full"),
    "heads": Case(trained="heads", heads=1),
    "keys and values": Case(trained="prefix_kv"),
    "keys and values, and a frozen head": Case(trained="prefix_kv", heads=1, heads_trained=False),
    "LoRA": Case(trained="lora", lora_rank=8, lora_targets=("query", "value")),
    "LoRA behind the attention": Case(trained="lora", lora_rank=32, lora_targets=("output", "gate", "down")),
    "LoRA at the end of a block": Case(trained="lora", lora_rank=32, lora_targets=("down",)),
    "prefix and LoRA": Case(trained="prefix+lora", lora_rank=32, lora_targets=("query", "key", "up")),
    "prefix and LoRA, blocks computed again": Case(
        trained="prefix+lora", lora_rank=32, lora_targets=("query", "value"), remat=True
    ),
    "prefix and frozen head": Case(heads=1, heads_trained=False),
    "prefix and two heads": Case(heads=2),
    "prefix and detached head": Case(heads=1, detached=True),
    "prefix and linear head": Case(heads=1, kind="linear"),
    "prefix and sequential heads": Case(heads=2, kind="sequential"),
    "prefix and frozen sequential head": Case(heads=1, kind="sequential", heads_trained=False),
    "sequential head": Case(trained="heads", heads=1, kind="sequential"),
    "head behind the last block": Case(trained="heads", heads=1, attach="last_block"),
    "linear head beside the last block": Case(
        trained="heads", heads=1, kind="linear", attach="before_last_block"
    ),
    "prefix and head, blocks computed again": Case(heads=1, remat=True),
}


class Counted(Exception):
    """Ends a training once its first step is counted."""


class CountFirstStep(keras.callbacks.Callback):
    """Raises `Counted(operations)` of the step that `fit` is about to make, or has made."""

    def __init__(self, examples):
        super().__init__()
        self.examples = examples

    def on_train_batch_begin(self, batch, logs=None):
        if BACKEND == "jax":
            raise Counted(_xla_flops(self.model, self.examples))
        self.counter = _torch_counter()
        self.counter.__enter__()

    def on_train_batch_end(self, batch, logs=None):
        self.counter.__exit__(None, None, None)
        raise Counted(self.counter.get_total_flops())


def _xla_flops(model: keras.Model, examples) -> float:
    import jax

    batches = Batches(examples, heads=tuple(model.loss), steps=1, batch_size=ROWS)
    parts = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([v.value for v in part] for part in parts)
    step = jax.jit(model.train_step).lower(state, batches[0])
    # XLA could leave out what is computed a second time: there it counts what it makes of the step.
    return (step.compile() if model.remat else step).cost_analysis()["flops"]


def _torch_counter():
    """torch's counter, told about the attention kernel for CPUs, which it leaves out."""
    import torch
    from torch.utils import flop_counter

    def forward(query, key, value, *rest, out_shape=None, **options):
        return flop_counter.sdpa_flop_count(query, key, value)

    def backward(upstream, query, key, value, *rest, out_shape=None, **options):
        return flop_counter.sdpa_backward_flop_count(upstream, query, key, value)

    attention = torch.ops.aten
    return flop_counter.FlopCounterMode(
        display=False,
        custom_mapping={
            attention._scaled_dot_product_flash_attention_for_cpu: forward,
            attention._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )


def _examples() -> list[Encoded]:
    rng = np.random.default_rng(0)
    tokens = PROMPT + ANSWER
    is_answer = np.arange(tokens) >= PROMPT
    return [
        Encoded(id=str(i), ids=rng.integers(0, VOCABULARY, tokens).astype("int32"), is_answer=is_answer)
        for i in range(ROWS)
    ]


def _counted(case: Case, folder) -> float:
    heads = [KINDS[case.kind](attach=case.attach, name=f"head_{k}") for k in range(2, 2 + case.heads)]
    model = MTPCausalLM(
        tiny.backbone(**WIDE),
        prefix_length=0 if case.trained == "lora" else PREFIX,
        prefix_kind="key_values" if case.trained == "prefix_kv" else "embeddings",
        lora_rank=case.lora_rank,
        lora_targets=case.lora_targets,
        heads=heads,
        freeze_backbone=case.trained != "full",
    )
    examples = _examples()
    log = MetricsLog(folder / "metrics.csv", model.head_names)
    nothing = HeadScore(nats=np.zeros(1), hits=np.zeros(1), tokens=np.ones(1))
    with pytest.raises(Counted) as counted, contextlib.closing(log):
        train(model, examples, case.recipe, log, lambda: {"head_1": nothing}, [CountFirstStep(examples)])
    return counted.value.args[0]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Operations of every case, counted once."""
    return {name: _counted(case, tmp_path_factory.mktemp("flops")) for name, case in CASES.items()}


@needs_a_counter
@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_what_the_formula_says(counted, name):
    assert counted[name] == pytest.approx(CASES[name].formula, rel=0.02)


@needs_a_counter
def test_full_prefix_and_heads_stand_in_the_predicted_ratio(counted):
    for name in ("full", "heads"):
        predicted = CASES[name].formula / CASES["prefix"].formula
        assert counted[name] / counted["prefix"] == pytest.approx(predicted, rel=0.01)


@needs_a_counter
@pytest.mark.parametrize("trained", [False, True])
def test_loss_makes_two_products_and_a_third_where_it_trains(trained):
    products = _loss_flops(trained, labelled=256, chunk_rows=256) / (2 * 256 * 256 * VOCABULARY)
    assert products == pytest.approx(3 if trained else 2, rel=0.02)


@pytest.mark.skipif(BACKEND != "torch", reason="XLA's counter does not see how often a loop runs")
def test_rows_without_a_label_cost_nothing():
    some, all_rows = (_loss_flops(False, labelled=rows, chunk_rows=32) for rows in (64, 256))
    assert some * 4 == all_rows


def _loss_flops(trained: bool, *, labelled: int, chunk_rows: int) -> float:
    """Of the lean loss and its gradients, on 256 rows."""
    layer = keras.layers.ReversibleEmbedding(VOCABULARY, 256, tie_weights=True)
    layer.build()
    loss = LinearCrossEntropy(layer, trained=trained, chunk_rows=chunk_rows)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1, 256, 256)).astype("float32")
    targets = rng.integers(0, VOCABULARY, (1, 256)).astype("int32")
    weights = (np.arange(256) < labelled).astype("float32")[None]
    if BACKEND == "torch":
        hidden = ops.convert_to_tensor(hidden).requires_grad_()
        with _torch_counter() as counter:
            loss(targets, hidden, weights).backward()
        return counter.get_total_flops()
    import jax

    def value(hidden, table):
        with keras.StatelessScope(state_mapping=[(layer.embeddings, table)]):
            return loss(targets, hidden, weights)

    gradients = jax.jit(jax.grad(value, argnums=(0, 1) if trained else 0))
    return gradients.lower(hidden, layer.embeddings.value).cost_analysis()["flops"]


def test_sizes_are_read_off_a_backbone():
    assert Sizes.of(tiny.backbone(**WIDE)) == SIZES


def test_smollm2_has_the_weights_it_is_known_for():
    sizes = Sizes(
        hidden_dim=576,
        query_dim=576,
        key_value_dim=192,
        head_dim=64,
        intermediate_dim=1536,
        num_layers=30,
        vocabulary_size=49152,
    )
    norms = (2 * 30 + 1) * 576
    assert 30 * sizes.block_weights + norms + 576 * 49152 == 134_515_008


def test_positions_shared_by_all_rows_are_computed_once():
    own, shared = Positions(rows=8, own=40), Positions(rows=8, own=24, shared=16)
    assert (own.count, shared.count) == (320, 208)
    assert (own.pairs, shared.pairs) == (8 * 40 * 40, 16 * 16 + 8 * 24 * 40)
    kept = Positions(rows=8, own=24, shared=16, kept=4)
    assert (kept.count, kept.pairs) == (208, 16 * 20 + 8 * 24 * 44)


@pytest.mark.parametrize("argument", [{"trained": "medusa"}, {"kind": "medusa"}])
def test_arguments_out_of_range(argument):
    with pytest.raises((UserError, ValueError), match=r"must be .*Received: .*medusa"):
        step_flops(SIZES, POSITIONS, labelled_rows=1, **argument)
