"""The fourth arm of `validate`: checks the same as the current system, and stays within its limits."""

import gc

import pytest

from synthex_fast.validate import corpus
from synthex_fast.validate.arms import ARMS, NEEDS

for _needed in {name for names in NEEDS.values() for name in names}:
    pytest.importorskip(_needed)

from synthex_fast.validate.arms import current, tuned_by_hand  # noqa: E402 (they import what may be missing)

QUERY = {"title": "t", "content": "ten letters", "requester": "r"}
RESPONSE = {"query_id": "q", "expert_id": "e"}


@pytest.fixture
def tuned():
    service = tuned_by_hand.Service()
    yield service
    service.close()


def with_content(request, characters):
    answers = tuple(answer._replace(content="x" * characters) for answer in request.answers)
    return request._replace(answers=answers)


def test_it_stands_beside_the_others_just_before_the_package():
    assert ARMS[-2:] == ("tuned_by_hand", "synthex_fast")


class TestRecords:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"title": ""},
            {"title": "t" * 201},
            {"content": "too short"},
            {"content": "c" * 10_001},
            {"requester": ""},
            {"query_type": "unheard of"},
            {"priority": "unheard of"},
            {"created_at": current.now(), "deadline": current.now().replace(year=2000)},
        ],
        ids=lambda wrong: "-".join(wrong),
    )
    def test_a_query_that_the_current_system_refuses_is_refused(self, wrong):
        for module in (current, tuned_by_hand):
            with pytest.raises(ValueError):
                module.ExpertQuery(**QUERY | wrong)

    @pytest.mark.parametrize("wrong", [{"query_id": ""}, {"confidence": -0.01}, {"confidence": 1.01}])
    def test_a_response_that_the_current_system_refuses_is_refused(self, wrong):
        for module in (current, tuned_by_hand):
            with pytest.raises(ValueError):
                module.ExpertResponse(**RESPONSE | wrong)

    def test_what_it_accepts_is_what_the_current_system_makes_of_it(self):
        arguments = QUERY | {"tags": [" A", "a", "", "B "], "query_type": "review", "priority": "low"}
        one, other = current.ExpertQuery(**arguments), tuned_by_hand.ExpertQuery(**arguments)
        for name in ("title", "content", "requester", "query_type", "priority", "context", "constraints"):
            assert getattr(one, name) == getattr(other, name)
        assert sorted(one.tags) == sorted(other.tags) == ["a", "b"]
        assert len(one.id) == len(other.id) == 36
        assert other.created_at.tzinfo is not None


class TestLimits:
    def test_entries_are_limited_whatever_their_size(self, tuned):
        requests = corpus.make(3, 1_100)
        for request in requests:
            tuned.handle(request)
        assert len(tuned._active._entries) == 1_000
        assert len(tuned._responses._entries) == 500

    def test_texts_are_limited_in_bytes(self, tuned):
        request = with_content(corpus.make(3, 1)[0], 100_000)
        for _ in range(100):
            tuned.handle(request)
        # Five texts of 100,000 characters each: 12 such entries fit into 5.8 MiB.
        assert len(tuned._responses._entries) == 12
        assert tuned._responses.account() <= tuned_by_hand.CACHE_LIMIT

    def test_a_batch_over_the_cap_is_refused_whole(self, tuned):
        responses = [tuned_by_hand.ExpertResponse("q", "e")] * 101
        with pytest.raises(ValueError, match="101 responses, 100 are allowed"):
            tuned._add_batch(responses)
        tuned.flush()
        assert tuned.flushed == 0


class TestCollector:
    def test_it_freezes_what_is_there_and_collects_rarely_until_closed(self):
        thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
        service = tuned_by_hand.Service()
        try:
            assert gc.get_threshold()[0] == 50_000
            assert gc.get_freeze_count() > max(frozen, 10_000)
        finally:
            service.close()
        assert gc.get_threshold() == thresholds
        assert gc.get_freeze_count() <= frozen

    def test_what_others_have_frozen_stays_so(self):
        gc.freeze()
        try:
            frozen = gc.get_freeze_count()
            tuned_by_hand.Service().close()
            assert gc.get_freeze_count() >= frozen
        finally:
            gc.unfreeze()
