"""The ``nvtxmoe`` command: it finds the verb, and turns errors into one line and an exit code.

A verb is one module of ``nvtxmoe.commands`` with a function of its name, found by being there. It is imported only when
it runs: the list of verbs comes from the names of the files, and their help from the first line of each docstring.
"""

from __future__ import annotations

import ast
import gc
import os
import pkgutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, resources
from pathlib import Path

import click

from nvtxmoe import commands
from nvtxmoe._version import __version__
from nvtxmoe.errors import BAD_INPUT, NvtxmoeError, shortened
from nvtxmoe.extras import missing
from nvtxmoe.terminal_text import harmless

INTERNAL_ERROR = 1
INTERRUPTED = 130
PIPE_CLOSED = 1  # as click and rich have it
#: New objects after which Python looks for cycles. Imports and tables make many objects and hardly a cycle.
COLLECT_EVERY = 50_000


def command_names() -> list[str]:
    """Every verb, in the order of the alphabet."""
    modules = (info.name for info in pkgutil.iter_modules(commands.__path__))
    return [name.replace("_", "-") for name in sorted(modules) if not name.startswith("_")]


def command_help(name: str) -> str:
    """What a verb does, in one line: the first of its module's docstring, which is read without importing it."""
    source = resources.files(commands).joinpath(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return command_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in command_names():
            return None
        name = cmd_name.replace("-", "_")
        made: click.Command = getattr(import_module(f"nvtxmoe.commands.{name}"), name)
        return made

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; one that is misspelt is refused with those that look like it."""
        name = args[0]
        similar = [] if name in command_names() else get_close_matches(name.lower(), command_names())
        if similar:
            ctx.fail(f"No such command {name!r}. Did you mean {' or '.join(similar)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, command_help(name)) for name in command_names()])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nvtxmoe")
def cli() -> None:
    """Which experts, which layers, how many microseconds.

    nvtxmoe joins the routing of a mixture-of-experts model, recorded as NVTX payloads, with the GPU kernels of
    the same Nsight Systems capture.

    \b
    Example:
      nvtxmoe demo
      nvtxmoe analyze report1.nsys-rep -o results
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 bad input, 3 --strict, 4 a failed gate, 1 a bug, 130 Ctrl-C."""
    gc.set_threshold(COLLECT_EVERY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  until the end
    for stream in (sys.stdout, sys.stderr):  # a path or kernel name need not fit the terminal's encoding
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    code = run(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.stdout.flush()
    except OSError as error:  # the reader has gone, or the disk of a redirected output is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            code = code or _fail(error, f"standard output: {error.strerror}", BAD_INPUT, debug=False)
        code = code or PIPE_CLOSED
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run the command line and return the exit code."""
    debug = "--debug" in argv[: argv.index("--") if "--" in argv else len(argv)]
    try:
        code = cli.main(args=argv or ["--help"], prog_name="nvtxmoe", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        return _fail(error, _usage(error), error.exit_code, debug)
    except (click.Abort, KeyboardInterrupt):
        print("nvtxmoe: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except NvtxmoeError as error:
        return _fail(error, str(error), error.exit_code, debug)
    except ModuleNotFoundError as error:
        extra = missing(error)
        if extra is None:
            return _fail(error, _internal(error), INTERNAL_ERROR, debug)
        return _fail(error, str(extra), extra.exit_code, debug)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(error, f"{where}{error.strerror or error}", BAD_INPUT, debug)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the panics of Rust libraries are no Exception
        return _fail(error, _internal(error), INTERNAL_ERROR, debug)
    return code if isinstance(code, int) else 0


def _internal(error: BaseException) -> str:
    message = f"internal error, {type(error).__name__}: {shortened(str(error))}. Run again with --debug and report it"
    return " ".join(message.split())


def _usage(error: click.ClickException) -> str:
    message = shortened(error.format_message().rstrip("."))
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    return f"{message}{'' if message.endswith('?') else '.'} See `{context.command_path} --help`"


def _fail(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        raise error
    # Names come from files: one line, and nothing that a terminal would obey.
    print(f"nvtxmoe: {harmless(message, keep='')}", file=sys.stderr)  # noqa: T201
    return code
