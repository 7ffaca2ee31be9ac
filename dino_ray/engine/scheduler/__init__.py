"""Which piece of work goes next, to whom; what is tried again, and what is given up.

A state machine without engine, threads or clock: ``drive`` tells it what happened and does what it decides.

===============  ==================================================================
``machine``      events in, decisions out: the place to begin
``calls``        calls sent to replicas, and taken back
``work``         tiles, the pieces they are refined in, and the cells that wait
``merges``       which cells go into one merge
``pool``         replicas, their states, and the calls in flight on them
``pace``         how long calls take
``watch``        which calls take too long
``stragglers``   who takes over whose call
``blame``        which tiles end processes
``pressure``     less in flight where memory runs out
``guard``        when a job gets nowhere
``diagnosis``    who waits for what, in words
===============  ==================================================================
"""

from dino_ray.engine.scheduler.calls import MERGES_BEHIND
from dino_ray.engine.scheduler.decisions import Cancel, Decision, Merge, Replace, Start, Stop
from dino_ray.engine.scheduler.machine import MERGE_TRIES, TRIES, Scheduler
from dino_ray.engine.scheduler.pool import CALLS_PER_REPLICA

__all__ = [
    "CALLS_PER_REPLICA",
    "MERGES_BEHIND",
    "MERGE_TRIES",
    "TRIES",
    "Cancel",
    "Decision",
    "Merge",
    "Replace",
    "Scheduler",
    "Start",
    "Stop",
]
