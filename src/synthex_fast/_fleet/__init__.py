"""Workers that share a container: they find each other, divide its memory for caches, and collect garbage in turns.

- `split`: who gets how much, and how a worker's weight follows its need; arithmetic only;
- `file`: the file that all workers of a container have open, what they post there, and the locks on it;
- `member`: one process's membership, with the reason if it is alone;
- `turns`: whose turn it is to collect fully, for the tuner.

There is no leader. Each worker posts what it holds and wants, reads what the others have posted, and computes the same
division from it.
"""
