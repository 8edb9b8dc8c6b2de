"""The governor's part in a fleet: what it posts, and what follows from what its siblings have posted.

Alone, or without a container, nothing here changes what the governor does. With siblings, `Sharing.consult` gives the
policy its share of the container's memory, how much of it may be used at once, and its part of common evictions.

While nothing changes, the governor only looks now and then whether its siblings are still there (`Sharing.rest`).
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from synthex_fast._fleet import split
from synthex_fast._fleet.member import Member
from synthex_fast._fleet.split import ANYTHING, Need, Posting
from synthex_fast.governor.policy import FLOOR, SIZED_FOR

if TYPE_CHECKING:
    from typing import Any

    from synthex_fast._fleet._watch import Watch
    from synthex_fast._pressure import MemoryUse
    from synthex_fast.governor.components import ComponentState, Live
    from synthex_fast.governor.policy import Policy

__all__ = ["Sharing"]

# Seconds between two looks at the siblings: while shares change, and otherwise. A death is noticed within the latter.
BUSY_SECONDS, STEADY_SECONDS = 0.5, 1.95
# Figures that differ by less than this part say the same.
ALIKE = 0.03
# How long after a change shares may still be on the move: until then caches fill, or have just been cut, and what they
# miss says little.
SETTLE_SECONDS = 10.0
# A cut whose memory has returned to the system for less than this part was of no use to anyone. Nothing is cut then for
# so many seconds, and longer each time.
RETURNED_PART = 0.3
HOLD_SECONDS = 30.0
HOLD_MOST_SECONDS = 600.0


def _differs(one: Posting, other: Posting, limit: int) -> bool:
    """Whether siblings would decide otherwise after the one than after the other."""
    if one.hungry != other.hungry or one.settled != other.settled or (one.level > 1) != (other.level > 1):
        return True
    sizes = (one.held, other.held), (one.share, other.share), (one.most, other.most)
    return (
        any(abs(now - then) > ALIKE * (then + limit // 10) for now, then in sizes)
        or abs(one.weight - other.weight) > ALIKE * other.weight
        or (one.hungry and abs(one.want - other.want) > 5 * ALIKE * (other.want + 1.0))
    )


class Sharing:
    """One governor's share of its container."""

    def __init__(self, fleet: bool | str, readings: Any) -> None:
        self.member = Member(fleet, readings)
        self.reset()

    def reset(self) -> None:
        self._held = 0.0
        self._need = Need()
        self._siblings: dict[int, Posting] = {}
        self._posting: Posting | None = None
        self._share = 0.0
        self._changed_at = -math.inf
        self._hold = HOLD_SECONDS
        self._hold_until = -math.inf
        self._busy = True
        # What the last step left: whether it joined or had, whether it may still join, and whether it posted anything.
        self._joined = False
        self._tries = False
        self._news = False
        # When memory must be read again, whatever the siblings do.
        self.due = -math.inf

    # Looking

    def is_as_before(self) -> bool:
        """Whether the siblings are as they were at the last step."""
        if not self.member.joined:
            return not self._joined
        return self.member.look() is self._siblings

    def rest(self, now: float) -> float:
        """Seconds to the next look, if the siblings are as they were; 0 if memory is to be read first."""
        return self.interval(self.due - now) if now < self.due else 0.0

    @property
    def quiet(self) -> bool:
        """Whether nothing was posted at the last step, nor will be before something changes."""
        return not (self._busy or self._news) if self.member.joined else not self._tries

    def interval(self, seconds: float) -> float:
        """Seconds to the next look, if memory is to be read again in ``seconds``."""
        if not self.member.joined or (not self._siblings and seconds == math.inf):
            return seconds
        return min(seconds, BUSY_SECONDS if self._busy else STEADY_SECONDS)

    def watch(self, watch: Watch, now: float) -> float:
        """Let the thread's ``watch`` look at the siblings; for how many seconds that is all that is to be done."""
        rest = self.due - now
        # With nothing to share and nobody to share with, there is nothing to look at.
        needed = rest > 0 and (bool(self._siblings) or rest < math.inf)
        if needed and self.member.watch(watch, self._siblings, self.interval(STEADY_SECONDS)):
            return rest
        watch.look_away()
        return 0.0

    # Sharing

    def consult(
        self,
        policy: Policy,
        use: MemoryUse,
        shared: tuple[int, int] | None,
        components: Live,
        level: int,
        now: float,
    ) -> None:
        """Tell the siblings how things stand, and the policy what this process's share is."""
        self._tries = shared is not None and self.member.wanted
        if shared is None or not self.member.wanted:
            policy.alone()
            policy.join(False)
            return
        caches = [state for state, _ in components if state.limited and state.weight]
        counted = sum(state.nbytes for state in caches)
        held = self._held = policy.held.bytes
        need = self._need
        need.observe(sum(state.missed for state in caches), now)
        most = self._most(caches, policy, held)
        settled = now - self._changed_at >= SETTLE_SECONDS and held >= split.SETTLED_PART * min(
            self._share, most
        )
        mine = Posting(
            pid=os.getpid(),
            started=0.0,
            nbytes=counted,
            held=int(held),
            rest=max(0, use.rss - int(held)),
            want=need.want,
            evidence=need.evidence,
            weight=need.weight,
            most=int(most),
            floor=FLOOR * len(caches),
            share=int(self._share),
            level=level,
            settled=settled,
            # Where nobody can say what more would be worth, there is nothing to compare.
            hungry=any(state.hungry and state.knows_need for state in caches),
        )
        known = self._siblings
        # What hardly differs is not posted again: each posting makes the others reconsider.
        self._news = news = (
            not self.member.joined or self._posting is None or _differs(mine, self._posting, shared[1])
        )
        found = self.member.exchange(mine, now) if news else self.member.look()
        self._joined = found is not None
        policy.join(found is not None)
        if found is None:
            policy.alone()
            self._siblings, self._posting = {}, None
            return
        self._siblings = found
        if news:
            self._posting = mine
        if found.keys() != known.keys() or any(found[slot].pid != known[slot].pid for slot in found):
            self._changed_at = now
            need.forget()
            if not known:
                # Like the others, until its needs are known.
                need.weight = sum(each.weight for each in found.values()) / len(found) if found else 1.0
                mine = mine._replace(weight=need.weight)
        if not found:
            policy.alone()
            self._busy = now - self._changed_at < SETTLE_SECONDS
            return
        weight = need.next_weight(mine, split.Together([mine, *found.values()]), now)
        self._decide(policy, mine._replace(weight=weight), shared, now)

    def _most(self, caches: list[ComponentState], policy: Policy, held: float) -> float:
        """Resident bytes that the caches can use for now."""
        most = 0.0
        for state in caches:
            if state.hungry:
                if state.own_limit is None:
                    return ANYTHING
                most += state.own_limit
            else:
                room = state.room
                most += room if state.own_limit is None else min(room, float(state.own_limit))
        return min(max(most * policy.overhead, held), ANYTHING)

    def _decide(self, policy: Policy, mine: Posting, shared: tuple[int, int], now: float) -> None:
        used, limit = shared
        # In one order for all, so that all come to the same.
        workers = [*self._siblings.items(), (self.member.slot, mine)]
        workers.sort()
        place = [slot for slot, _ in workers].index(self.member.slot)
        postings = [posting for _, posting in workers]
        total = split.budget(SIZED_FOR * limit, used, [each.held for each in postings])
        shares = split.divide(total, postings)
        share = shares[place]
        moved = abs(share - self._share) > 0.25 * share
        if moved:
            self._changed_at = now
            self._need.forget()
        self._share = share
        lacking = [max(0.0, each - posting.held) for each, posting in zip(shares, postings, strict=True)]
        together = sum(lacking)
        headroom = max(0.0, SIZED_FOR * limit - used)
        policy.share = share
        policy.grant = headroom * lacking[place] / together if together else 0.0
        policy.part = split.fair_part(postings, shares, place)
        policy.gives = now >= self._hold_until
        self._busy = now - self._changed_at < SETTLE_SECONDS

    def gave(self, freed: float, returned: float, now: float) -> None:
        """Caches were cut by ``freed`` resident bytes; ``returned`` of them have gone back to the system."""
        if returned >= RETURNED_PART * freed:
            self._hold = HOLD_SECONDS
        else:
            self._hold_until = now + self._hold
            self._hold = min(2 * self._hold, HOLD_MOST_SECONDS)

    def leave(self) -> None:
        self.member.leave()
        self.reset()

    # Reporting

    def stats(self) -> dict[str, Any]:
        member = self.member
        found = member.look()
        if found is None:
            return {"state": "alone", "reason": member.reason, "workers": 1, "share": None, "siblings": []}
        siblings = [
            {
                "pid": each.pid,
                "started": each.started,
                "nbytes": each.nbytes,
                "held": each.held,
                "share": each.share,
                "want": each.want,
                "weight": each.weight,
                "level": each.level,
            }
            for _, each in sorted(found.items())
        ]
        return {
            "state": "joined",
            "reason": "",
            "workers": len(found) + 1,
            "share": int(self._share) if found else None,
            "weight": self._need.weight,
            "want": self._need.want,
            "held": int(self._held),
            "siblings": siblings,
        }
