"""A recipe: everything that decides a run, read from TOML into frozen dataclasses.

A recipe only picks; the library does. Every field is defined, documented and given its default here and nowhere else;
`keras-mtp recipes --fields` prints the same text. A misspelt key, a wrong type or an impossible value is refused with a
message that says what to write instead.
"""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from keras_mtp import tuning
from keras_mtp.errors import UserError
from keras_mtp.untrusted import open_plain

_LARGEST_FILE = 1 << 20  # bytes; more is no recipe
_MOST_DOTS = 100  # on a line; a table of numbers to try has some ten
_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def field(default: Any, doc: str, **limits: Any) -> Any:
    """A recipe's field: default, documentation, and `choices`, `minimum`, `above`, `maximum` or `pattern`."""
    return dataclasses.field(default=default, metadata={"doc": doc, **limits})


def _check(key: str, value: Any, spec: dataclasses.Field) -> None:
    """Type, choices and range of one value."""
    limits = spec.metadata
    received = f"Received: {key}={value!r:.80}."
    if type(value) is not spec.type:  # exactly: a bool is no int here
        wanted = _TYPES.get(spec.type, "a table")
        raise UserError(f"`{key}` must be {wanted}. {received}")
    if spec.type is float and not math.isfinite(value):
        raise UserError(f"`{key}` must be finite. {received}")
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(
            f"`{key}` must be {' or '.join(limits['choices'])}. {received}{_closest(value, limits['choices'])}"
        )
    if "minimum" in limits and value < limits["minimum"]:
        raise UserError(f"`{key}` must be at least {limits['minimum']}. {received}")
    if "above" in limits and value <= limits["above"]:
        raise UserError(f"`{key}` must be above {limits['above']}. {received}")
    if "maximum" in limits and value > limits["maximum"]:
        raise UserError(f"`{key}` must be at most {limits['maximum']}. {received}")
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        raise UserError(f"`{key}` must be letters, digits, `-`, `_` and `.` only. {received}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """One table of a recipe; checks its values however it was made, from TOML or in Python."""

    _path: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.type is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, spec.name, value)
            _check(self._path + spec.name, value, spec)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecipe(_Table):
    """The pretrained model, whose weights stay as they are unless tuning.method is full."""

    _path: ClassVar[str] = "model."
    name: str = field(
        "smollm2-135m",
        "A Llama: smollm2-135m, a GGUF file, a model's folder, hf://org/name, a keras-hub preset, or random:NAME, the shape of "
        "a published model (llama3.2_1b, llama3.2_3b, smollm2_135m) with random weights, to try what it would take.",
    )
    dtype: str = field(
        "float32",
        "How the pretrained weights are stored; bfloat16 halves the memory and needs training.dtype=mixed_bfloat16, with "
        "which they are stored in bfloat16 whatever this says: frozen, they would be rounded at every use. With "
        "tuning.method=full they are stored in float32: in bfloat16 most steps would be rounded away.",
        choices=("float32", "bfloat16"),
    )

    quantize: str = field(
        "none",
        "Store the model's matrices in Keras' int8 (a quarter of float32's memory) or int4 (a sixth, but the embeddings in int8); "
        "what is trained stays float32. What is computed with is not rounded, so a matrix is made floating-point, one at a time, "
        "whenever it is used: a step takes longer, most of all with int4. Not with tuning.method=full.",
        choices=("none", "int8", "int4"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartRecipe(_Table):
    """The finished run whose trained weights and heads are the start, instead of fresh ones."""

    _path: ClassVar[str] = "start."
    run: str = field(
        "",
        "The folder of a finished run of the same base model, as --from sets it; empty starts afresh. What tuning.method "
        "trains, prefix.length, heads.kind and heads.attach must be the run's; heads beyond the run's start fresh, and only "
        "they are warmed up. With heads.purpose=speed the kind may be another, and all heads are fresh then.",
    )
    checkpoint: str = field(
        "",
        "SHA-256 of that run's trained weights. A run writes it into its recipe, which then starts from no others.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRecipe(_Table):
    """Where examples come from and how they are batched."""

    _path: ClassVar[str] = "data."
    source: str = field(
        "hub",
        "hub or tfds (downloaded), builtin (generated here, nothing to download), or a file or folder of the task's.",
    )
    template: str = field(
        "chat",
        "How a conversation becomes text: chat (the model's own chat template; plain lines if it has none), Jinja2 text, "
        "or the path of a .jinja file.",
    )
    answers: str = field(
        "gold",
        "What is learnt: gold, the data's answers; or model, those that the model gives to the same prompts before training, "
        "greedily: what a draft will be accepted for. Needs heads.purpose=speed. Held-out examples keep the data's.",
        choices=("gold", "model"),
    )
    max_tokens: int = field(384, "Longest example (prompt and answer, in tokens).", minimum=16)
    too_long: str = field(
        "skip",
        "What happens to longer ones: they are skipped, or truncated on the right. A report counts them.",
        choices=("skip", "truncate"),
    )
    special_text: str = field(
        "refuse",
        "What happens to examples that hold the text of one of the model's special tokens, such as <|im_end|>, which would "
        "be read as the token: the data are refused, or such examples are skipped. A report counts them.",
        choices=("refuse", "skip"),
    )
    buckets: int = field(
        0,
        "Batches are padded to one of this many lengths: more pads less but compiles more. 0: as few as keep padding "
        "under a tenth of the positions.",
        minimum=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningRecipe(_Table):
    """What is trained besides the heads, so that head_1 becomes better. training.learning_rate is for all of it."""

    _path: ClassVar[str] = "tuning."
    method: str = field(
        "prefix",
        "prefix: vectors in front of every text (prompt tuning, arXiv 2104.08691). prefix_kv: keys and values in front of it "
        "in every block (prefix tuning, arXiv 2101.00190). lora: low-rank changes of the model's matrices (arXiv 2106.09685). "
        "full: all of the model's weights; a checkpoint then holds them. heads: only the heads, all of them for "
        "training.steps. prefix+lora and prefix_kv+lora are trained together.",
    )
    lora_rank: int = field(8, "With lora: the rank of a change.", minimum=1)
    lora_alpha: float = field(16.0, "With lora: a change is scaled by lora_alpha / lora_rank.", above=0)
    lora_targets: str = field(
        "query+value",
        "With lora: which matrices of a block are changed, some of query, key, value, output, gate, up and down, joined by "
        "`+`; or all.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        tuning.methods(self.method)
        tuning.projections(self.lora_targets)

    @property
    def methods(self) -> tuple[str, ...]:
        """The names in `method`, in the order of `tuning.METHODS`."""
        return tuning.methods(self.method)

    @property
    def projections(self) -> tuple[str, ...]:
        """The names in `lora_targets`, in the order of `tuning.PROJECTIONS`."""
        return tuning.projections(self.lora_targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixRecipe(_Table):
    """What stands in front of every text, where tuning.method has prefix or prefix_kv; else ignored."""

    _path: ClassVar[str] = "prefix."
    length: int = field(
        16, "Number of trained places; with tuning.method=prefix, 0 trains no prefix.", minimum=0
    )
    start: str = field(
        "text",
        "What they start from: the embeddings of prefix.text, of sampled vocabulary, or random numbers; with prefix_kv, the "
        "keys and values that the model makes of these.",
        choices=("text", "vocabulary", "random"),
    )
    text: str = field(
        "Solve the problem step by step, show each calculation, and give the final number at the end.",
        "The text to start from, repeated or cut to prefix.length tokens.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsRecipe(_Table):
    """The heads beyond head_1 (the model's own next-token prediction). With count=0 the rest but purpose is ignored.

    What is said here of the prefix holds for whatever tuning.method trains.
    """

    _path: ClassVar[str] = "heads."
    count: int = field(1, "How many: with 1 there is head_2, which predicts two tokens ahead.", minimum=0)
    kind: str = field(
        "transformer",
        "transformer: a decoder block. sequential: the same, and it sees the token before the one it "
        "predicts: when it drafts, the draft before its own. linear: a square matrix. Where they stand: heads.attach.",
        choices=("transformer", "sequential", "linear"),
    )
    purpose: str = field(
        "quality",
        "What the heads are for. quality: with them the prefix is to become better. speed: they are to draft well when text "
        "is decoded; training.steps then train the heads alone, all of them, and neither the prefix (start.run brings one "
        "that is trained) nor head_1 changes. There is no warm-up then, and heads.weight, heads.schedule and heads.detach mean "
        "nothing.",
        choices=("quality", "speed"),
    )
    start: str = field(
        "last_block",
        "What a head starts as: last_block, a copy of the last block (linear heads, having no block: as zero); random numbers; or "
        "zero: it adds nothing at first to the state that it reads, the rest of a block being that copy.",
        choices=("last_block", "random", "zero"),
    )
    attach: str = field(
        "default",
        "Which state of the trunk the heads read: last_block, what the last block gives; before_last_block, what it is given, "
        "so that heads run beside it; or default: before_last_block for transformer and sequential heads, last_block for linear ones.",
        choices=("default", "last_block", "before_last_block"),
    )
    weight: float = field(0.1, "Weight of head_2's loss beside head_1's, whose weight is 1.", minimum=0)
    decay: float = field(1.0, "Each further head weighs this times the one before it.", minimum=0)
    schedule: str = field(
        "constant",
        "How these weights change while the prefix is trained: constant, ramp_up (from nothing to their value at the last "
        "step, linearly) or decay (from their value to nothing).",
        choices=("constant", "ramp_up", "decay"),
    )
    target: str = field(
        "further",
        "What a head learns to predict: further, the token as many places ahead as its number says; or next, the token that "
        "head_1 predicts too: a placebo, which tells what a further token does from what any second loss does.",
        choices=("further", "next"),
    )
    warmup_steps: int = field(
        80, "Optimizer steps for the heads alone, before the prefix is trained.", minimum=0
    )
    warmup_patience: int = field(
        0,
        "End the warm-up after so many evaluations in a row that brought the heads' held-out loss down by less than 1 %; "
        "heads.warmup_steps is then the most, and the rate stays at its peak. 0: always all steps, the rate falls to 0.",
        minimum=0,
    )
    freeze: bool = field(
        True, "Keep the heads as they are after the warm-up; false trains them on with the prefix."
    )
    detach: bool = field(
        False, "Cut the heads' gradient before it reaches the prefix: the control arm of an experiment."
    )
    learning_rate: float = field(
        3e-3,
        "Peak learning rate of the heads. At 2e-4 a head has hardly warmed up after 40 steps, and teaches the prefix nonsense.",
        minimum=0,
    )
    draft_vocabulary: int = field(
        4096,
        "With purpose=speed: among how many tokens the heads choose their drafts, the most frequent in the training data. "
        "Fewer make a draft cheaper, and some tokens are never drafted; the text stays the same. 0: among all.",
        minimum=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecipe(_Table):
    """How what tuning.method says (and unfrozen heads) is trained, after the heads' warm-up."""

    _path: ClassVar[str] = "training."
    steps: int = field(120, "Optimizer steps.", minimum=1)
    batch_size: int = field(8, "Examples per optimizer step.", minimum=1)
    accumulation: int = field(
        1, "Micro-batches per optimizer step: 2 halves the memory, the result is the same.", minimum=1
    )
    learning_rate: float = field(
        8e-3,
        "Peak learning rate of what tuning.method trains; the heads have their own. On "
        "SmolLM2-135M and GSM8K, of a few tried: prefix 4e-3, prefix_kv 2e-2, lora 4e-3 (of rank 8), full 4e-5.",
        minimum=0,
    )
    learning_rate_warmup: float = field(
        0.1,
        "Share of the steps in which the rate rises to its peak; a cosine then brings it to 0.",
        minimum=0,
        maximum=1,
    )
    weight_decay: float = field(0.0, "AdamW's weight decay.", minimum=0)
    clip_norm: float = field(
        1.0, "Largest gradient norm, of prefix and heads each; 0 clips nothing.", minimum=0
    )
    epsilon: float = field(1e-7, "AdamW's epsilon, as Keras defines it.", above=0)
    keep: str = field(
        "last",
        "Which weights are the result: last, or best: those with the lowest loss of head_1 on the held-out examples, among "
        "all evaluations, the one before training included.",
        choices=("last", "best"),
    )
    patience: int = field(
        0,
        "Stop after so many evaluations in a row without a new lowest held-out loss of head_1; 0 never stops early.",
        minimum=0,
    )
    probe_every: int = field(
        0,
        "Measure every so many steps, and in the first, what each head's loss asks of the trained weights outside the heads: "
        "its gradient's norm (of the loss without its weight) and its cosine to head_1's. Training goes on as without; a "
        "measurement takes about as long as a step. 0: never.",
        minimum=0,
    )
    snapshot_every: int = field(
        50,
        "Steps between two snapshots, from which a run that was cut off goes on to the same result; 0: none, and a run that is "
        "cut off is lost.",
        minimum=0,
    )
    snapshots_kept: int = field(
        2, "How many snapshots are kept while the run goes on; they go once it is finished.", minimum=1
    )
    on_divergence: str = field(
        "stop",
        "What a training loss that is no finite number does: stop the run, or let it continue to the end, where the report says so.",
        choices=("stop", "continue"),
    )
    seed: int = field(
        0, "Decides the order of the data and every random start.", minimum=0, maximum=2**32 - 1
    )
    dtype: str = field(
        "float32",
        "What is computed in; prefix and heads are float32 weights all the same.",
        choices=("float32", "mixed_bfloat16"),
    )
    remat: bool = field(
        False,
        "Compute each block's inside again in the backward pass instead of keeping it: less memory, about 40 % more work.",
    )
    memory_check: bool = field(
        True,
        "Refuse to start where the memory that the run is predicted to take is not free; false starts all the same.",
    )
    compile: bool = field(
        True,
        "On torch, fuse each block's elementwise work with torch.compile (needs a C++ compiler, on a GPU Triton); not in "
        "stages too short to win back its minute. JAX and TensorFlow always compile.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRecipe(_Table):
    """How the model is judged before, during and after training."""

    _path: ClassVar[str] = "evaluation."
    limit: int = field(64, "At most this many held-out examples, and as many test items.", minimum=1)
    test_limit: int = field(
        100_000, "At most this many test items, where that is fewer; 0: none are answered.", minimum=0
    )
    every: int = field(20, "Training steps between two evaluations on the held-out examples.", minimum=1)
    batch_size: int = field(16, "Examples per forward pass, and prompts answered together.", minimum=1)
    max_new_tokens: int = field(256, "Longest answer to a test item, in tokens.", minimum=1)
    max_prompt_tokens: int = field(
        0,
        "Test items with a longer prompt are passed over, which a report counts; 0 passes over none.",
        minimum=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionRecipe(_Table):
    """The devices that train together, in one process or in several that the user starts. The result does not depend on them."""

    _path: ClassVar[str] = "distribution."
    data: int = field(
        1,
        "Devices that share a batch, each with its own rows of it: must divide training.batch_size / training.accumulation.",
        minimum=1,
    )
    model: int = field(
        1,
        "Devices that share the weights, where those are too large for one; on JAX. data times model devices are used in all.",
        minimum=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(_Table):
    """A whole run."""

    name: str = field("my-recipe", "Short name, used for the run's folder.", pattern=r"[A-Za-z0-9][\w.-]*")
    task: str = field("gsm8k", "What is trained for and judged by.")
    description: str = field("", "One line for the list of recipes.")
    model: ModelRecipe = ModelRecipe()
    start: StartRecipe = StartRecipe()
    data: DataRecipe = DataRecipe()
    tuning: TuningRecipe = TuningRecipe()
    prefix: PrefixRecipe = PrefixRecipe()
    heads: HeadsRecipe = HeadsRecipe()
    training: TrainingRecipe = TrainingRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    distribution: DistributionRecipe = DistributionRecipe()

    def __post_init__(self) -> None:
        super().__post_init__()
        training = self.training
        if training.batch_size % training.accumulation:
            raise UserError(
                "`training.accumulation` must divide `training.batch_size`. Received: "
                f"accumulation={training.accumulation}, batch_size={training.batch_size}."
            )
        if training.batch_size // training.accumulation % self.distribution.data:
            raise UserError(
                "`distribution.data` must divide the examples of a micro-batch, training.batch_size / training.accumulation. Received: "
                f"distribution.data={self.distribution.data}, batch_size={training.batch_size}, accumulation={training.accumulation}."
            )
        if self.start.checkpoint and not self.start.run:
            raise UserError(
                "`start.checkpoint` must come with `start.run`, the run that it belongs to. Received: start.run=''."
            )
        if self.model.dtype == "bfloat16" and training.dtype == "float32":
            raise UserError(
                "`model.dtype=bfloat16` needs `training.dtype=mixed_bfloat16`: weights stored in bfloat16 are computed "
                "with in bfloat16. Received: training.dtype=float32."
            )
        if self.prefix_length and self.prefix.start == "text" and not self.prefix.text.strip():
            raise UserError(
                "`prefix.text` must not be empty with `prefix.start=text`. Received: an empty text."
            )
        self._check_method()
        if self.heads_alone:
            self._check_heads_alone()
        if self.heads.purpose == "quality" and self.data.answers == "model":
            raise UserError(
                "`data.answers=model` needs `heads.purpose=speed`: a prefix would learn to say what the model says already. "
                "Received: heads.purpose=quality."
            )
        if self.heads.target == "next" and self.heads.kind == "sequential":
            raise UserError(
                "`heads.target=next` needs `heads.kind` transformer or linear: a sequential head is shown the tokens before its "
                "usual target, the next one among them. Received: heads.kind=sequential."
            )
        trains = self.prefix_length or {"lora", "full"} & {*self.tuning.methods}
        if not trains and (self.heads.freeze or not self.heads.count):
            raise UserError(
                "The recipe trains nothing: `prefix.length` is 0 and there are no unfrozen heads. Set `prefix.length` to "
                "at least 1, or `heads.count` to at least 1 with `heads.freeze=false`."
            )

    @property
    def prefix_length(self) -> int:
        """P: `prefix.length` where there is a prefix, else 0."""
        return self.prefix.length if {*tuning.PREFIXES} & {*self.tuning.methods} else 0

    @property
    def tuned(self) -> str:
        """What is trained besides the heads, in words."""
        named = {
            "prefix": f"a prefix of {self.prefix.length} vectors",
            "prefix_kv": f"a prefix of {self.prefix.length} keys and values in every block",
            "lora": f"LoRA of rank {self.tuning.lora_rank} on {', '.join(self.tuning.projections)}",
            "full": "all weights of the model",
            "heads": "nothing",
        }
        return " and ".join(named[name] for name in self.tuning.methods)

    @property
    def heads_alone(self) -> bool:
        """Whether the heads are trained and nothing else."""
        return self.heads.purpose == "speed" or self.tuning.methods == ("heads",)

    def _check_method(self) -> None:
        method = self.tuning.method
        if (
            not self.prefix.length
            and {*tuning.PREFIXES} & {*self.tuning.methods}
            and self.tuning.methods != ("prefix",)
        ):
            raise UserError(
                f"`prefix.length` must be at least 1 with `tuning.method={method}`. Received: prefix.length=0. Set it, or "
                "choose a method without a prefix."
            )
        if "full" in self.tuning.methods and self.model.dtype == "bfloat16":
            raise UserError(
                "`model.dtype` must be float32 with `tuning.method=full`: stored in bfloat16, weights lose most steps of "
                "training to rounding. Received: model.dtype=bfloat16. training.dtype=mixed_bfloat16 computes in bfloat16 "
                "all the same."
            )
        if "full" in self.tuning.methods and self.model.quantize != "none":
            raise UserError(
                "`model.quantize` must be none with `tuning.method=full`: int8 and int4 have no room for a step of training. "
                f"Received: model.quantize={self.model.quantize}. Train a prefix or lora, or leave the model as it is."
            )

    def _check_heads_alone(self) -> None:
        """Refuses what contradicts training the heads alone."""
        heads, training = self.heads, self.training
        why = "heads.purpose=speed" if heads.purpose == "speed" else "tuning.method=heads"
        for key, wrong, wanted, received in (
            ("heads.count", heads.count == 0, "at least 1", "0"),
            ("heads.freeze", heads.freeze, "false", "true"),
            ("heads.target", heads.target == "next", "further", "next"),
            ("training.keep", training.keep != "last", "last", training.keep),
            ("training.patience", training.patience > 0, "0", str(training.patience)),
            ("training.probe_every", training.probe_every > 0, "0", str(training.probe_every)),
        ):
            if wrong:
                raise UserError(
                    f"`{key}` must be {wanted} with `{why}`. Received: {key}={received}. That trains "
                    "the heads and nothing else; head_1, by which the best weights are chosen, stays as it is."
                )


def documented_fields() -> Iterator[tuple[str, dataclasses.Field]]:
    """Every field with its dotted key, in the order of definition."""
    for spec in dataclasses.fields(Recipe):
        if isinstance(spec.default, _Table):
            yield from ((f"{spec.name}.{inner.name}", inner) for inner in dataclasses.fields(spec.default))
        else:
            yield spec.name, spec


def available_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return shipped_files(".")


def shipped_files(folder: str) -> dict[str, Path]:
    """The TOML files in a folder of `recipes/`, by name: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "recipes"
    recipes = inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"
    return {path.stem: path for path in sorted((recipes / folder).glob("*.toml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Reads a recipe by its name or from a file.

    Raises:
        UserError: no such recipe or file, or its text is not a recipe.
    """
    known = available_recipes()
    path = known.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise UserError(
            f"No recipe named {str(name_or_path)!r}, nor a file of that name.{_closest(str(name_or_path), list(known))} "
            f"Available: {', '.join(known)}."
        )
    text = read_text(path, "A recipe")
    recipe = from_toml(text, str(path))
    if not parse_toml(text, str(path)):
        raise UserError(
            f"A recipe must set at least one field. Received: {path}, which is empty. "
            "`keras-mtp recipes --fields` lists them."
        )
    return recipe


def from_toml(text: str, origin: str) -> Recipe:
    """Makes a recipe from TOML; `origin` says in errors where the text came from."""
    tables = parse_toml(text, origin)
    try:
        return from_tables(tables)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def read_text(path: Path, what: str) -> str:
    """The text of a TOML file; `what` says in errors what it should be: "A recipe"."""
    try:
        with open_plain(path) as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}.") from error
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{what} must be at most 1 MiB of TOML. Received: {path}, which is larger.")
    return text


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The tables of a TOML text. A key of n parts takes Python n^2 steps, hours for a file of nothing else."""
    if any(line.count(".") > _MOST_DOTS for line in text.splitlines() if line.lstrip()[:1] != "#"):
        raise UserError(
            f"{origin} is not valid TOML for a recipe: it has more than {_MOST_DOTS} dots on a line."
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long and brackets too deep
        raise UserError(f"{origin} is not valid TOML: {error}.") from error


def to_toml(recipe: Recipe) -> str:
    """The whole recipe with every default written out; `from_toml` gives the same recipe back."""
    import tomli_w  # here, since only a run needs to write one

    return tomli_w.dumps(dataclasses.asdict(recipe))


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables by dotted key: `("heads.count", 2)`."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def updated(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A copy with other values by dotted key: `updated(recipe, {"heads.count": 2})`."""
    tables = dataclasses.asdict(recipe)
    for key, value in values.items():
        *table, name = _known(key).split(".")
        (tables[table[0]] if table else tables)[name] = value
    return from_tables(tables)


def with_options(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """A copy with the options that were given, by the fields they set; None means that one was not."""
    return updated(recipe, {key: value for key, value in options.items() if value is not None})


def apply_overrides(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """A copy with `a.b=c` assignments applied, as `--set` takes them. Values are TOML; bare words are strings."""
    values = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not key:
            raise UserError(f"`--set` must look like heads.count=2. Received: --set {assignment!r:.80}.")
        values[key] = _value(_known(key), text)
    return updated(recipe, values)


def _value(key: str, text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}").get("value")
    except (ValueError, RecursionError):
        return text
    # `--set data.source=2024` means a folder of that name.
    return text if dict(documented_fields())[key].type is str and not isinstance(value, str) else value


def from_tables(tables: Mapping[str, Any]) -> Recipe:
    """Makes a recipe from nested tables, as TOML has them; what they leave out takes the defaults.

    Raises:
        UserError: an unknown key, or a value that cannot be.
    """
    values = dict(tables)
    sections = {
        spec.name: spec.default for spec in dataclasses.fields(Recipe) if isinstance(spec.default, _Table)
    }
    for key, value in tables.items():
        if key not in sections:
            _known(key)
        elif isinstance(value, dict):
            for name in value:
                _known(f"{key}.{name}")
            values[key] = dataclasses.replace(sections[key], **value)
        else:
            raise UserError(
                f"`{key}` must be a table: [{key}] and its fields below. Received: {key}={value!r:.80}."
            )
    return Recipe(**values)


def _known(key: str) -> str:
    """Checks that a dotted key exists."""
    keys = [name for name, _ in documented_fields()]
    if key in keys:
        return key
    tables = {name.partition(".")[0]: name for name in reversed(keys) if "." in name}
    if key in tables:
        raise UserError(f"`{key}` is a table: set one of its fields, such as `{tables[key]}`.")
    fields = {name.rpartition(".")[2]: name for name in keys}
    close = _closest(key, [*keys, *tables]) or _closest(key.rpartition(".")[2], fields)
    raise UserError(f"Unknown key `{key:.80}`.{close or ' `keras-mtp recipes --fields` lists all keys.'}")


def _closest(word: str, known: Sequence[str] | Mapping[str, str]) -> str:
    """A question whether something known was meant, if it is spelt nearly the same."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not close:
        return ""
    return f" Did you mean `{known[close[0]] if isinstance(known, Mapping) else close[0]}`?"
