"""What the recipes of this folder share, and all that knows nsys's recipe API, which changes from version to version.

Mapper and reducer are nvtxmoe_analysis's. Of nsys_recipe only this is used: ``Recipe`` (``add_output_file``,
``create_notebook``, ``create_analysis_file``, ``run``, ``get_argument_parser``), ``Option``, the logger and
``find_installed_file``. Its data service is not: it is the part that changed most (its arguments; that of 2023.4 does
not import on Python 3.12), and it can't ask for the binary payloads.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from nsys_recipe.lib import recipe
from nsys_recipe.lib.args import Option
from nsys_recipe.log import logger

try:
    import click

    from nvtxmoe.commands._selection import numbers, step_range
    from nvtxmoe.errors import NvtxmoeError
    from nvtxmoe_analysis.recipes import gather_report, write_reports

    # Looked for, not imported: nsys forks its workers off this process, and polars has threads.
    if find_spec("polars") is None:
        raise ModuleNotFoundError("No module named 'polars'")
except ImportError as error:
    raise ImportError(
        f"{error}. nsys runs recipes with the python3 of the PATH, {sys.executable}: activate the environment in which "
        "nvtxmoe is installed (source .venv/bin/activate), or install nvtxmoe into this one, and run again"
    ) from error

#: Options of nsys that recipes have, by what people write. In 2023.4 a recipe adds all of them; later versions have
#: --output and --force-overwrite already, and a second one is an error.
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "--input": ("INPUT", {"required": True}),
    "--output": ("OUTPUT", {}),
    "--force-overwrite": ("FORCE_OVERWRITE", {}),
    "--csv": ("CSV", {}),
}
NOTEBOOK = "analysis.ipynb"


class MoeRecipe(recipe.Recipe):  # type: ignore[misc]  # nsys_recipe is only there where nsys runs it
    """A recipe that writes some of the files of ``nvtxmoe analyze``, with a notebook over them.

    The files are those that name the recipe in their declaration, see ``nvtxmoe_analysis.outputs.spec``.
    """

    @classmethod
    def get_argument_parser(cls) -> Any:
        """nsys's parser with the options of recipes and the filters of ``nvtxmoe analyze``."""
        parser = super().get_argument_parser()
        probe = super().get_argument_parser()
        probe.add_context_arguments()  # nsys adds these itself, after this has returned
        option_names = {name for action in probe._actions for name in action.option_strings}
        for name, (option, details) in _OPTIONS.items():
            if name not in option_names:
                parser.add_recipe_argument(Option[option], **details)
        group = parser.add_argument_group("Filters, as those of nvtxmoe analyze")
        group.add_argument(
            "--steps", metavar="A:B", type=_argument_type(step_range), help="only steps A to B, both inclusive"
        )
        group.add_argument("--skip-first", metavar="N", type=_count, default=0, help="leave out each rank's first N")
        group.add_argument("--only", choices=["prefill", "decode", "mixed"], help="only steps that schedule just this")
        for name in ("--layers", "--ranks"):
            kind = _argument_type(partial(numbers, option=name))
            group.add_argument(name, metavar="LIST", type=kind, help="only these, as 0,3,8-11")
        return parser

    def run(self, context: Any) -> None:
        """Map over the reports, reduce, write."""
        super().run(context)
        filters = _filters(self._parsed_args)
        inputs = [str(Path(report).absolute()) for report in self._parsed_args.input]
        try:
            facts = context.wait(context.map(gather_report, inputs, nsys=_nsys(), filters=filters))
            written = write_reports(
                facts,
                Path(self.add_output_file(NOTEBOOK)).parent,
                recipe=self.get_recipe_name(),
                filters=filters,
                csv=self._parsed_args.csv,
            )
        except NvtxmoeError as error:
            _fail(error)
        if written.reasons:
            logger.warning(f"The capture is {written.verdict}: {'; '.join(written.reasons)}")
        self.create_notebook(NOTEBOOK)
        self._analysis_dict.update(
            {"EndTime": str(datetime.now()), "InputFiles": inputs, "Outputs": self._output_files}
        )
        self.create_analysis_file()


def _nsys() -> str | None:
    """The nsys that exports reports: the one that NVTXMOE_NSYS names, else the one that runs this."""
    if os.environ.get("NVTXMOE_NSYS"):
        return os.environ["NVTXMOE_NSYS"]
    try:
        from nsys_recipe import nsys_constants  # noqa: PLC0415  internal: a version may move them
        from nsys_recipe.lib import nsys_path  # noqa: PLC0415

        return str(nsys_path.find_installed_file(nsys_constants.NSYS_EXE_NAME))
    except (ImportError, AttributeError):
        return None  # the nsys of the PATH


def _filters(parsed: argparse.Namespace) -> dict[str, Any]:
    first, last = parsed.steps or (None, None)
    return {
        "first_step": first,
        "last_step": last,
        "skip_first": parsed.skip_first,
        "only": parsed.only,
        "layers": parsed.layers,
        "ranks": parsed.ranks,
    }


def _argument_type(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """What reads an option of click's, for argparse."""

    def type_(text: str) -> Any:
        try:
            return read(text)
        except click.BadParameter as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return type_


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps")
    return int(text)


def _fail(error: NvtxmoeError) -> NoReturn:
    """End as nsys's own recipes do where they can't go on: one line, status 1, no output folder."""
    logger.error(str(error))
    sys.exit(1)
