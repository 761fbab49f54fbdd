"""How often each expert was chosen: the standard set of analyze, and the other tables that need no GPU time."""

from nvtxmoe_recipe import MoeRecipe


class MoeExpertSum(MoeRecipe):
    """See the module."""
