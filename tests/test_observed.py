"""Which objects exporters show, and the figures that they get."""

import gc
import json

import pytest

from synthex_fast import (
    AdaptiveMemoryMonitor,
    GCTuner,
    MemoryGovernor,
    ObjectPool,
    PooledExpertQuery,
    ResponseBuffer,
    ResponseCollector,
    TTLDict,
)
from synthex_fast.errors import ArgumentTypeError
from synthex_fast.exporters import Observed, observe, observed


class Thumbnails:
    """A component of a user's own."""

    name = "thumbnails"
    nbytes = 7
    error = None

    @property
    def stats(self):
        if self.error is not None:
            raise self.error
        return {"entries": 1}

    def trim(self, nbytes):
        return 0


@pytest.fixture
def shown():
    return Observed()


def test_every_kind_of_component_is_told_apart(shown):
    kept = [
        shown.add(obj, name)
        for obj, name in (
            (TTLDict(), "users"),
            (ObjectPool(list, 2), "lists"),
            (ResponseBuffer(), "responses"),
            (ResponseCollector(), "collected"),
            (PooledExpertQuery, "queries"),
            (Thumbnails(), None),
        )
    ]
    components = shown.snapshot()["components"]
    assert {name: part["kind"] for name, part in components.items()} == {
        "users": "cache",
        "lists": "pool",
        "responses": "buffer",
        "collected": "collector",
        "queries": "pool",
        "thumbnails": "other",
    }
    assert components["users"]["type"] == "TTLDict"
    assert components["queries"]["type"] == "PooledExpertQuery"
    assert components["queries"]["nbytes"] is None
    assert components["thumbnails"] == {
        "kind": "other",
        "type": "Thumbnails",
        "nbytes": 7,
        "stats": {"entries": 1},
    }
    assert len(kept) == 6


def test_a_snapshot_is_json(shown):
    cache, tuner, monitor, governor = TTLDict(), GCTuner(), AdaptiveMemoryMonitor(), MemoryGovernor()
    for obj in (cache, tuner, monitor, governor):
        assert shown.add(obj) is obj
    snapshot = shown.snapshot()
    assert json.loads(json.dumps(snapshot)) == snapshot
    assert snapshot["errors"] == {}
    assert snapshot["monitor"]["leak"]["found"] is False
    assert snapshot["memory"]["limit"] == governor.limit
    assert snapshot["tuner"]["requests"] == 0


def test_without_a_governor_memory_is_the_tuners(shown):
    assert shown.snapshot()["memory"] is None
    tuner = shown.add(GCTuner())
    memory = shown.snapshot()["memory"]
    assert memory["limit"] == tuner.stats["memory_limit"]
    assert memory["level"] is None


def test_what_the_governor_knows_is_shown_once(shown):
    governor = shown.add(MemoryGovernor())
    ours = shown.add(TTLDict(), "ours")
    governor.register(ours, name="the governor's name for it")
    theirs = governor.register(TTLDict(), name="ours")
    governor.register(GCTuner())
    components = dict(shown.components())
    assert components == {"ours": ours, "ours-2": theirs}


def test_names_are_unique_and_can_be_changed(shown):
    first, second = shown.add(TTLDict()), shown.add(TTLDict())
    assert [name for name, _ in shown.components()] == ["TTLDict", "TTLDict-2"]
    shown.add(second, "second")
    assert dict(shown.components()) == {"TTLDict": first, "second": second}


def test_components_are_held_weakly(shown):
    cache, tuner = shown.add(TTLDict()), shown.add(GCTuner())
    del cache, tuner
    gc.collect()
    snapshot = shown.snapshot()
    assert snapshot["components"] == {}
    assert snapshot["tuner"] is None


def test_what_was_removed_is_not_shown(shown):
    cache, tuner = shown.add(TTLDict()), shown.add(GCTuner())
    assert shown.remove(cache)
    assert shown.remove(tuner)
    assert not shown.remove(cache)
    assert not shown.remove(tuner)
    assert shown.snapshot()["components"] == {}
    assert shown.get("tuner") is None


def test_a_component_that_fails_does_not_hide_the_others(shown):
    bad, good = shown.add(Thumbnails(), "bad"), shown.add(Thumbnails(), "good")
    bad.error = ValueError("no figures")
    snapshot = shown.snapshot()
    assert set(snapshot["components"]) == {"good"}
    assert snapshot["errors"] == {"bad": "ValueError: no figures"}
    assert good.error is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([],), "obj must be something with stats"),
        ((TTLDict(), 1), "name must be"),
    ],
)
def test_bad_arguments_are_named(shown, arguments, text):
    with pytest.raises(ArgumentTypeError, match=text):
        shown.add(*arguments)
    assert not list(shown.components())


def test_an_object_without_weak_references_is_refused(shown):
    class Slotted:
        __slots__ = ()
        stats = {}  # noqa: RUF012

    with pytest.raises(ArgumentTypeError, match="weakly referenced"):
        shown.add(Slotted())


def test_the_process_has_one():
    cache = observe(TTLDict(), name="test_observed")
    try:
        assert dict(observed().components())["test_observed"] is cache
    finally:
        observed().remove(cache)


def test_adding_and_dropping_while_others_read(shown, hammer):
    def work(n):
        mine = shown.add(TTLDict(), f"cache-{n}")
        snapshot = shown.snapshot()
        assert snapshot["errors"] == {}
        # Another thread's snapshot may still hold the one of that name before, so this one's has a number.
        assert any(name.startswith(f"cache-{n}") for name in snapshot["components"])
        del mine

    hammer(4, work, iterations=200)
    assert not list(shown.components())


def test_names_are_unique_whatever_the_threads_do(shown, hammer):
    kept = []

    def work(n):
        kept.append(shown.add(TTLDict(), "cache"))

    hammer(4, work, iterations=100)
    assert len(shown.snapshot()["components"]) == len(kept) == 400
