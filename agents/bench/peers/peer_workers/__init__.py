"""What runs in each side's process, as ``python -m peer_workers.NAME``.

Most run in environments without this package: they import the standard library, each other
(relatively, so that the folder alone is enough) and the engine that they are of.
"""
