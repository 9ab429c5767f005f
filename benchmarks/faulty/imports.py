"""Everything that a recipe needs, imported once before processes are forked."""

from toolkit import cli

RECIPES = [cli.recipe(path.stem) for path in sorted(cli.RECIPES.glob("*.py"))]
