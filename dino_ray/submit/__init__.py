"""``dino-ray submit``: an upscale as a Ray job, from a machine that reaches nothing of the cluster but its HTTP port.

Two programs that meet in ``order`` and ``notes``::

    the user's machine                           the node that drives the job
    client.py     the story: check, send,        driver.py    the entrypoint: receive, run, announce, clear up
                  follow, fetch                  work.py      its child: the same job that ``upscale`` runs
    dashboard.py  Ray's HTTP interface           inbox.py     what arrives through Ray's key-value store
    parcels.py    files through that port
"""
