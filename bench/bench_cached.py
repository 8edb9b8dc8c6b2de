"""The claims about `cached`: a hit compared with functools.lru_cache and cachetools, and two threads."""

import functools
import sys

from measure import NotMeasuredError, compare, scaling, statement


def _squares(decorate):
    """A decorated function that has the results for 100 arguments."""

    @decorate
    def square(number):
        return number * number

    for number in range(1000, 1100):
        square(number)
    return square


def _ours():
    from synthex_fast import cached

    return _squares(cached(max_size=128))


def _hit(square):
    return statement("square(number)", square=square, number=1050)


def claim_hit_vs_lru_cache():
    """A hit on one int argument, both with room for 128 results."""
    return compare(_hit(_ours()), _hit(_squares(functools.lru_cache(128))))


def claim_hit_vs_cachetools():
    """The same, compared with cachetools' decorator around its LRUCache."""
    import cachetools

    return compare(_hit(_ours()), _hit(_squares(cachetools.cached(cachetools.LRUCache(128)))))


def claim_hit_with_ttl_vs_cachetools():
    """The same with a time to live."""
    import cachetools

    from synthex_fast import cached

    ours = _squares(cached(max_size=128, ttl=3600))
    return compare(_hit(ours), _hit(_squares(cachetools.cached(cachetools.TTLCache(128, 3600)))))


def claim_two_arguments_vs_lru_cache():
    """A hit on an int and a text, for which both make a tuple."""

    def pairs(decorate):
        @decorate
        def pair(number, text):
            return number, text

        pair(1050, "text")
        return statement("pair(number, text)", pair=pair, number=1050, text="text")

    from synthex_fast import cached

    return compare(pairs(cached(max_size=128)), pairs(functools.lru_cache(128)))


def claim_method_vs_lru_cache():
    """A hit on a method with one int argument; lru_cache keeps the instance alive."""

    def methods(decorate):
        class Squares:
            @decorate
            def square(self, number):
                return number * number

        one = Squares()
        one.square(1050)
        return statement("one.square(number)", one=one, number=1050)

    from synthex_fast import cached

    return compare(methods(cached(max_size=128)), methods(functools.lru_cache(128)))


def claim_two_threads():
    """Two threads call one function, each with arguments of its own; on a free-threaded interpreter only."""
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        raise NotMeasuredError("this interpreter has a global lock")
    square = _ours()

    def make_work(index):
        return statement("square(number)", inner=20_000, square=square, number=1010 + index)

    return scaling(make_work)
