"""Print the path of the nsys recipes: NSYS_RECIPE_PATH=$(nvtxmoe recipes-path) nsys recipe NAME."""

from __future__ import annotations

import sys
from pathlib import Path

import nvtxmoe
from nvtxmoe.commands._common import command
from nvtxmoe.errors import NvtxmoeError

#: Name of the folder: in an installed package inside it, in a clone (and an editable installation) beside it.
RECIPES = "recipes"
#: A file that tells that it is ours.
SHARED = "nvtxmoe_recipe.py"


@command("recipes-path", "nvtxmoe recipes-path")
def recipes_path() -> None:
    """The folder of the nsys recipes moe_expert_sum, moe_layer_corr and moe_straggler.

    NSYS_RECIPE_PATH=$(nvtxmoe recipes-path) nsys recipe moe_expert_sum --input reports/

    nsys runs recipes with the python3 of the PATH: it has to be one in which nvtxmoe is installed.
    """
    sys.stdout.write(f"{find_recipes(Path(nvtxmoe.__file__).parent)}\n")


def find_recipes(package: Path) -> Path:
    """The folder that NSYS_RECIPE_PATH has to name.

    Raises:
        NvtxmoeError: it was not installed.
    """
    for parent in (package, package.parent):
        if (parent / RECIPES / SHARED).is_file():
            return parent / RECIPES
    raise NvtxmoeError("the recipes are missing", where=package, remedy="Install nvtxmoe again, with pip")
