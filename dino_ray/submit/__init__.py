"""``dino-ray submit``: an upscale as a Ray job, from a machine that reaches nothing of the cluster but its HTTP port.

Two programs that meet in ``order`` and ``notes``::

    the user's machine                           the node that drives the job
    client.py     check, send, start             driver.py    the entrypoint: receive, run, announce, clear up
    follow.py     see it to its end              work.py      its child: the same job that ``upscale`` runs
    results.py    bring results home             inbox.py     what arrives through Ray's key-value store
    dashboard.py  Ray's HTTP interface
    parcels.py    files through that port, on both sides
"""
