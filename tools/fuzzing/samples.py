"""Good files, as small as they can be, to be damaged: each function fills a folder."""

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
TEMPLATES = (
    b"{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m['content'] | trim }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}",
    b"{% macro turn(role, text='-') %}[{{ role }}|{{ text | upper }}]{% endmacro %}{% set ns = namespace(n=0) %}"
    b"{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ turn(m.role, m.content) }}{% endfor %}{{ ns.n }}",
    b"{{ messages | tojson(indent=2) }}{% set x = [1, 'b', (2, 3), {'k': none}] %}{{ x[1:] | join(',') | replace('b', 'cc') }}"
    b"{{ raise_exception('no') if messages | length > 9 else range(3) | list }}",
)


def small_gguf(folder: Path) -> None:
    """Every type of value once, and two tensors."""
    import gguf

    writer = gguf.GGUFWriter(folder / "x.gguf", "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 7)
    writer.add_float32("a.float", 1.5)
    writer.add_float64("a.double", 1.5)
    writer.add_bool("a.bool", True)
    writer.add_array("a.texts", ["one", "two", "three"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("x", np.ones((4, 32), "float32"))
    writer.add_tensor(
        "y",
        gguf.quants.quantize(np.ones((2, 64), "float32"), gguf.GGMLQuantizationType.Q4_0),
        raw_dtype=gguf.GGMLQuantizationType.Q4_0,
    )
    _write_out(writer)


def gguf(folder: Path) -> None:
    """A whole tiny Llama."""
    from tests.tiny_gguf import write_tiny_gguf

    write_tiny_gguf(
        folder / "x.gguf", num_layers=1, hidden=8, heads=2, kv_heads=1, inner=8, vocabulary=["has"]
    )


def gguf_metadata(folder: Path) -> None:
    """The same, and its metadata as JSON."""
    from keras_mtp.models.gguf import GGUFFile

    gguf(folder)
    (folder / "metadata.json").write_text(json.dumps(GGUFFile(folder / "x.gguf").metadata), encoding="utf-8")


def gguf_sentencepiece(folder: Path) -> None:
    """The same with Llama 2's kind of tokenizer."""
    gguf_metadata(folder)
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "h",
        "a",
        "ha",
        *"sTompleiO4",
    ]
    pieces = pieces[: metadata["llama.vocab_size"]]
    keys = {
        "tokens": pieces,
        "scores": [-float(n) for n in range(len(pieces))],
        "model": "llama",
        "pre": "default",
    }
    keys["token_type"] = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)]  # as `Kind` has them
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    for key in ("merges", "unknown_token_id", "bos_token_id", "eos_token_id", "padding_token_id"):
        metadata.pop(f"tokenizer.ggml.{key}")
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {f"layer.{n}": np.ones((2, n + 1), "float32") for n in range(3)} | {
        "half": np.ones(3, "float16")
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def safetensors_shards(folder: Path) -> None:
    from safetensors.numpy import save_file

    shards = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}
    for name, tensors in shards.items():
        save_file({tensor: np.ones(2, "float32") for tensor in tensors}, folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": 24}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def hugging_face(folder: Path) -> None:
    """A folder as transformers writes it, made by hand since importing transformers takes ten seconds."""
    from safetensors.numpy import save_file

    from tests import tiny_tokenizers

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 700, "hidden_size": 8, "rms_norm_eps": 1e-5,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
        "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "tie_word_embeddings": True, "torch_dtype": "float32",
        "max_position_embeddings": 64, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "embed_tokens": (700, 8),
        "norm": (8,),
        "layers.0.input_layernorm": (8,),
        "layers.0.post_attention_layernorm": (8,),
    }
    parts = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)}
    shapes |= {f"layers.0.self_attn.{name}": shape for name, shape in parts.items()}
    shapes |= {
        f"layers.0.mlp.{name}_proj": (8, 12) if name == "down" else (12, 8) for name in ("gate", "up", "down")
    }
    save_file(
        {f"model.{name}.weight": np.ones(shape, "float16") for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    content = _small_vocabulary(json.loads(tiny_tokenizers.byte_level("smollm")))
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    special = {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": None,
        "add_bos_token": False,
    }
    added = {
        str(token["id"]): {"content": token["content"], "special": True} for token in content["added_tokens"]
    }
    template = [{"name": "default", "template": TEMPLATES[0].decode()}]
    extra = {"added_tokens_decoder": added, "chat_template": template, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | extra))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: 'llama3.2'\ntags:\n- x\n---\n\n# A model\n"
    )


def preset(folder: Path) -> None:
    """A folder as keras-hub writes it, by hand: importing it takes ten seconds."""
    import h5py

    sizes = {
        "vocabulary_size": 760,
        "num_layers": 1,
        "num_query_heads": 2,
        "num_key_value_heads": 1,
        "hidden_dim": 8,
        "intermediate_dim": 12,
    }
    rope = {
        "rope_max_wavelength": 10000,
        "rope_frequency_adjustment_factor": 8.0,
        "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0,
    }
    rope |= {"rope_pretraining_sequence_length": 100, "rope_position_scaling_factor": 1.0}
    dtype = {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": "float32"},
        "registered_name": None,
    }
    config = {
        "name": "x",
        "trainable": True,
        "dtype": dtype,
        "layer_norm_epsilon": 1e-5,
        "dropout": 0,
        **sizes,
        **rope,
    }
    outer = {
        "module": "keras_hub.src.models.llama3.llama3_backbone",
        "class_name": "Llama3Backbone",
        "config": config,
    }
    (folder / "config.json").write_text(json.dumps(outer | {"registered_name": "keras_hub>Llama3Backbone"}))
    shapes = {"reversible_embedding": (760, 8), "llama_layer_norm": (8,)}
    block = {"_self_attention_layer/_query_dense": (8, 2, 4), "_self_attention_layer/_key_dense": (8, 1, 4)}
    block |= {
        "_self_attention_layer/_value_dense": (8, 1, 4),
        "_self_attention_layer/_output_dense": (2, 4, 8),
    }
    block |= {
        "_self_attention_layernorm": (8,),
        "_feedforward_layernorm": (8,),
        "_feedforward_gate_dense": (8, 12),
    }
    block |= {"_feedforward_intermediate_dense": (8, 12), "_feedforward_output_dense": (12, 8)}
    shapes |= {f"llama_transformer_decoder/{name}": shape for name, shape in block.items()}
    with h5py.File(folder / "model.weights.h5", "w") as file:
        for name, shape in shapes.items():
            group = file.create_group(f"layers/{name}/vars")
            group.attrs["name"] = name
            group.create_dataset("0", data=np.ones(shape, "float32"))
    _preset_vocabulary(folder)


def preset_sentencepiece(folder: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    from tests import tiny_tokenizers

    preset(folder)
    proto = sentencepiece_model_pb2.ModelProto.FromString(tiny_tokenizers.sentencepiece_model())
    del proto.pieces[400:]
    (folder / "assets/tokenizer/vocabulary.spm").write_bytes(proto.SerializeToString())
    (folder / "tokenizer.json").write_text('{"class_name": "LlamaTokenizer", "config": {}}')


def template(folder: Path) -> None:
    (folder / "x.jinja").write_bytes(TEMPLATES[0])


def jsonl(folder: Path) -> None:
    rows: list[dict] = [{"prompt": f"{n} + 1?", "response": f"{n + 1}"} for n in range(4)]
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    _write_lines(folder / "my.jsonl", [*rows, {"id": 7, "messages": turns}])


def gsm8k(folder: Path) -> None:
    for split in ("train", "test"):
        _write_lines(
            folder / f"{split}.jsonl",
            [{"question": f"{split} {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(3)],
        )


def instruct(folder: Path) -> None:
    for split in ("train", "test"):
        _write_lines(
            folder / f"{split}.jsonl",
            [{"prompt": f"{split} {n}", "response": "b", "source": "c"} for n in range(3)],
        )


def coqa(folder: Path) -> None:
    for name in ("train", "dev"):
        texts = [{"input_text": f"{name} {n}", "turn_id": n} for n in (1, 2)]
        story = {
            "id": name,
            "source": "cnn",
            "story": f"{name}: a passage.",
            "questions": texts,
            "answers": texts,
        }
        (folder / f"{name}.json").write_text(
            json.dumps({"version": "1.0", "data": [story | {"additional_answers": {"0": texts}}]})
        )


def recipe(folder: Path) -> None:
    from keras_mtp.recipe import available_recipes

    (folder / "x.toml").write_bytes(available_recipes()["gsm8k"].read_bytes())


def arms(folder: Path) -> None:
    from keras_mtp.study.arms import available_arms

    (folder / "x.toml").write_bytes(next(iter(available_arms().values())).read_bytes())


def run(folder: Path) -> None:
    """A finished run of one step, made by the pipeline itself, with the model it belongs to."""
    from keras_mtp import pipeline
    from tests import tiny_run

    tiny_run.write_inputs(folder)
    changes = {"heads__count": 1, "heads__warmup_steps": 0, "training__steps": 1, "evaluation__limit": 1}
    pipeline.run(tiny_run.recipe(folder, **changes), folder / "run", progress=False)


def checkpoint(folder: Path) -> None:
    """That run's checkpoint. It is made in another process: one with Keras' threads in it should not fork."""
    with tempfile.TemporaryDirectory() as place:
        code = "import sys; from pathlib import Path; from tools.fuzzing import samples; samples.run(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, place], cwd=ROOT, check=True, capture_output=True)
        shutil.copytree(Path(place) / "run" / "checkpoint", folder, dirs_exist_ok=True)


def _small_vocabulary(content: dict) -> dict:
    """A `tokenizer.json` with the bytes and twenty merges, which is read in a tenth of the time."""
    model = content["model"]
    model["merges"] = model["merges"][:20]
    made = {"".join(merge) for merge in model["merges"]}
    model["vocab"] = {
        token: id
        for token, id in model["vocab"].items()
        if len(token) == 1 or token in made or token.startswith("<|")
    }
    return content


def _preset_vocabulary(folder: Path) -> None:
    assets = folder / "assets/tokenizer"
    assets.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(
        '{"class_name": "Llama3Tokenizer", "config": {"eos_token": "<|end_of_text|>"}}'
    )
    content = _llama_3()
    (assets / "vocabulary.json").write_text(json.dumps(content["model"]["vocab"]), encoding="utf-8")
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    (assets / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")


@functools.cache
def _llama_3() -> dict:
    from tests import tiny_tokenizers

    return _small_vocabulary(json.loads(tiny_tokenizers.byte_level("llama-bpe")))


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_out(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
