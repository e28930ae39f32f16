"""A recipe: everything that decides a run, read from TOML into frozen dataclasses.

    model, start, data, tuning, prefix, heads, training, evaluation, distribution
                     a file for each table, by its name
    recipe           the tables together
    table            what they have in common: fields that check their values
    contradictions   values that do not go together, over all tables
    keys             dotted keys: heads.count
    spelling         what a misspelt one was meant to be
    toml             from TOML, and back
    overrides        other values: --set
    shipped          the recipes that come with the package, by name

A recipe only picks; the library does. Every field is defined, documented and given its default in its table's file and
nowhere else; `keras-mtp recipes --fields` prints the same text. A misspelt key, a wrong type or an impossible value is
refused with a message that says what to write instead.
"""

from keras_mtp.recipe.data import DataRecipe
from keras_mtp.recipe.distribution import DistributionRecipe
from keras_mtp.recipe.evaluation import EvaluationRecipe
from keras_mtp.recipe.heads import HeadsRecipe
from keras_mtp.recipe.keys import documented_fields, flat
from keras_mtp.recipe.model import ModelRecipe
from keras_mtp.recipe.overrides import apply_overrides, updated, with_options
from keras_mtp.recipe.prefix import PrefixRecipe
from keras_mtp.recipe.recipe import Recipe
from keras_mtp.recipe.shipped import available_recipes, load_recipe, shipped_files
from keras_mtp.recipe.start import StartRecipe
from keras_mtp.recipe.toml import from_tables, from_toml, parse_toml, read_text, to_toml
from keras_mtp.recipe.training import TrainingRecipe
from keras_mtp.recipe.tuning import TuningRecipe

__all__ = [
    "DataRecipe",
    "DistributionRecipe",
    "EvaluationRecipe",
    "HeadsRecipe",
    "ModelRecipe",
    "PrefixRecipe",
    "Recipe",
    "StartRecipe",
    "TrainingRecipe",
    "TuningRecipe",
    "apply_overrides",
    "available_recipes",
    "documented_fields",
    "flat",
    "from_tables",
    "from_toml",
    "load_recipe",
    "parse_toml",
    "read_text",
    "shipped_files",
    "to_toml",
    "updated",
    "with_options",
]
