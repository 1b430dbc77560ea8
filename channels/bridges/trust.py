"""Which bridges this machine made or measured itself.

A manifest is a file that anybody can edit, so its audit is worth what its author is. A bridge that
was fitted or audited here leaves a record in the user's cache, under the digest of its manifest.
That digest covers the audit, the settings and the digest of the weights: where any of them is
another, there is no record.
"""

import datetime as dt
from contextlib import suppress
from pathlib import Path

from unspoken.channels.bridges.manifest import BridgeManifest
from unspoken.channels.storage.files import cache_root, write_json


def record(manifest: BridgeManifest) -> None:
    """Keep that this machine made or measured the bridge of a manifest, as it was written.

    A cache that cannot be written keeps nothing: the bridge then counts as made elsewhere.
    """
    said = {
        "sharer": manifest.sharer.ref,
        "receiver": manifest.receiver.ref,
        "date": dt.date.today().isoformat(),
    }
    with suppress(OSError):
        write_json(_file(manifest), said)


def measured_here(manifest: BridgeManifest) -> bool:
    """Whether this machine made or measured the bridge, and nothing was changed since."""
    return bool(manifest.digest) and _file(manifest).is_file()


def _file(manifest: BridgeManifest) -> Path:
    return cache_root() / "measured-bridges" / f"{manifest.digest}.json"
