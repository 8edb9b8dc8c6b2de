"""The command ``synthex-fast``: ``validate``, ``soak``, ``top`` and ``node-flags``.

An invalid argument ends it with status 2 and one line on stderr. Each command imports what only it needs.
"""

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

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
    Ctrl-C, 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parsed = _parser().parse_args(arguments)
        return parsed.run(parsed, arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except _Terminated:
        # While results were shown or written.
        return TERMINATED


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="synthex-fast", description=synthex_fast.__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"synthex-fast {synthex_fast.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_validate(commands)
    _add_soak(commands)
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
        help=f"the arms (versions) to run, separated by commas (default: {','.join(_known_arms())})",
    )
    validate.add_argument("--seed", type=_seed, metavar="N", help="random seed of the requests (default: 1)")
    validate.add_argument(
        "--json", type=_writable, metavar="FILE", help="also write all measurements to FILE, as JSON"
    )
    validate.add_argument(
        "--html",
        type=_writable,
        metavar="FILE",
        help="also write the table and plots to FILE, as one page that needs no network",
    )
    validate.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="run nothing, but compare two files that --json wrote",
    )
    validate.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="run nothing, but write --html from what --json wrote",
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
    _add_http(validate)
    validate.set_defaults(run=lambda parsed, arguments: _validate(validate, parsed, arguments))


# For `validate --http`, by what each is imported as.
_HTTP_PACKAGES = ("gunicorn", "httptools", "starlette", "uvicorn", "uvicorn_worker", "uvloop")
# With `--http`, the share of --seconds for the comparison in process.
_SHARE_IN_PROCESS = 0.25


def _add_http(validate: argparse.ArgumentParser) -> None:
    http = validate.add_argument_group(
        "over HTTP",
        "each version behind uvicorn, and behind gunicorn with four workers, on the loopback interface",
    )
    http.add_argument(
        "--http",
        nargs="?",
        choices=("also", "only"),
        const="also",
        help="measure over HTTP too, or only that; takes about three minutes more",
    )
    http.add_argument(
        "--rate",
        type=_rate,
        metavar="R",
        help="requests a second in the rounds at a fixed rate (default: 40 %% of what the slowest version serves)",
    )
    http.add_argument(
        "--heap-objects",
        type=_heap_objects,
        metavar="N",
        help="objects that each version holds for as long as it runs (default: 1,000,000)",
    )
    http.add_argument(
        "--port",
        type=_port,
        metavar="P",
        help="the first of as many ports as there are versions (default: any that are free)",
    )


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 100_000:
        raise argparse.ArgumentTypeError(
            f"must be a number of requests a second above 0 and up to 100,000, not {text!r}"
        )
    return rate


def _heap_objects(text: str) -> int:
    try:
        objects = int(text)
    except ValueError:
        objects = -1
    if not 0 <= objects <= 100_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 100,000,000, not {text!r}")
    return objects


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65,535, not {text!r}")
    return port


def _check_http(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    if parsed.http is None:
        for option, value in (
            ("--rate", parsed.rate),
            ("--heap-objects", parsed.heap_objects),
            ("--port", parsed.port),
        ):
            if value is not None:
                parser.error(f"argument {option}: needs --http")
        return
    if sys.platform == "win32":
        parser.error("argument --http: its servers don't run on Windows")
    if missing := [name for name in _HTTP_PACKAGES if find_spec(name) is None]:
        parser.error(f"needs {' and '.join(missing)}: pip install synthex-fast[validate-http]")

    from synthex_fast.validate.http import rounds as over_http

    arms = len(parsed.arms)
    if parsed.seconds is not None and (
        parsed.seconds * _http_share(parsed) < (least := over_http.least_seconds(arms))
    ):
        least = math.ceil(least / _http_share(parsed))
        parser.error(f"argument --seconds: must be at least {least} for {arms} arms with --http")
    if parsed.port is not None and parsed.port + arms - 1 > 65_535:
        parser.error(f"argument --port: {arms} arms need {arms} ports from there on, up to 65,535")


def _http_share(parsed: argparse.Namespace) -> float:
    return 1.0 if parsed.http == "only" else 1.0 - _SHARE_IN_PROCESS


def _measure(parsed: argparse.Namespace, results: Any, show: Callable[[str, float], None]) -> None:
    """Fill the results with all that was asked for."""
    from synthex_fast.validate import rounds

    if parsed.http is None:
        rounds.run(results, parsed.seconds, show)
    else:
        _measure_over_http(parsed, results, show)
    # Each part says so when it is done, but an interruption of a later one is one of the run.
    results.complete = False
    if parsed.collections is not None:
        from synthex_fast.validate import garbage

        garbage.run(results, parsed.collections, show)
    if parsed.limit is not None:
        from synthex_fast.validate import limit

        limit.run(results, parsed.limit, show)
    results.complete = True


def _measure_over_http(parsed: argparse.Namespace, results: Any, show: Callable[[str, float], None]) -> None:
    from synthex_fast.validate import rounds
    from synthex_fast.validate.http import rounds as over_http

    http_seconds = None if parsed.seconds is None else parsed.seconds * _http_share(parsed)
    first = 0.0
    # Before the minute in process, since that would be for nothing.
    over_http.check_port(parsed.port, len(parsed.arms))
    if parsed.http == "also":
        first = _SHARE_IN_PROCESS
        in_process = None if parsed.seconds is None else parsed.seconds - http_seconds
        rounds.run(results, in_process, lambda what, share: show(what, share * first))
    over_http.run(
        results,
        http_seconds,
        lambda what, share: show(what, first + share * (1 - first)),
        rate=parsed.rate,
        heap_objects=over_http.HEAP_OBJECTS if parsed.heap_objects is None else parsed.heap_objects,
        port=parsed.port,
    )


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

    runs = parsed.compare is None and parsed.source is None
    arms = _known_arms() if parsed.arms is None else parsed.arms
    needed = dict.fromkeys(["rich", *(name for arm in arms for name in NEEDS[arm] if runs)])
    if missing := [name for name in needed if find_spec(name) is None]:
        parser.error(f"needs {' and '.join(missing)}: pip install synthex-fast[validate]")
    if parsed.html is not None and find_spec("matplotlib") is None:
        parser.error("argument --html: needs matplotlib: pip install synthex-fast[html]")
    if not runs:
        return _revisit(parser, parsed)
    parsed.arms = arms
    if parsed.json is not None and parsed.html is not None and _are_same(parsed.json, parsed.html):
        parser.error("argument --html: is the file that --json writes")

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

    _check_http(parser, parsed)
    results = rounds.Results(parsed.arms, 1 if parsed.seed is None else parsed.seed)
    status = 0
    with _terminated_in_order():
        try:
            with _progress(Console(stderr=True)) as show:
                _measure(parsed, results, show)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except _Terminated:
            status = TERMINATED
        except rounds.ArgumentError as error:
            parser.error(str(error))
        except rounds.ValidationError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            results.failure = str(error)
            status = 1
        compared = results.complete or results.rounds or results.http.keys() - {"settings"}
        if results.failure and not compared:
            return status
        if not (compared or results.held):
            print(f"{parser.prog}: interrupted before anything was measured", file=sys.stderr)
            return status
        report.show(results, _table_console())
        if parsed.json is not None or parsed.html is not None:
            return _write_results(parser, parsed, report.as_json(results, arguments)) or status
    return status


def _write_results(parser: argparse.ArgumentParser, parsed: argparse.Namespace, found: dict) -> int:
    """Write what --json and --html ask for, whole or not at all; return the exit status."""
    from json import dumps

    status = 0
    for path, make in (
        (parsed.json, lambda: dumps(found, indent=1, allow_nan=False) + "\n"),
        (parsed.html, lambda: _page(found)),
    ):
        if path is not None:
            status = _write(parser, path, make()) or status
    return status


def _write(parser: argparse.ArgumentParser, path: Path, text: str) -> int:
    """Write a file, whole or not at all; return the exit status."""
    try:
        _write_whole(path, text)
    except OSError as error:
        print(f"{parser.prog}: can't write {str(path)!r}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _page(found: dict) -> str:
    from synthex_fast.validate import page

    return page.render(found)


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever finds half of it, unless its directory takes no other file."""
    for stream in (sys.stdout, sys.stderr):
        if _is_open_as(path, stream):
            # Another file in its place would be without what was printed there.
            stream.write(text)
            stream.flush()
            return
    if path.exists() and not path.is_file():
        # A pipe or a terminal. What it links to may have no path.
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = unfinished.open("x", encoding="utf-8")
    except OSError:
        path.write_text(text, encoding="utf-8")
        return
    try:
        with file:
            file.write(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_open_as(path: Path, stream: Any) -> bool:
    """Whether the path, such as /dev/stdout, is what that stream writes to."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except (AttributeError, OSError, ValueError):
        # No such file yet, or a stream of something that is no file.
        return False


def _revisit(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> int:
    """What is done with earlier results, without a run: --compare and --from."""
    option, others = (
        "--from",
        ["arms", "seed", "seconds", "json", "limit", "collections", "http", "rate", "heap_objects", "port"],
    )
    if parsed.compare is not None:
        option, others = "--compare", [*others, "html", "source"]
    elif parsed.html is None:
        parser.error("argument --from: needs --html")
    elif _are_same(parsed.source, parsed.html):
        parser.error("argument --html: is the file that --from reads")
    for other in others:
        if getattr(parsed, other) is not None:
            name = "from" if other == "source" else other.replace("_", "-")
            parser.error(f"argument {option}: not allowed with --{name}, as nothing is run")

    from synthex_fast.validate import compare

    try:
        if parsed.compare is None:
            return _write(parser, parsed.html, _page_of_file(parsed.source))
        first, second = map(compare.load, parsed.compare)
        compare.show(first, second, _table_console())
    except compare.CompareError as error:
        parser.error(str(error))
    return 0


def _page_of_file(path: Path) -> str:
    """The page of what --json wrote there. Raises `CompareError` for anything else."""
    from synthex_fast.validate import compare

    found = compare.load(path)
    try:
        return _page(found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise compare.CompareError(
            f"{str(path)!r} is damaged: no page can be made of it ({type(error).__name__}: {error})"
        ) from error


def _are_same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _add_soak(commands) -> None:
    soak = commands.add_parser(
        "soak",
        help="play a day of traffic as fast as possible and check that nothing is lost, exceeded or leaked",
        description="Plays the traffic of a service on a clock that it advances itself, so that every TTL, idle limit "
        "and monitor interval happens. At each simulated hour it checks accounts, limits and the floor of memory. "
        "Plays for 60 seconds unless told otherwise; --requests 86400000 is a day at 1,000 requests a second.",
        allow_abbrev=False,
    )
    length = soak.add_mutually_exclusive_group()
    length.add_argument("--requests", type=_count(2**53), metavar="N", help="how many requests to play")
    length.add_argument("--seconds", type=_seconds, metavar="S", help="how long to play, in real seconds")
    soak.add_argument(
        "--rate",
        type=_count(1_000_000),
        metavar="N",
        default=1_000,
        help="requests a second of simulated time, all processes together (default: 1000)",
    )
    soak.add_argument(
        "--seed", type=_seed, metavar="N", default=1, help="random seed of the traffic (default: 1)"
    )
    soak.add_argument(
        "--processes",
        type=_count(256),
        metavar="N",
        default=min(2, os.cpu_count() or 1),
        help="workers that share the traffic, each in a process (default: 2, or 1 on a single core)",
    )
    soak.add_argument(
        "--json", type=_writable, metavar="FILE", help="also write all records to FILE, as JSON"
    )
    soak.set_defaults(run=lambda parsed, arguments: _soak(soak, parsed, arguments))


def _count(most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most:,}, not {text!r}")
        return number

    return count


def _soak(parser: argparse.ArgumentParser, parsed: argparse.Namespace, arguments: list[str]) -> int:
    if find_spec("rich") is None:
        parser.error("needs rich: pip install synthex-fast[validate]")
    if parsed.requests is not None and parsed.requests < parsed.processes:
        parser.error(f"argument --requests: must be at least 1 for each of {parsed.processes} processes")

    from rich.console import Console

    from synthex_fast.validate.soak import report, run

    seconds = run.DEFAULT_SECONDS if parsed.requests is None and parsed.seconds is None else parsed.seconds
    results = run.Results(parsed.seed, parsed.rate, parsed.processes, parsed.requests, seconds)
    status = 0
    with _terminated_in_order():
        try:
            with report.progress(Console(stderr=True)) as show:
                run.run(results, show)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except _Terminated:
            status = TERMINATED
        except run.SoakError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            status = 1
        if not results.last():
            if status != 1:
                print(f"{parser.prog}: interrupted before anything was checked", file=sys.stderr)
            return status
        report.show(results, _table_console())
        for failure in results.failures:
            print(f"{parser.prog}: {failure}", file=sys.stderr)
        status = status or bool(results.failures)
        if parsed.json is not None:
            from json import dumps

            text = dumps(report.as_json(results, arguments), indent=1, allow_nan=False) + "\n"
            status = _write(parser, parsed.json, text) or status
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
