"""Writes ``synthex-fast.json``, the dashboard for Grafana (10 or later) over Prometheus.

    python dashboards/generate.py [--check]

``--check`` writes nothing and fails if the file is not what this script makes. Queries work for one process and for
workers that answer for each other: only gauges have a ``pid`` then, and only panels "by worker" show it.
"""

import json
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().with_name("synthex-fast.json")

# What each query selects, by the variables at the top of the dashboard.
SELECTED = 'job=~"$job", instance=~"$instance"'
# Shares of the memory limit at which the governor's levels begin, as in `synthex_fast._pressure`.
MARKS = {"warning": 0.70, "high": 0.80, "critical": 0.90, "emergency": 0.95}
COLORS = {"normal": "green", "warning": "yellow", "high": "orange", "critical": "red", "emergency": "purple"}
WIDTH = 24


def of(metric, **labels):
    """The metric, selected."""
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return f"{metric}{{{SELECTED}{more}}}"


def rate(metric, by):
    """Of a counter, a second."""
    return f"sum by ({by}) (rate({of(metric)}[$__rate_interval]))"


def ratio(part, rest, by):
    """The share that one counter has of two."""
    return f"{rate(part, by)} / ({rate(part, by)} + {rate(rest, by)})"


def level_colors():
    steps = [{"color": COLORS["normal"], "value": None}]
    return steps + [{"color": COLORS[level], "value": n} for n, level in enumerate(MARKS, 1)]


def level_names():
    options = {str(n): {"text": level, "index": n} for n, level in enumerate(["normal", *MARKS])}
    return [{"type": "value", "options": options}]


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def panel(title, about, queries, *, unit="short", kind="timeseries", width=8, height=8, **more):
    """A panel with its queries, which are pairs of an expression and a legend."""
    field = {"unit": unit, **more.pop("field", {})}
    if kind == "timeseries":
        field.setdefault("min", 0)
        field["custom"] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", **more.pop("custom", {})}
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {"defaults": field, "overrides": more.pop("overrides", [])},
        "options": more.pop("options", {"tooltip": {"mode": "multi", "sort": "desc"}}),
        "targets": [
            {"refId": chr(ord("A") + n), "expr": expression, "legendFormat": legend, **more}
            for n, (expression, legend) in enumerate(queries)
        ],
        "gridPos": {"w": width, "h": height},
    }


def single(title, about, query, *, unit="none", **more):
    return panel(title, about, [(query, "")], unit=unit, kind="stat", width=6, height=4, options={}, **more)


def panels():
    limit = f"max({of('synthex_memory_limit_bytes')})"
    pauses = "synthex_gc_pause_seconds"
    return [
        single("Processes", "Those that answer now.", f"count({of('synthex_build_info')})"),
        single(
            "Highest level",
            "Of all governors.",
            f"max({of('synthex_governor_level')})",
            field={"mappings": level_names(), "thresholds": {"mode": "absolute", "steps": level_colors()}},
        ),
        single(
            "Leaks",
            "Processes whose memory grows the way a leak does.",
            f"sum({of('synthex_memory_leak')})",
            field={
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": "green", "value": None}, {"color": "red", "value": 1}],
                }
            },
        ),
        single(
            "Time spent collecting",
            "Share of wall time, of the process that spends most.",
            f"max({of('synthex_gc_overhead_ratio')})",
            unit="percentunit",
        ),
        row("Garbage collection"),
        panel(
            "Pauses by cause, 99th percentile",
            "What made the collection happen: automatic ones are the interpreter's own.",
            [
                (
                    f"histogram_quantile(0.99, sum by (le, cause) (rate({of(f'{pauses}_bucket')}[$__rate_interval])))",
                    "{{cause}}",
                )
            ],
            unit="s",
        ),
        panel(
            "Pauses",
            "How many pauses were how long.",
            [(f"sum by (le) (increase({of(f'{pauses}_bucket')}[$__rate_interval]))", "{{le}}")],
            kind="heatmap",
            unit="s",
            format="heatmap",
            options={
                "calculate": False,
                "yAxis": {"unit": "s"},
                "color": {"scheme": "Oranges", "mode": "scheme"},
            },
        ),
        panel(
            "Time spent by cause",
            "Seconds of pauses in each second, of all processes.",
            [(rate(f"{pauses}_sum", "cause"), "{{cause}}")],
            unit="percentunit",
            custom={"stacking": {"mode": "normal"}},
        ),
        panel(
            "Requests against collections",
            "Collections should happen between requests. Those inside them that memory did not force are short.",
            [
                (f"sum(rate({of('synthex_requests_total')}[$__rate_interval]))", "requests"),
                (f"sum(rate({of(f'{pauses}_count')}[$__rate_interval]))", "collections"),
                (
                    f"sum(rate({of('synthex_gc_request_collections_total')}[$__rate_interval]))",
                    "collections inside requests",
                ),
            ],
            unit="ops",
        ),
        panel(
            "Collections by cause",
            "Of all generations.",
            [(rate(f"{pauses}_count", "cause"), "{{cause}}")],
            unit="ops",
            custom={"stacking": {"mode": "normal"}},
        ),
        panel(
            "Objects freed, and full collections put off",
            "What collections found, and how often one was put off because they took half of the time.",
            [
                (rate("synthex_gc_freed_objects_total", "generation"), "freed, generation {{generation}}"),
                (f"sum(rate({of('synthex_gc_limited_total')}[$__rate_interval]))", "put off"),
            ],
            unit="ops",
        ),
        row("Memory"),
        panel(
            "Memory against limit",
            "Resident memory of the largest process, the container's charge, and where each level begins.",
            [
                (f"max({of('synthex_memory_resident_bytes')})", "largest process"),
                (f"max({of('synthex_memory_container_bytes')})", "container"),
                (limit, "limit"),
                *((f"{limit} * {mark:.2f}", level) for level, mark in MARKS.items()),
            ],
            unit="bytes",
            width=12,
            overrides=[
                {
                    "matcher": {"id": "byName", "options": level},
                    "properties": [
                        {"id": "color", "value": {"mode": "fixed", "fixedColor": COLORS[level]}},
                        {"id": "custom.fillOpacity", "value": 0},
                        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}},
                    ],
                }
                for level in MARKS
            ],
        ),
        panel(
            "Level by worker",
            "What each governor acts on.",
            [(f"max by (instance, pid) ({of('synthex_governor_level')})", "{{instance}} {{pid}}")],
            kind="state-timeline",
            unit="none",
            width=12,
            field={"mappings": level_names(), "thresholds": {"mode": "absolute", "steps": level_colors()}},
            options={"mergeValues": True},
        ),
        panel(
            "Governor actions",
            "A minute.",
            [(f"{rate('synthex_governor_actions_total', 'action')} * 60", "{{action}}")],
            width=12,
        ),
        panel(
            "Memory that they returned",
            "Bytes a second by which memory fell.",
            [(rate("synthex_governor_returned_bytes_total", "action"), "{{action}}")],
            unit="Bps",
            width=12,
        ),
        row("Caches"),
        panel(
            "Cache bytes",
            "Of all processes.",
            [(f"sum by (cache) ({of('synthex_cache_bytes')})", "{{cache}}")],
            unit="bytes",
            custom={"stacking": {"mode": "normal"}},
        ),
        panel(
            "Hit ratio",
            "Gets that found a value.",
            [(ratio("synthex_cache_hits_total", "synthex_cache_misses_total", "cache"), "{{cache}}")],
            unit="percentunit",
            field={"max": 1},
        ),
        panel(
            "Evictions by reason",
            "Expired and idle entries make room anyway; full and memory are limits.",
            [(rate("synthex_cache_evictions_total", "cache, reason"), "{{cache}}, {{reason}}")],
            unit="ops",
        ),
        panel(
            "Gets and puts",
            "A second, of all processes.",
            [
                (
                    f"{rate('synthex_cache_hits_total', 'cache')} + {rate('synthex_cache_misses_total', 'cache')}",
                    "gets, {{cache}}",
                ),
                (rate("synthex_cache_puts_total", "cache"), "puts, {{cache}}"),
            ],
            unit="ops",
        ),
        panel(
            "Entries",
            "Of all processes.",
            [(f"sum by (cache) ({of('synthex_cache_entries')})", "{{cache}}")],
        ),
        panel(
            "Share of the container by worker",
            "What the caches of each process may hold, where processes share a container.",
            [(f"max by (instance, pid) ({of('synthex_fleet_share_bytes')})", "{{instance}} {{pid}}")],
            unit="bytes",
            custom={"stacking": {"mode": "normal"}},
        ),
        row("Pools and buffers"),
        panel(
            "Pool reuse",
            "Acquisitions served by an idle object.",
            [(ratio("synthex_pool_reused_total", "synthex_pool_created_total", "pool"), "{{pool}}")],
            unit="percentunit",
            field={"max": 1},
        ),
        panel(
            "Idle objects",
            "Of all processes.",
            [(f"sum by (pool) ({of('synthex_pool_idle_objects')})", "{{pool}}")],
        ),
        panel(
            "Buffered responses",
            "Of all processes; and additions that were refused, a second.",
            [
                (f"sum by (buffer) ({of('synthex_buffer_responses')})", "{{buffer}}"),
                (rate("synthex_buffer_rejected_total", "buffer"), "refused, {{buffer}}"),
            ],
        ),
        row("By worker"),
        panel(
            "Resident memory by worker",
            "Pages that workers share are counted in each.",
            [(f"max by (instance, pid) ({of('synthex_memory_resident_bytes')})", "{{instance}} {{pid}}")],
            unit="bytes",
        ),
        panel(
            "Cache bytes by worker",
            "All caches.",
            [(f"sum by (instance, pid) ({of('synthex_cache_bytes')})", "{{instance}} {{pid}}")],
            unit="bytes",
        ),
        panel(
            "Requests in flight by worker",
            "Those that have begun and not ended.",
            [(f"sum by (instance, pid) ({of('synthex_requests_in_flight')})", "{{instance}} {{pid}}")],
        ),
    ]


def placed(all_panels):
    """From left to right and from top to bottom, each with a number."""
    x = y = height = 0
    for number, each in enumerate(all_panels, 1):
        each["id"] = number
        if each["type"] == "row":
            each["gridPos"] = {"w": WIDTH, "h": 1}
        place = each["gridPos"]
        if x + place["w"] > WIDTH:
            x, y, height = 0, y + height, 0
        place.update(x=x, y=y)
        x, height = x + place["w"], max(height, place["h"])
    return all_panels


def variable(name, label, query):
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "query": query,
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard():
    return {
        "uid": "synthex-fast",
        "title": "synthex-fast",
        "description": "Garbage collection, memory, caches, pools and buffers of services that use synthex-fast",
        "tags": ["python", "synthex-fast"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                variable("job", "Job", "label_values(synthex_build_info, job)"),
                variable("instance", "Instance", 'label_values(synthex_build_info{job=~"$job"}, instance)'),
            ]
        },
        "annotations": {"list": []},
        "panels": placed(panels()),
    }


def text():
    return json.dumps(dashboard(), indent=2) + "\n"


def main(arguments):
    if arguments == ["--check"]:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text()
        if not current:
            print(f"{TARGET.name} is not what generate.py makes: run it")
        return int(not current)
    if arguments:
        print(__doc__)
        return 2
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
