"""Lets pytest run the claims: ``python -m pytest bench``, with pytest-benchmark's options if it is installed.

Every function ``claim_...`` of a ``bench_*.py`` is collected as one benchmark; what it measured is in the
``extra_info`` of ``--benchmark-json``. Nothing is asserted about the times: ``report.py`` compares them with
the targets.
"""

import pytest
from measure import Comparison, NotMeasuredError

_lines = []


def _measured(claim):
    try:
        return Comparison(*claim())
    except NotMeasuredError as e:
        pytest.skip(str(e))
    except ModuleNotFoundError as e:
        pytest.skip(f"a rival is missing: {e}")


def _show(node_id, result):
    low, high = result.spread
    _lines.append(f"{node_id}: {result.ratio:.2f} ({low:.2f} - {high:.2f}) {result.note}".rstrip())


def _benchmark(claim):
    """The claim as a test function; a claim interleaves its own rounds, so it runs once."""

    def recorded(benchmark, request):
        result = benchmark.pedantic(_measured, args=(claim,), rounds=1, iterations=1)
        benchmark.extra_info.update(result._asdict())
        _show(request.node.nodeid, result)

    def plain(request):
        _show(request.node.nodeid, _measured(claim))

    return recorded, plain


class ClaimModule(pytest.Module):
    def collect(self):
        with_plugin = self.config.pluginmanager.hasplugin("benchmark")
        for name, value in vars(self.obj).items():
            if name.startswith("claim_"):
                recorded, plain = _benchmark(value)
                yield pytest.Function.from_parent(self, name=name, callobj=recorded if with_plugin else plain)


def pytest_collect_file(file_path, parent):
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return ClaimModule.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter):
    if _lines:
        terminalreporter.section("ratio of ours to the rival's (quartiles)")
        for line in _lines:
            terminalreporter.write_line(line)
