"""Results of `validate` that were never measured: for tests of what is made of them, without a run."""

import random

from synthex_fast.validate import figures, report
from synthex_fast.validate.arms import ARMS
from synthex_fast.validate.rounds import Results

# How fast an arm is beside the current one.
SPEED = {"current": 1.0, "recommended": 0.8, "tuned_by_hand": 2.5, "synthex_fast": 6.0}


def made(arms=ARMS, *, seed=1, rounds=7, http=True, limit=True, noise=0.02, faster=1.0):
    """Results of all arms. With the same `seed` they are the same."""
    chance = random.Random(seed)
    results = Results(tuple(arms), seed, planned_rounds=rounds, round_seconds=1.0, complete=True)
    results.corpus = {"digest": "0" * 64, "requests": 1_000}
    if http:
        results.http["settings"] = {"heap_objects": 1_000_000, "rates": {"uvicorn": 500.0, "gunicorn": 400.0}}
    for arm in arms:
        speed = SPEED[arm] * (faster if arm == "synthex_fast" else 1.0)
        results.started[arm] = {"before_load_rss": 40_000_000, "import_rss": 5_000_000}
        results.held[arm] = {"bytes": 12e6 / speed, "account": 1.4e6}
        results.allocation[arm] = {
            "bytes": 20_000 / speed**2,
            "kept_bytes": 5_000 / speed**2,
            "blocks": 100.0,
        }
        results.sampling[arm] = {
            "interval": 60.0,
            "cpu_seconds": 1e-4 / speed,
            "bytes": 1_000 / speed,
            "samples_taken": 10,
            "samples_a_day": 10,
        }
        results.first_fill[arm] = {"collections": [24, 2, 0], "pauses": [0.01 / speed]}
        results.rounds[arm] = [_round(chance, speed, noise) for _ in range(rounds)]
        if http:
            for scenario in ("uvicorn-open", "gunicorn-open"):
                turns = [_turn(chance, speed, noise) for _ in range(rounds)]
                results.http.setdefault(scenario, {})[arm] = turns
        if limit:
            results.limit[arm] = [_at_limit(arm == "current")]
    return results


def found(*arguments, **options):
    """The same as JSON has it."""
    return report.as_json(made(*arguments, **options), ["validate", "--seed", str(options.get("seed", 1))])


def _percentiles(chance, typical, noise):
    slow = typical * chance.lognormvariate(0, noise)
    return [[share, slow * (1 + 20 * (share / 100) ** 30)] for share in figures.QUANTILES]


def _round(chance, speed, noise):
    requests = int(5_000 * speed * chance.lognormvariate(0, noise))
    percentiles = _percentiles(chance, 1e-4 / speed, noise)
    latencies = {f"latency_p{share:g}": value for share, value in percentiles}
    return {
        "requests": requests,
        "seconds": 1.0,
        "cpu_seconds": 0.9,
        "refill_requests": 1_100,
        "refill_collections": [24, 2, 0],
        "collections": [3, 1, 0],
        "pauses": [chance.lognormvariate(-6, 1) / speed for _ in range(5)],
        "peak_rss": int(60e6 / speed**0.3),
        "peak_rss_of_this_round": True,
        "settled_rss": int(58e6 / speed**0.3),
        "reused": 1_000 if speed != 1 else 0,
        "created": 1 if speed != 1 else 1_000,
        "responses_flushed": 800,
        "percentiles": percentiles,
        **latencies,
    }


def _turn(chance, speed, noise):
    percentiles = _percentiles(chance, 2e-3 / speed, noise)
    pauses = [[chance.uniform(0, 8), chance.lognormvariate(-6, 1), 0, chance.randrange(2)] for _ in range(20)]
    return {
        "seconds": 8.0,
        "requests": 8_000,
        "percentiles": percentiles,
        "pauses": sorted(pauses) if speed != 2.5 else [],
        **{f"latency_p{share:g}": value for share, value in percentiles},
        "latency_max": percentiles[-1][1],
        "cpu_per_request": 1e-3 / speed,
        "throughput": 1_000.0 * speed,
        "pauses_longest": 0.02 / speed,
        "pauses_inside_longest": 0.01 / speed,
        "outside": {"collections": [2, 1, 0], "sum": 0.01},
        "pauses_inside_sum": 0.1 / speed,
        "full_inside": 0,
        "collections": [10, 1, 0],
        "pss": 300_000_000,
        "generator_late": False,
        "unanswered": 0,
        "backlog": 0,
        "rate": 500.0,
        "memory": [[0.25 * place, int((300 + place) * 1e6 / speed**0.1)] for place in range(33)],
    }


def _at_limit(killed):
    series = [[0.1 * place, min(250, 50 + 5 * place) * 1_000_000] for place in range(40 if killed else 80)]
    return {
        "limit": 256_000_000,
        "how": "control group, version 2",
        "killed": killed,
        "requests": 1_000 if killed else 2_000,
        "planned": 2_000,
        "errors": 0,
        "seconds": 8.0,
        "peak": 250_000_000,
        "series": series,
        "first_error": None,
        "cached_bytes": None if killed else 1_000_000,
    }
