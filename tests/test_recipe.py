import dataclasses

import pytest

from keras_mtp.errors import UserError
from keras_mtp.recipe import (
    DataRecipe,
    HeadsRecipe,
    PrefixRecipe,
    Recipe,
    TrainingRecipe,
    apply_overrides,
    available_recipes,
    documented_fields,
    from_toml,
    load_recipe,
    to_toml,
    updated,
)

pytestmark = pytest.mark.any_backend


def test_shipped_recipes_have_the_name_of_their_file_and_a_description():
    assert {"gsm8k", "jsonl"} <= set(available_recipes())
    for name, path in available_recipes().items():
        recipe = load_recipe(name)
        assert recipe == load_recipe(path)
        assert recipe.name == name
        assert recipe.description


def test_resolved_recipe_survives_the_round_trip():
    recipe = apply_overrides(
        load_recipe("gsm8k"), ["heads.weight=0.3", 'prefix.text="a \\"b\\" c"', "training.seed=7"]
    )
    text = to_toml(recipe)
    assert from_toml(text, "recipe.toml") == recipe
    assert all(f"{spec.name} = " in text for _, spec in documented_fields())  # defaults are written out


def test_missing_fields_take_the_defaults():
    assert from_toml("[heads]\ncount = 3\n", "x.toml") == Recipe(heads=HeadsRecipe(count=3))


def test_whole_number_is_a_number_but_true_is_not():
    assert repr(from_toml("[heads]\nweight = 1\n", "x.toml").heads.weight) == "1.0"
    with pytest.raises(
        UserError, match=r"`training\.steps` must be a whole number\. Received: training\.steps=True\."
    ):
        TrainingRecipe(steps=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[heads]\ncuont = 1", "x.toml: Unknown key `heads.cuont`. Did you mean `heads.count`?"),
        ("[trainning]\nsteps = 1", "x.toml: Unknown key `trainning`. Did you mean `training`?"),
        ("batch_size = 4", "Did you mean `evaluation.batch_size`?"),
        ("[training]\nlearnin_rate = 1.0", "Did you mean `training.learning_rate`?"),
        ("xyzzy = 1", "Unknown key `xyzzy`. `keras-mtp recipes --fields` lists all keys."),
        ("heads = 3", "`heads` must be a table: [heads] and its fields below."),
        ("[[heads]]\ncount = 1", "`heads` must be a table"),
        ("[heads]\ncount = 1.0", "`heads.count` must be a whole number. Received: heads.count=1.0."),
        ("[heads]\nfreeze = 1", "`heads.freeze` must be true or false."),
        ("[heads]\nweight = '1'", "`heads.weight` must be a number."),
        ("[heads]\nweight = nan", "`heads.weight` must be finite."),
        ("[data]\nsource = 1", "`data.source` must be a string."),
        ("[heads]\ncount = -1", "`heads.count` must be at least 0. Received: heads.count=-1."),
        ("[training]\nepsilon = 0.0", "`training.epsilon` must be above 0."),
        ("[training]\nlearning_rate_warmup = 1.5", "`training.learning_rate_warmup` must be at most 1."),
        ("[heads]\nkind = 'lineer'", "`heads.kind` must be transformer or sequential or linear. Received: heads.kind='lineer'. Did you mean `linear`?"),
        ("name = '../x'", "`name` must be letters, digits"),
        ("[training]\naccumulation = 3", "`training.accumulation` must divide `training.batch_size`."),
        ("[model]\ndtype = 'bfloat16'", "`model.dtype=bfloat16` needs `training.dtype=mixed_bfloat16`"),
        ("[prefix]\nlength = 0", "The recipe trains nothing"),
        ("[prefix]\ntext = ' '", "`prefix.text` must not be empty"),
        ("[heads]\npurpose = 'fast'", "`heads.purpose` must be quality or speed."),
        ("[heads]\npurpose = 'speed'\ncount = 0", "`heads.count` must be at least 1 with `heads.purpose=speed`"),
        ("[heads]\npurpose = 'speed'", "`heads.freeze` must be false with `heads.purpose=speed`. Received: heads.freeze=true."),
        ("[heads]\npurpose = 'speed'\nfreeze = false\n[training]\nkeep = 'best'", "`training.keep` must be last with"),
        ("[heads]\npurpose = 'speed'\nfreeze = false\n[training]\npatience = 2", "`training.patience` must be 0 with"),
        ("[heads]\npurpose = 'speed'\nfreeze = false\ntarget = 'next'", "`heads.target` must be further with `heads.purpose=speed`"),
        ("[heads]\nkind = 'sequential'\ntarget = 'next'", "`heads.target=next` needs `heads.kind` transformer or linear"),
        ("[heads]\nschedule = 'decaying'", "`heads.schedule` must be constant or ramp_up or decay."),
        ("[data]\nanswers = 'model'", "`data.answers=model` needs `heads.purpose=speed`"),
        ("[tuning]\nmethod = 'lorra'", "`tuning.method` must be one or more of prefix, prefix_kv, lora, full, heads"),
        ("[tuning]\nmethod = 'lora+full'", "`tuning.method` must not join lora and full"),
        ("[tuning]\nlora_targets = 'q'", "`tuning.lora_targets` must be one or more of query"),
        ("[tuning]\nlora_rank = 0", "`tuning.lora_rank` must be at least 1."),
        ("[tuning]\nmethod = 'prefix_kv'\n[prefix]\nlength = 0", "`prefix.length` must be at least 1 with `tuning.method=prefix_kv`."),
        ("[tuning]\nmethod = 'heads'", "`heads.freeze` must be false with `tuning.method=heads`. Received: heads.freeze=true."),
        ("[tuning]\nmethod = 'heads'\n[heads]\ncount = 0", "`heads.count` must be at least 1 with `tuning.method=heads`"),
        ("[tuning]\nmethod = 'full'\n[model]\ndtype = 'bfloat16'\n[training]\ndtype = 'mixed_bfloat16'", "`model.dtype` must be float32 with `tuning.method=full`"),
        ("[heads", "x.toml is not valid TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_with_what_to_do(text, message):
    with pytest.raises(UserError) as caught:
        from_toml(text, "x.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{{ m.a }}\n" * 500, "Think. " * 500, "'" * 3 + '"' * 3 + ". " * 500, "\\\".'." * 200]
)
def test_texts_may_have_any_number_of_dots(text):
    recipe = Recipe(prefix=PrefixRecipe(text=text), data=DataRecipe(template=text))
    assert from_toml(to_toml(recipe), "recipe.toml") == recipe


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 200 + " = 1",
        'a."' + '"."'.join("b" * 200) + '" = 1',
        "x = {a = '''\n''', k" + ".k" * 200 + " = 1, z = ''}",
    ],
)
def test_a_key_of_many_parts_is_refused(text):
    with pytest.raises(UserError, match="more than 100 dots on a line"):
        from_toml(text, "x.toml")


def test_overrides_are_toml_with_bare_words_as_strings():
    recipe = apply_overrides(
        Recipe(),
        ["heads.count=2", "heads.freeze=false", "prefix.start = vocabulary", "prefix.text=two words", "training.epsilon=1e-12"],
    )  # fmt: skip
    assert (recipe.heads.count, recipe.heads.freeze) == (2, False)
    assert (recipe.prefix.start, recipe.prefix.text) == ("vocabulary", "two words")
    assert recipe.training.epsilon == 1e-12


def test_last_override_of_a_key_wins_and_values_may_hold_an_equals_sign():
    recipe = apply_overrides(Recipe(), ["heads.count=2", "heads.count=3", "data.source=a=b"])
    assert (recipe.heads.count, recipe.data.source) == (3, "a=b")


def test_text_that_looks_like_a_number_stays_text_where_text_is_wanted():
    assert apply_overrides(Recipe(), ["data.source=2024"]).data.source == "2024"


def test_overrides_are_checked_together():
    together = ["model.dtype=bfloat16", "training.dtype=mixed_bfloat16"]
    assert apply_overrides(Recipe(), together).model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("heads.cuont=1", "Did you mean `heads.count`?"),
        ("heads=1", "`heads` is a table: set one of its fields, such as `heads.count`."),
        ("heads.count", "`--set` must look like heads.count=2."),
        ("heads.count=two", "`heads.count` must be a whole number. Received: heads.count='two'."),
        ("heads.count=", "`heads.count` must be a whole number. Received: heads.count=''."),
    ],
)
def test_wrong_overrides_are_refused(assignment, message):
    with pytest.raises(UserError) as caught:
        apply_overrides(Recipe(), [assignment])
    assert message in str(caught.value)


def test_updated_checks_keys_and_values():
    assert updated(Recipe(), {"model.name": "a.gguf", "name": "b"}).name == "b"
    with pytest.raises(UserError, match=r"Unknown key `model\.nme`"):
        updated(Recipe(), {"model.nme": "x"})


def test_unknown_recipe_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="Did you mean `gsm8k`"):
        load_recipe("gsm8")
    with pytest.raises(UserError, match="No recipe named"):
        load_recipe(tmp_path)  # a folder
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_recipe(tmp_path / "x.toml")


def test_every_field_is_documented_and_its_default_valid():
    keys = [key for key, _ in documented_fields()]
    assert len(keys) == len(set(keys))
    assert {"name", "heads.count", "training.steps", "evaluation.every"} <= set(keys)
    assert all(spec.metadata["doc"].endswith(".") for _, spec in documented_fields())
    Recipe()  # would refuse a default out of range


def test_recipes_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().heads.count = 2


@pytest.mark.parametrize("method", ["lora", "full", "heads"])
def test_a_method_without_a_prefix_has_none(method):
    recipe = updated(Recipe(), {"tuning.method": method, "heads.freeze": False})
    assert recipe.prefix.length == 16 and recipe.prefix_length == 0
    assert recipe.heads_alone == (method == "heads")


def test_what_is_tuned_in_words():
    recipe = updated(Recipe(), {"tuning.method": "lora+prefix_kv", "tuning.lora_targets": "value+query"})
    assert recipe.tuned == "a prefix of 16 keys and values in every block and LoRA of rank 8 on query, value"
