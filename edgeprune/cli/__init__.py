"""The command line: one file a command, loaded only when it is called."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from typing import Any

import click

from edgeprune._version import __version__
from edgeprune.errors import EdgePruneError

COMMANDS = {
    "run": "Train one model together on the devices of a fleet.",
    "serve": "Lead a federation of real machines.",
    "join": "Take part in one with this device.",
    "prune": "Cut a model down to a budget and write the smaller one.",
    "export": "Write a trained model, or one device's part of it, as ONNX.",
    "infer": "Run an exported file on real data.",
    "report": "Draw one self-contained page about runs.",
    "profile": "Measure what this device needs for a task.",
    "plan": "Say what every device of a fleet would get, and why.",
    "bench": "Measure latency, throughput and energy on this device.",
    "doctor": "Say what this machine is and whether everything works.",
    "data": "List, fetch and verify data sets.",
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# A group that was called alone; click before 8.2 prints its help without an error.
_HELP_WANTED: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _Commands(click.Group):
    """Loads ``edgeprune.cli.NAME`` when NAME is called, so that help does not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgeprune.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeprune")
def cli() -> None:
    """Train one model together on unequal edge devices, each on the part that fits it."""


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and a non-zero status, never a traceback."""
    with contextlib.suppress(AttributeError):  # no stream at all, or one that somebody put there
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name that the terminal cannot show
    try:
        status = cli.main(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # what does not fit is an error here, not a traceback at the interpreter's end
    except EdgePruneError as error:
        _fail(str(error), 1)
    except _HELP_WANTED as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see '{context.command_path} --help'" if context is not None else ""
        _fail(error.format_message().rstrip(".") + hint, 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped; a run goes on with --resume", 130)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "edgeprune"):
            raise
        _fail(
            f"this Python ({sys.executable}) has no {package!r}; install edgeprune into it with what it needs ('pip "
            "install .' in its folder; on a Jetson NVIDIA's torch first: docs/jetson.md)",
            1,
        )
    except BrokenPipeError:
        _drop_output()
        sys.exit(0)
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        _drop_output()
        _fail(f"the output cannot be written ({error.strerror}); free some space, or send it elsewhere", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _drop_output() -> None:
    """What is still to be printed has no place; without this the interpreter tries once more as it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str, status: int) -> None:
    print(f"edgeprune: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)
