"""The command line ``maesil``: its commands, what they share, and how they end.

Exit status: 0 done; 2 bad usage or input; 3 cancelled; 4 out of memory or disk; 1 a bug, with traceback.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from MAESILLib import __version__
from MAESILLib.errors import EXIT_CANCELLED, EXIT_DONE, InputError, MAESILError, OutOfMemoryError
from MAESILLib.events import MODES, Reporter
from MAESILLib.files import explain_os_error
from MAESILLib.stopping import StopRequest

COMMANDS = {
    "demo": "reconstruct a generated sample with the embedded checkpoint",
    "reconstruct": "hide part of a CT and reconstruct it",
    "prepare": "check CTs and store them for training",
    "pretrain": "train a model on prepared CTs",
    "evaluate": "measure checkpoints on prepared CTs",
    "info": "say what is in a checkpoint, a cache or a volume",
}


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}", f"see {self.prog} --help")


def build_parser() -> Parser:
    """Return the parser of all commands; importing them does not import torch."""
    parser = Parser(prog="maesil", description="Superpatch masked autoencoders for CT.")
    parser.add_argument("--version", action="version", version=f"maesil {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        importlib.import_module(f"MAESILLib.commands.{name}").add_arguments(command)
        _add_common_arguments(command)
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of every command")
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes all cores")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")
    group.add_argument("--progress", choices=MODES, default="bar", help="bar on stderr, JSON events on stdout, or off")
    group.add_argument("--stop-file", metavar="FILE", help="stop cleanly when this file appears")
    group.add_argument("--watch-parent", action="store_true", help="stop cleanly when the parent process ends")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    reporter = Reporter(_wanted_mode(arguments))
    try:
        args = build_parser().parse_args(arguments)
        stop = StopRequest(args.stop_file, args.watch_parent)
        stop.install()
        reporter.started(args.command)
        importlib.import_module(f"MAESILLib.commands.{args.command}").run(args, reporter, stop)
    except MAESILError as error:
        return _failed(reporter, error)
    except KeyboardInterrupt:
        reporter.error("cancelled", "stopped by Ctrl-C", "")
        return EXIT_CANCELLED
    except MemoryError:
        return _failed(reporter, OutOfMemoryError("this machine has too little memory", "close other programs"))
    except OSError as error:
        explained = explain_os_error(error, error.filename or "a file")
        if not isinstance(explained, MAESILError):
            raise
        return _failed(reporter, explained)
    reporter.done()
    return EXIT_DONE


def _failed(reporter: Reporter, error: MAESILError) -> int:
    reporter.error(error.kind, error.message, error.hint)
    return error.exit_status


def _wanted_mode(arguments: list[str]) -> str:
    """Read --progress before the parser does, so that usage errors are events too."""
    for number, argument in enumerate(arguments):
        value = argument.partition("=")[2] if argument.startswith("--progress=") else ""
        if argument == "--progress" and number + 1 < len(arguments):
            value = arguments[number + 1]
        if value in MODES:
            return value
    return "bar"
