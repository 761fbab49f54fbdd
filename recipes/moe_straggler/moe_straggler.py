"""Ranks compared, step by step and layer by layer, and how long collectives wait."""

from nvtxmoe_recipe import MoeRecipe


class MoeStraggler(MoeRecipe):
    """See the module."""
