"""``synthex-fast top``: the live page's figures in a terminal.

`sources` finds the processes that answer and asks them for frames, `screen` draws one frame, and `loop` draws one after
another until it is told to stop.
"""
