"""The cost of an identifier: the first read of ``.id``, and ``uuid4_text()``, compared with ``str(uuid.uuid4())``."""

from uuid import uuid4

from measure import compare, statement

READS = 2000


def claim_first_id():
    """The first read of ``.id`` of queries made beforehand."""
    from synthex_fast import PooledExpertQuery

    queries = []

    def prepare():
        queries[:] = [
            PooledExpertQuery(title="Cache size", content="How large should it be?", requester="ops")
            for _ in range(READS)
        ]

    def read():
        for a, b, c, d in zip(*[iter(queries)] * 4, strict=True):
            a.id, b.id, c.id, d.id  # noqa: B018

    read.inner = READS
    return compare(read, statement("str(uuid4())", uuid4=uuid4, inner=500), prepare_ours=prepare)


def claim_text():
    """`uuid4_text()`: an identifier without a record."""
    from synthex_fast._ids import uuid4_text

    return compare(statement("make()", make=uuid4_text), statement("str(uuid4())", uuid4=uuid4, inner=100))
