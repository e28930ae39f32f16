"""A keras-hub preset folder as a source of a model: its config read by ourselves, its weights by Keras.

    config.json                 the backbone's class and arguments
    model.weights.h5            the weights; large models have model.weights.json and several such files
    tokenizer.json, assets/     keras-hub's own tokenizer: only its vocabulary is used

keras-hub's tokenizer is not used: eager, it cuts no text before it merges;
test_keras_hub_preset.py::test_upstream_tokenizer_still_cuts_nothing fails once it does.
"""

import dataclasses
import itertools
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models import filling, keras_hub_tokenizer
from keras_mtp.models.hdf5_weights import read_shapes
from keras_mtp.models.json_file import Settings, read_json
from keras_mtp.models.licence import Licence, read_licence
from keras_mtp.models.llama import LlamaSizes, RopeScaling, weight_shapes
from keras_mtp.untrusted import is_plain_name

if TYPE_CHECKING:
    import keras_hub
    import numpy as np

CONFIG, WEIGHTS, INDEX = "config.json", "model.weights.h5", "model.weights.json"
CONFIG_BYTES = 1 << 20
_ADVICE = "Use a Llama preset as keras-hub's `save_to_preset` writes it."
_CLASSES = {"LlamaBackbone", "Llama3Backbone"}


class KerasHubPreset:
    """A folder as keras-hub's `save_to_preset` leaves it.

    Args:
        folder: where it is.
        preset: its name if it is one of keras-hub's published presets. Then Meta's epsilon and rotary scaling count,
            since keras-hub's converter loses them for some (`utils/transformers/convert_llama3.py`).

    Raises:
        UserError: a file is missing or damaged, or the model is not a plain Llama in every respect.
    """

    def __init__(self, folder: Path, preset: str | None = None) -> None:
        self._folder, self._preset = folder, preset
        config = read_json(folder / CONFIG, limit_bytes=CONFIG_BYTES)
        self._weights, shards = _weight_files(folder, self._refuse)
        self._tensor_shapes = read_shapes(shards, self._refuse)
        # The embedding is the one layer with two variables, and only where it is not tied; the config does not say.
        tied = not any(name.endswith("/vars/1") for name in self._tensor_shapes)
        self.sizes = _published(
            _read_sizes(Settings(config, f"{folder.name}/{CONFIG}", _ADVICE), tied), preset
        )
        if problem := self.sizes.problem():
            self._refuse(problem)
        self._check_tensors()
        around = (folder / CONFIG, folder / INDEX, *keras_hub_tokenizer.files(folder))
        self.files = (*shards, *(path for path in around if path.is_file()))

    @property
    def licence(self) -> Licence:
        """As the preset's name tells, or the model card and licence file in the folder."""
        family = (self._preset or "").partition("_")[0]
        name = "llama2" if family == "vicuna" else family  # which was made from Llama 2
        return read_licence(self._folder, name or None)

    @property
    def context_length(self) -> None:
        """A preset does not state it."""
        return None

    def tokenizer(self) -> Tokenizer:
        """The preset's vocabulary as a tokenizer."""
        return keras_hub_tokenizer.read_tokenizer(self._folder, self.sizes.vocabulary_size)

    def fill(self, backbone: "keras_hub.models.Llama3Backbone", rounding: str = "none") -> None:
        """Gives a backbone without values its weights, one layer at a time: Keras' own loader knows which is whose."""
        waiting = list(filling.places(backbone))
        refused: list[UserError] = []  # Keras makes another error of what a layer's loading raises

        def load(places: list[filling.Place], store) -> None:
            for number, place in enumerate(places):
                matrix = store[str(number)]
                if (
                    len(place.shape) > 1 and place.attribute != "embeddings"
                ):  # (in, out), heads an axis of their own
                    matrix = matrix.reshape(-1, place.shape[0]).T
                try:
                    place.fill(partial(_rows, matrix), self._refuse, rounding)
                except UserError as error:
                    refused.append(error)
                    raise
                waiting.remove(place)

        by_layer = itertools.groupby(waiting[:], lambda place: id(place.layer))
        own = [list(places) for _, places in by_layer]
        for places in own:
            places[0].layer.load_own_variables = partial(load, places)
        try:
            backbone.load_weights(self._weights)
        except Exception as error:  # of Keras or h5py
            if refused:
                raise refused[0] from None
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            self._refuse(f"{self._weights.name} does not fit: {reason:.200}")
        finally:
            for places in own:
                del places[0].layer.load_own_variables
        if waiting:
            self._refuse(f"{self._weights.name} does not hold {waiting[0].name}")

    def _check_tensors(self) -> None:
        """Keras does not see what a file holds too much, and reads before it compares: so that is done here.

        Shapes are compared as Keras has them, heads an axis of their own; which tensor goes where is up to Keras.
        """
        found, sizes = self._tensor_shapes, self.sizes
        wanted = weight_shapes(sizes) if sizes.num_layers <= len(found) else {}
        if len(found) != len(wanted):
            self._refuse(f"its weights are {len(found)} tensors, which do not make {sizes.num_layers} layers")
        spare = Counter(_keras_shape(name, shape, sizes.head_dim) for name, shape in wanted.items())
        for name, shape in found.items():
            if not spare[shape]:
                self._refuse(f"tensor {name!r:.120} of shape {shape} does not fit its config")
            spare[shape] -= 1

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{self._folder.name} cannot be loaded: {reason}. {_ADVICE}")


def _rows(matrix: "np.ndarray", name: str, start: int, stop: int) -> "np.ndarray":
    """Some rows of a weight that is here already, as `filling.Read`."""
    return matrix[start:stop].astype("float32")


def _keras_shape(name: str, shape: tuple[int, ...], head_dim: int) -> tuple[int, ...]:
    """llama.cpp's (out, in) as Keras stores the same weight."""
    if len(shape) == 1 or name.startswith("token_embd."):
        return shape
    out, into = shape
    if name.endswith((".attn_q.weight", ".attn_k.weight", ".attn_v.weight")):
        return into, out // head_dim, head_dim
    return (into // head_dim, head_dim, out) if name.endswith(".attn_output.weight") else (into, out)


def is_preset(folder: Path) -> bool:
    """Whether a folder is keras-hub's and not Hugging Face's."""
    return "registered_name" in read_json(folder / CONFIG, limit_bytes=CONFIG_BYTES)


def _read_sizes(outer: Settings, tied: bool) -> LlamaSizes:
    if outer.need("class_name", str) not in _CLASSES:
        outer.refuse(
            f"`class_name` must be LlamaBackbone or Llama3Backbone, but is {outer.values['class_name']!r:.40}"
        )
    config = Settings(outer.need("config", dict), outer.place, outer.advice)
    dtype = config.values.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") not in ("DTypePolicy", "Policy"):
        config.refuse(f"its weights are quantised (`dtype` is a {dtype.get('class_name')!s:.40})")
    for key, values in {
        "dropout": (0, 0.0, None),
        "rope_position_scaling_factor": (1.0, 1, None),  # keras-hub never applies it
        "rope_scaling_factor": (1.0, 1, None),
    }.items():
        config.expect(key, *values)
    sizes = LlamaSizes(
        vocabulary_size=config.whole("vocabulary_size"),
        num_layers=config.whole("num_layers"),
        num_query_heads=config.whole("num_query_heads"),
        num_key_value_heads=config.whole("num_key_value_heads"),
        hidden_dim=config.whole("hidden_dim"),
        intermediate_dim=config.whole("intermediate_dim"),
        layer_norm_epsilon=config.need("layer_norm_epsilon", float),
        rope_wavelength=config.need("rope_max_wavelength", float),
        rope_scaling=_scaling(config),
        tied=tied,
    )
    config.refuse_unread({"name", "trainable", "dtype", "tie_word_embeddings"})
    return sizes


def _scaling(config: Settings) -> RopeScaling | None:
    factor = config.get("rope_frequency_adjustment_factor", float)
    if factor is None:
        return None
    return RopeScaling(
        factor=factor,
        low=config.need("rope_low_freq_factor", float),
        high=config.need("rope_high_freq_factor", float),
        length=config.whole("rope_pretraining_sequence_length"),
    )


def _published(sizes: LlamaSizes, preset: str | None) -> LlamaSizes:
    """Meta's own settings for a preset known by name, from the `params.json` of each release."""
    if preset is None or not preset.startswith("llama3"):
        return sizes if preset is None else dataclasses.replace(sizes, layer_norm_epsilon=1e-5)
    factors = {"llama3_": None, "llama3.1": 8.0, "llama3.2": 32.0}
    factor = next(factor for start, factor in factors.items() if preset.startswith(start))
    return dataclasses.replace(
        sizes,
        layer_norm_epsilon=1e-5,
        rope_wavelength=500000.0,
        rope_scaling=None if factor is None else RopeScaling(factor=factor),
    )


def _weight_files(folder: Path, refuse: Any) -> tuple[Path, list[Path]]:
    """What Keras is to load, and the files that hold it."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return single, [single]
    if not index.is_file():
        refuse(f"it has no {WEIGHTS}")
    entries = read_json(index).get("weight_map")
    flat = [
        name
        for value in (entries.values() if isinstance(entries, dict) else ())
        for name in (value if isinstance(value, list) else [value])
    ]
    if not flat:
        refuse(f"{INDEX} has no `weight_map`")
    for name in flat:
        if not isinstance(name, str) or not is_plain_name(name) or not (folder / name).is_file():
            refuse(f"{INDEX} names {name!r:.80}, which is no file of this folder")
    return index, [folder / name for name in sorted(set(flat))]
