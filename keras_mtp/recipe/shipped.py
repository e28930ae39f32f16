"""Recipes by name: those that come with the package."""

from pathlib import Path

from keras_mtp.errors import UserError
from keras_mtp.recipe.recipe import Recipe
from keras_mtp.recipe.spelling import closest
from keras_mtp.recipe.toml import from_toml, parse_toml, read_text


def available_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return shipped_files(".")


def shipped_files(folder: str) -> dict[str, Path]:
    """The TOML files in a folder of `recipes/`, by name: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    recipes = inside if inside.is_dir() else package.parent / "recipes"
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
            f"No recipe named {str(name_or_path)!r}, nor a file of that name.{closest(str(name_or_path), list(known))} "
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
