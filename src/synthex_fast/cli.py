"""The command ``synthex-fast``: ``validate``, ``top`` and ``node-flags``.

An invalid argument ends it with status 2 and one line on stderr. Each command imports what only it needs.
"""

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import synthex_fast

# The status that a shell reports for a program ended by a signal.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


class _OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage: ``--help`` shows that."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _Terminated(BaseException):
    """SIGTERM was received. Like KeyboardInterrupt, it must not be caught by ``except Exception``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failure, 2 for bad arguments, 130 after
    Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parsed = _parser().parse_args(arguments)
        return parsed.run(parsed, arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="synthex-fast", description=synthex_fast.__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"synthex-fast {synthex_fast.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_validate(commands)
    _add_top(commands)
    _add_node_flags(commands)
    return parser


def _add_validate(commands) -> None:
    validate = commands.add_parser(
        "validate",
        help="run one workload on four versions of a service and compare them",
        description="Runs the workload of the memory report (an analysis of a Python service's memory use, "
        "with recommendations and the gains it expects) on four versions of the service: as it is today, as "
        "the report recommends, as a good engineer tunes it by hand, and with this package. Each runs in a "
        "process of its own. Prints the "
        "measurements next to the report's targets. Takes less than a minute unless --seconds is given.",
        allow_abbrev=False,
    )
    validate.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help="seconds of load, all arms together, in addition to a few seconds of preparation "
        "(default: as much as fits into a minute)",
    )
    validate.add_argument(
        "--arms",
        type=_arms,
        metavar="A,B",
        default=_known_arms(),
        help=f"the arms (versions) to run, separated by commas (default: {','.join(_known_arms())})",
    )
    validate.add_argument(
        "--seed", type=_seed, metavar="N", default=1, help="random seed of the requests (default: 1)"
    )
    validate.add_argument(
        "--json", type=_writable, metavar="FILE", help="also write all measurements to FILE, as JSON"
    )
    validate.add_argument(
        "--limit",
        type=_size,
        metavar="SIZE",
        help="also run each arm at this memory limit, such as 256MB, which the current system outgrows: in a "
        "control group where the system lets one be made (usually as root), else watched and killed; takes about "
        "a minute more",
    )
    validate.add_argument(
        "--collections",
        type=_seconds,
        metavar="S",
        help="also count collections beside a heap of 1,000,000 long-lived objects, S seconds for each arm; it takes "
        "2,700,000 requests to tell none from five full ones an hour",
    )
    validate.set_defaults(run=lambda parsed, arguments: _validate(validate, parsed, arguments))


def _add_top(commands) -> None:
    top = commands.add_parser(
        "top",
        help="watch a process: memory, collections, caches, decisions",
        description="Shows the figures of a process each second, until q or Ctrl-C. The process has the live page "
        "mounted (synthex_fast.exporters.page.asgi or .wsgi), or listens for this command (.listen). Without an "
        "argument, the only one of this user's processes that listens is shown, or several are listed.",
        allow_abbrev=False,
    )
    top.add_argument(
        "process",
        nargs="?",
        metavar="PID|URL",
        help="a process of this user that listens, or the URL of a page such as http://localhost:8000/synthex",
    )
    top.add_argument(
        "--once",
        action="store_true",
        help="print one frame and end; the default unless output is to a terminal",
    )
    top.add_argument("--json", action="store_true", help="print one frame as JSON and end")
    top.set_defaults(run=lambda parsed, _: _top(top, parsed))


def _top(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> int:
    if not parsed.json and find_spec("rich") is None:
        parser.error("needs rich: pip install synthex-fast[top]")

    from synthex_fast.top import loop, sources

    try:
        source = sources.find(parsed.process)
        if isinstance(source, list):
            if parsed.json:
                parser.error(f"{len(source)} processes listen: give the pid of one of them")
            loop.list_processes(source)
            return 0
        console = None if parsed.json else _top_console()
        if console is None or parsed.once or not console.is_terminal:
            loop.once(source, parsed.json, console)
        else:
            loop.watch(source, console)
    except sources.SourceError as error:
        parser.error(str(error))
    except BrokenPipeError:
        # Whoever reads has seen enough; the interpreter would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _top_console():
    from rich.console import Console

    if not sys.stdout.encoding.lower().startswith("utf"):
        # Of a name, what this terminal does not have becomes a question mark.
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, soft_wrap=False)


def _add_node_flags(commands) -> None:
    node_flags = commands.add_parser(
        "node-flags",
        help="print heap flags for a Node process that shares the container",
        description="Prints V8 heap flags, sized from a memory limit, on one line. "
        "Use it as: node $(synthex-fast node-flags) app.js",
        allow_abbrev=False,
    )
    node_flags.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="bytes, a size such as 512MB or 2GB, or a percentage of the container's limit such as 80%% "
        "(default: the container's limit, or the host's memory outside a container)",
    )
    node_flags.add_argument(
        "--share",
        type=_share,
        metavar="S",
        default=0.75,
        help="the share of it for Node's heap, above 0 and up to 1 (default: 0.75)",
    )
    node_flags.add_argument(
        "--env",
        action="store_true",
        help="print NODE_OPTIONS=..., including its current value, for use as: "
        'env "$(synthex-fast node-flags --env)" node app.js',
    )
    node_flags.set_defaults(run=lambda parsed, _: _node_flags(node_flags, parsed))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and up to 1, not {text!r}")
    return share


def _node_flags(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> int:
    from synthex_fast.node import node_options

    try:
        existing = os.environ.get("NODE_OPTIONS", "") if parsed.env else ""
        options = node_options(parsed.memory_limit, share=parsed.share, existing=existing)
    except ValueError as error:
        parser.error(str(error))
    print(f"NODE_OPTIONS={options}" if parsed.env else options)
    return 0


def _known_arms() -> tuple[str, ...]:
    from synthex_fast.validate.arms import ARMS

    return ARMS


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def _arms(text: str) -> tuple[str, ...]:
    arms, known = tuple(part.strip() for part in text.split(",")), _known_arms()
    for arm in arms:
        if arm not in known:
            raise argparse.ArgumentTypeError(f"must be any of {', '.join(known)}, not {arm!r}")
    if len(set(arms)) < len(arms):
        raise argparse.ArgumentTypeError(f"must name each arm once, not {text!r}")
    return arms


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if seed < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")
    return seed


def _size(text: str) -> int:
    from synthex_fast._readings import parse_size

    try:
        return parse_size(text, "size")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a size such as 256MB or 1GB, not {text!r}") from None


def _writable(text: str) -> Path:
    """The path, if a file can be written there. An existing file stays as it is until there are results."""
    path = Path(text)
    existed = path.exists()
    try:
        with path.open("a"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"can't write {text!r}: {error.strerror or error}") from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"can't write {text!r}: not a path") from None
    return path


def _validate(parser: argparse.ArgumentParser, parsed: argparse.Namespace, arguments: list[str]) -> int:
    from synthex_fast.validate.arms import NEEDS

    needed = dict.fromkeys(["rich", *(name for arm in parsed.arms for name in NEEDS[arm])])
    if missing := [name for name in needed if find_spec(name) is None]:
        parser.error(f"needs {' and '.join(missing)}: pip install synthex-fast[validate]")

    from synthex_fast.validate import rounds

    if parsed.seconds is not None and parsed.seconds < (least := rounds.least_seconds(len(parsed.arms))):
        parser.error(f"argument --seconds: must be at least {least:.2f} for {len(parsed.arms)} arms")
    if parsed.limit is not None:
        from synthex_fast.validate import limit

        try:
            limit.check(parsed.limit)
        except ValueError as error:
            parser.error(f"argument --limit: {error}")

    from rich.console import Console

    from synthex_fast.validate import report

    results = rounds.Results(parsed.arms, parsed.seed)
    status = 0
    with _terminated_in_order():
        try:
            with _progress(Console(stderr=True)) as show:
                rounds.run(results, parsed.seconds, show)
                if parsed.collections is not None:
                    from synthex_fast.validate import garbage

                    garbage.run(results, parsed.collections, show)
                if parsed.limit is not None:
                    limit.run(results, parsed.limit, show)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except _Terminated:
            status = TERMINATED
        except rounds.ValidationError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 1
        if not results.complete and not (results.held or results.rounds):
            print(f"{parser.prog}: interrupted before anything was measured", file=sys.stderr)
            return status
        report.show(results, _table_console())
        if parsed.json is not None:
            from json import dumps

            try:
                text = dumps(report.as_json(results, arguments), indent=1, allow_nan=False)
                parsed.json.write_text(text + "\n")
            except OSError as error:
                print(f"{parser.prog}: can't write {str(parsed.json)!r}: {error.strerror}", file=sys.stderr)
                return status or 1
    return status


def _table_console():
    from rich.console import Console

    from synthex_fast.validate.report import PLAIN_WIDTH

    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


@contextmanager
def _terminated_in_order():
    """Turns SIGTERM into an exception, so that the arms' processes are ended and finished rounds are shown."""

    def terminate(_signum, _frame):
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread receives signals, and only it may set handlers.
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(console):
    """Yields ``show(what, share)``: a progress bar on a terminal, elsewhere a line for each new activity."""
    if not console.is_terminal:
        shown = ""

        def show(what: str, _share: float) -> None:
            nonlocal shown
            if what != shown:
                shown = what
                print(what, file=sys.stderr, flush=True)

        yield show
        return

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    # Drawn on each call, not by a thread, which would disturb the arms being timed.
    columns = TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=1.0)

        def show(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share, refresh=True)

        yield show


if __name__ == "__main__":
    sys.exit(main())
