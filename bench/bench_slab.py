"""ResponseBuffer: what adding costs beside a list, and aggregating beside the same in plain Python."""

import statistics

from measure import compare

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

    # Both sides begin with nothing and are emptied after 1,000 responses: the buffer's flush, which makes a
    # list of them, is timed as well, and so is the list's growing.
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
    """`add_batch` of 5 responses, its share of the flush included, beside `list.append` five times."""
    return _add_batch(_responses())._replace(note="a flush per 1,000 responses included")


def claim_add_batch_own_ids():
    """The same, every response with id texts of its own, so that they are hashed and compared."""
    result = _add_batch(_responses(shared_ids=False))
    return result._replace(note="no two responses share an id object")


def claim_add():
    """`add` of one response beside `list.append`."""
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
    """Count, mean, population variance, experts and consensus by query: what one would write without us."""
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
    """`aggregate()` of 1,000 responses of 200 queries beside the same in plain Python; rows not read yet."""
    buffer, responses = _filled()
    return compare(buffer.aggregate, lambda: plain_aggregate(responses))


def claim_aggregate_read():
    """The same, and every row read: its experts and its consensus too."""
    buffer, responses = _filled()

    def ours():
        for row in buffer.aggregate().values():
            row.experts, row.consensus  # noqa: B018

    return compare(ours, lambda: plain_aggregate(responses))._replace(note="all 200 rows read")


def claim_columns_mean():
    """The mean of 1,000 confidences through the column beside a sum over the objects; no copy is made."""
    buffer, responses = _filled()
    return compare(
        lambda: buffer.columns().confidence.mean(),
        lambda: statistics.fmean([response.confidence for response in responses]),
    )
