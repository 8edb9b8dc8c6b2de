"""Fork and exit hooks: their order, with each other and with those of `threading`, and what ends up registered."""

import sys

from support import needs_fork, run

from synthex_fast import _lifecycle


def recorded(monkeypatch):
    """Functions that register stages, and the list of the hooks called, with no stage registered yet."""
    for name, empty in (("_hooks", {}), ("_in_order", ()), ("_last_first", ())):
        monkeypatch.setattr(_lifecycle, name, empty)
    called = []

    def register(stage, label=""):
        moments = ("before", "after_in_parent", "after_in_child", "at_exit")
        _lifecycle.register(
            stage, **{moment: lambda m=moment: called.append((m, f"{stage}{label}")) for moment in moments}
        )

    return register, called


def test_stages_pause_from_the_last_and_resume_from_the_first(monkeypatch):
    register, called = recorded(monkeypatch)
    for stage in (2, 0, 1):
        register(stage)
    _lifecycle._before_fork()
    _lifecycle._after_in_parent()
    _lifecycle._after_in_child()
    assert [stage for _, stage in called] == ["2", "1", "0", "0", "1", "2", "0", "1", "2"]


def test_a_hook_that_raises_is_reported_and_keeps_no_other_from_running(monkeypatch):
    register, called = recorded(monkeypatch)
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: unraisable.append(repr(seen.exc_value)))

    def fail():
        raise SystemExit("no")

    register(0)
    _lifecycle.register(1, before=fail, after_in_child=fail)
    register(2)
    _lifecycle._before_fork()
    _lifecycle._after_in_child()
    assert [stage for _, stage in called] == ["2", "0", "0", "2"]
    assert unraisable == ["SystemExit('no')"] * 2


def test_a_module_that_is_imported_again_replaces_its_hooks(monkeypatch):
    register, called = recorded(monkeypatch)
    register(0, " of an import that was interrupted")
    register(0)
    _lifecycle._before_fork()
    assert called == [("before", "0")]


def test_an_import_that_was_interrupted_can_be_repeated():
    assert run(
        """
        import sys
        from synthex_fast import _lifecycle
        genuine = _lifecycle.register
        def interrupted(*stage, **hooks):
            genuine(*stage, **hooks)
            raise KeyboardInterrupt
        for name in ("_readings", "_sweeper", "monitor", "gc_tuner", "governor"):
            _lifecycle.register = interrupted
            try:
                __import__(f"synthex_fast.{name}")
            except KeyboardInterrupt:
                pass
            else:
                print(name, "registered nothing")
            _lifecycle.register = genuine
            __import__(f"synthex_fast.{name}")
        """
    ) == ""  # fmt: skip


def test_a_stage_registered_inside_a_fork_hook_waits_for_the_next_moment(monkeypatch):
    register, called = recorded(monkeypatch)
    _lifecycle.register(1, before=lambda: register(0))
    _lifecycle._before_fork()
    assert called == []
    _lifecycle._after_in_parent()
    assert called == [("after_in_parent", "0")]


@needs_fork
def test_threads_started_after_a_fork_are_the_childs_own_in_a_program_that_has_not_imported_threading():
    # threading's own hook takes every thread started before it runs for one of the parent's.
    assert "True" in run(
        """
        import sys
        assert "threading" not in sys.modules
        import os
        from synthex_fast.monitor import AdaptiveMemoryMonitor
        monitor = AdaptiveMemoryMonitor()
        monitor.start()
        child = os.fork()
        if not child:
            print(monitor._thread._thread.is_alive(), flush=True)
            monitor.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        "-S",
        # The parent's own thread may be running again before the interpreter looks for threads.
        "-Wignore::DeprecationWarning",
    )
