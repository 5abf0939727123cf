"""The command line ``maesil``: its commands, what they share, and how they end.

Exit status: 0 done; 2 bad usage or input; 3 cancelled; 4 out of memory or disk; 1 a bug, with traceback.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NoReturn

from MAESILLib import __version__
from MAESILLib.runtime.errors import (
    EXIT_CANCELLED,
    EXIT_DONE,
    CancelledError,
    InputError,
    MAESILError,
    OutOfMemoryError,
)
from MAESILLib.runtime.events import MODES, Reporter, printable
from MAESILLib.runtime.files import check_name, explain_os_error
from MAESILLib.runtime.stopping import StopRequest

COMMANDS = {
    "demo": "reconstruct the sample CT with the embedded checkpoint",
    "reconstruct": "hide part of a CT and reconstruct it",
    "prepare": "check CTs and store them for training",
    "pretrain": "train a model on prepared CTs",
    "evaluate": "measure checkpoints on prepared CTs",
    "compare": "train and evaluate MAESIL, an AE, a VAE and a VQ-VAE on the same data and budget",
    "probe": "evaluate the frozen encoder with linear probes on points and label maps",
    "features": "write the frozen encoder's features of a CT, with their principal components as colors",
    "similar": "find points with similar features, in a CT and in others",
    "segment": "fill segments from a few strokes, and find them in other CTs",
    "surprise": "map where a CT is not what the model expects from its surroundings",
    "export": "write the pretrained encoder for downstream work",
    "info": "describe a checkpoint, cache, volume or folder of CTs",
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something: not None, False of a flag, or an empty list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_silent = action.default is None or action.default is False or action.default == []
        return action.help if is_silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing its usage and ending the process; options are written out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("maesil").strip()
        raise InputError(f"{command}: {message}" if command else message, f"see {self.prog} --help")


@cache
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
            formatter_class=HelpFormatter,
        )
        _add_common_arguments(command)
        importlib.import_module(f"MAESILLib.commands.{name}").add_arguments(command)
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of every command")
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes all cores")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed")
    group.add_argument("--progress", choices=MODES, default="bar", help="bar on stderr, JSON events on stdout, or off")
    group.add_argument("--stop-file", metavar="FILE", help="stop cleanly when this file appears")
    group.add_argument(
        "--watch-parent",
        nargs="?",
        const=0,
        type=_process_id,
        metavar="PID",
        help="stop cleanly when the parent process, or the ancestor with this id, ends",
    )


def _process_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"invalid process id '{text}'")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    _print_any_name()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv), owns_process=argv is None)
    except BrokenPipeError:
        # the output pipe is closed; what Python still wants to flush at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CANCELLED


def _run(arguments: list[str], owns_process: bool) -> int:
    reporter = Reporter(_wanted_mode(arguments))
    try:
        for argument in arguments:
            check_name(argument)
        args = build_parser().parse_args(arguments)
        stop = StopRequest(args.stop_file, args.watch_parent)
        stop.install()
        reporter.on_reader_gone = lambda: stop.ask("output pipe closed")
        reporter.started(args.command)
        stop.check()
        run = importlib.import_module(f"MAESILLib.commands.{args.command}").run
        with stop.until_first_check(partial(_end_at_once, reporter)) if owns_process else nullcontext():
            run(args, reporter, stop)
    except MAESILError as error:
        return _failed(reporter, error)
    except KeyboardInterrupt:
        reporter.error("cancelled", "stopped by Ctrl-C", "")
        return EXIT_CANCELLED
    except MemoryError:
        return _failed(reporter, OutOfMemoryError("this machine has too little memory", "close other programs"))
    except OSError as error:
        hint = "check the path and its permissions"
        explained = explain_os_error(error, error.filename or "a file", "read or write", hint)
        if not isinstance(explained, MAESILError):
            raise
        return _failed(reporter, explained)
    reporter.done()
    return EXIT_DONE


def _end_at_once(reporter: Reporter, reason: str) -> None:
    try:
        _failed(reporter, CancelledError(f"stopped: {reason}"))
    finally:
        # the output pipe may be closed
        os._exit(EXIT_CANCELLED)


def _failed(reporter: Reporter, error: MAESILError) -> int:
    reporter.error(error.kind, error.message, error.hint)
    return error.exit_status


def _print_any_name() -> None:
    """Print what the terminal's encoding lacks, and what would command it, as escapes: names are anybody's."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # on stderr the reporter does it, whose bar begins its line anew
        write = sys.stdout.write
        sys.stdout.write = lambda text: write(printable(text))  # type: ignore[method-assign]


def _wanted_mode(arguments: list[str]) -> str:
    """Read --progress before the parser of all commands does, so that usage errors are events too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--progress", nargs="?")
    mode = parser.parse_known_args(arguments)[0].progress
    return mode if mode in MODES else "bar"
