"""ResponseCollector: what it costs compared with its parts used by hand, and with the system in the report.

The report is the memory-management analysis that this package implements. A round starts empty and takes the answers to
500 queries, five each, with texts and metadata like the report's. By hand means the calls that
``validate/arms/synthex_fast.py`` makes: `add_batch`, an assignment and, if the consensus is read, the buffer's
`consensus`. By hand, nothing is undone if the second part refuses.
"""

from measure import compare

QUERIES = 500
EXPERTS = 5


def _batches(make):
    """One list of answers per query; `make` is the response type."""
    return [
        [
            make(
                query_id=f"query-{n:08x}-4a5b-8c6d",
                expert_id=f"expert-{m}",
                content=f"{n}-{m} " * 150,
                confidence=(n * 7 + m * 3) % 11 / 10,
                reasoning=f"{m}-{n} " * 50,
                metadata={"model": f"m-{m}", "tokens": 1000 + n, "latency": n / 7, "sources": [f"s-{n}"]},
            )
            for m in range(EXPERTS)
        ]
        for n in range(QUERIES)
    ]


def _ours(batches, consensus):
    from synthex_fast import ResponseCollector

    fresh = []

    def prepare():
        fresh[:] = [ResponseCollector(on_flush=len, sweep=False)]

    def add():
        add_batch = fresh[0].add_batch
        for batch in batches:
            add_batch(batch)

    def add_and_read():
        collector = fresh[0]
        for batch in batches:
            collector.add_batch(batch)
            collector.consensus(batch[0].query_id)

    return prepare, add_and_read if consensus else add


def _by_hand(batches, consensus):
    from synthex_fast import ResponseBuffer, TTLDict
    from synthex_fast.collector import MEMORY_LIMIT

    fresh = []

    def prepare():
        kept = TTLDict(500, 14_400.0, idle=3_600.0, memory_limit=MEMORY_LIMIT, sweep=False)
        fresh[:] = [kept, ResponseBuffer(on_flush=None if consensus else len)]

    def add():
        kept, buffer = fresh
        for batch in batches:
            buffer.add_batch(batch)
            kept[batch[0].query_id] = batch

    def add_and_read():
        kept, buffer = fresh
        for batch in batches:
            query_id = batch[0].query_id
            buffer.add_batch(batch)
            kept[query_id] = batch
            buffer.consensus(query_id)
            if len(buffer) >= 800:
                buffer.flush()

    return prepare, add_and_read if consensus else add


def _current(batches):
    from synthex_fast.validate.arms.current import ResponseBuffer, TTLDict, consensus

    fresh = []

    def prepare():
        fresh[:] = [TTLDict(500, 14_400.0), ResponseBuffer(1000, 0.8, len)]

    def add_and_read():
        kept, buffer = fresh
        for batch in batches:
            query_id = batch[0].query_id
            buffer.add_batch(batch)
            kept[query_id] = batch
            consensus(kept.get(query_id))

    return prepare, add_and_read


def _compare(ours, rival):
    return compare(ours[1], rival[1], inner=QUERIES, prepare_ours=ours[0], prepare_rival=rival[0])


def claim_add_batch_vs_parts():
    """`add_batch` of the five answers to a query, compared with the same two calls by hand."""
    from synthex_fast import PooledExpertResponse

    batches = _batches(PooledExpertResponse)
    return _compare(_ours(batches, False), _by_hand(batches, False))


def claim_add_and_consensus_vs_parts():
    """The same, and the query's consensus."""
    from synthex_fast import PooledExpertResponse

    batches = _batches(PooledExpertResponse)
    return _compare(_ours(batches, True), _by_hand(batches, True))


def claim_add_and_consensus_vs_current():
    """The same, compared with the reported system's parts, whose dict measures a list but not its contents."""
    from synthex_fast import PooledExpertResponse
    from synthex_fast.validate.arms.current import ExpertResponse

    return _compare(_ours(_batches(PooledExpertResponse), True), _current(_batches(ExpertResponse)))


def main():
    import os
    import sys

    if "--quick" in sys.argv[1:]:
        import measure

        measure.QUICK, measure.ROUNDS = True, 41
        os.environ["SYNTHEX_BENCH_QUICK"] = "1"
    for name, claim in list(globals().items()):
        if name.startswith("claim_"):
            found = claim()
            low, high = found.spread
            print(
                f"{claim.__doc__.splitlines()[0]}\n    {found.ratio:.2f} times ({low:.2f} - {high:.2f}); "
                f"{found.ours_ns:,.0f} ns against {found.rival_ns:,.0f} ns a query. {found.note}"
            )


if __name__ == "__main__":
    main()
