"""ResponseBuffer: adding compared with appending to a list, and consensus with the same in plain Python."""

import gc
import statistics

from measure import compare, statement, summary

QUERIES = 200
EXPERTS = 5


def _responses(shared_ids=True):
    """1,000 responses, five to a query, experts in order; without shared ids each has a text of its own."""
    from synthex_fast import PooledExpertResponse

    experts = [f"expert-{n}" for n in range(EXPERTS)]
    queries = [f"query-{n:08x}-4a5b-8c6d" for n in range(QUERIES)]
    return [
        PooledExpertResponse(
            query if shared_ids else "".join([query[:5], query[5:]]),
            expert if shared_ids else "".join([expert[:5], expert[5:]]),
            confidence=(n * 7 + m * 3) % 11 / 10,
        )
        for n, query in enumerate(queries)
        for m, expert in enumerate(experts)
    ]


def _batches(responses):
    return [responses[i : i + EXPERTS] for i in range(0, len(responses), EXPERTS)]


def _add_batch(responses):
    from synthex_fast import ResponseBuffer

    batches = _batches(responses)
    buffer = ResponseBuffer(capacity=len(responses))
    add_batch = buffer.add_batch

    # Both sides start empty and are emptied after 1,000 responses, so the buffer's flush, which returns a list
    # of them, is timed as well, and so is the growth of the list.
    def ours():
        for batch in batches:
            add_batch(batch)
        buffer.flush()

    def rival():
        items = []
        append = items.append
        for first, second, third, fourth, fifth in batches:
            append(first)
            append(second)
            append(third)
            append(fourth)
            append(fifth)

    return compare(ours, rival, inner=len(batches))


def claim_add_batch():
    """`add_batch` of 5 responses, including its share of a flush, compared with `list.append` five times."""
    return _add_batch(_responses())._replace(note="including a flush per 1,000 responses")


def claim_add_batch_own_ids():
    """The same if every response has its own id objects, which must then be hashed and compared."""
    result = _add_batch(_responses(shared_ids=False))
    return result._replace(note="no two responses share an id object")


def claim_add():
    """`add` of one response, compared with `list.append`."""
    from synthex_fast import ResponseBuffer

    responses = _responses()
    buffer = ResponseBuffer(capacity=len(responses))
    add = buffer.add

    def ours():
        for response in responses:
            add(response)
        buffer.flush()

    def rival():
        items = []
        append = items.append
        for response in responses:
            append(response)

    return compare(ours, rival, inner=len(responses))


def plain_aggregate(responses):
    """Count, mean, population variance, experts and consensus by query, as one would write it in Python."""
    confidences, experts = {}, {}
    for response in responses:
        query = response.query_id
        if query in confidences:
            confidences[query].append(response.confidence)
            experts[query].add(response.expert_id)
        else:
            confidences[query] = [response.confidence]
            experts[query] = {response.expert_id}
    rows = {}
    for query, values in confidences.items():
        count = len(values)
        mean = sum(values) / count
        variance = sum([(value - mean) ** 2 for value in values]) / count
        if variance < 0.05 and mean > 0.7:
            consensus = "high"
        elif variance < 0.1 and mean > 0.5:
            consensus = "medium"
        else:
            consensus = "low"
        rows[query] = (count, mean, variance, experts[query], consensus)
    return rows


def _filled():
    from synthex_fast import ResponseBuffer

    responses = _responses()
    buffer = ResponseBuffer(capacity=len(responses))
    for batch in _batches(responses):
        buffer.add_batch(batch)
    aggregate = buffer.aggregate()
    for query, (count, mean, variance, experts, consensus) in plain_aggregate(responses).items():
        row = aggregate[query]
        assert (row.count, row.experts, row.consensus) == (count, experts, consensus)
        assert abs(row.mean - mean) < 1e-12
        assert abs(row.variance - variance) < 1e-12
    return buffer, responses


def claim_aggregate():
    """`aggregate()` of 1,000 responses to 200 queries, no row read, compared with the same in plain Python."""
    buffer, responses = _filled()
    return compare(buffer.aggregate, lambda: plain_aggregate(responses))


def claim_aggregate_read():
    """The same, and every row read, with its experts and its consensus."""
    buffer, responses = _filled()

    def ours():
        for row in buffer.aggregate().values():
            row.experts, row.consensus  # noqa: B018

    return compare(ours, lambda: plain_aggregate(responses))._replace(note="all 200 rows read")


def _holding(count):
    """A buffer that holds that many responses, five to a query, and the id of a query in the middle."""
    from synthex_fast import PooledExpertResponse, ResponseBuffer

    queries = [f"query-{n:08x}-4a5b-8c6d" for n in range(count // EXPERTS)]
    buffer = ResponseBuffer(count, count)
    buffer.add_batch(
        [
            PooledExpertResponse(query, f"expert-{m}", confidence=(n * 7 + m * 3) % 11 / 10)
            for n, query in enumerate(queries)
            for m in range(EXPERTS)
        ]
    )
    return buffer, "".join(queries[len(queries) // 2].partition("-"))


def claim_consensus():
    """`consensus(query_id)` of a buffer that holds 100,000 responses, compared with one that holds 10."""

    def read(count):
        buffer, query = _holding(count)
        return statement("consensus(query)", consensus=buffer.consensus, query=query)

    return compare(read(100_000), read(10))._replace(note="the set of experts is not read")


def _allocated(call, times=1000):
    from synthex_fast.validate import _allocations

    kept = [None] * times
    gc.collect()
    _allocations.start()
    for n in range(times):
        kept[n] = call()
    requested, _ = _allocations.stop()
    return requested / times


def claim_consensus_bytes():
    """Bytes that `consensus(query_id)` allocates for a row that is kept, compared with one from `aggregate()`."""
    buffer, query = _holding(100_000)
    aggregate = buffer.aggregate()
    ours = _allocated(lambda: buffer.consensus(query))
    rival = _allocated(lambda: aggregate[query])
    return summary([ours] * 2, [rival] * 2)._replace(note="the loop's own integers included")


def claim_columns_mean():
    """The mean of 1,000 confidences through the column, without a copy, compared with a sum over the objects."""
    buffer, responses = _filled()
    return compare(
        lambda: buffer.columns().confidence.mean(),
        lambda: statistics.fmean([response.confidence for response in responses]),
    )
