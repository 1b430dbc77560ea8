"""Measuring a stored bridge on anybody's files."""

from contextlib import nullcontext, suppress
from pathlib import Path

from unspoken.channels.bridges.audit.audit import audit
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.embeddings import load_alone
from unspoken.channels.bridges.folder import read, read_embeddings, write
from unspoken.channels.bridges.manifest import Audit, BridgeManifest
from unspoken.channels.bridges.trust import measured_here, record
from unspoken.channels.data.text import Corpus, load_corpus
from unspoken.channels.errors import BridgeError, InputError
from unspoken.channels.model import Hold, Report, TextModel


def audit_bridge(
    folder: Path,
    sharer: TextModel,
    receiver: TextModel,
    plan: AuditPlan | None = None,
    *,
    hold: Hold = nullcontext,
    report: Report = lambda stage, fraction: None,
) -> Audit:
    """Measure a stored bridge.

    Args:
        folder: The bridge.
        sharer: Whose cache it reads.
        receiver: Whose cache it makes.
        plan: What to measure on.
        hold: Keeps the models' devices from other work meanwhile.
        report: Told of stages.

    Raises:
        BridgeError: It is broken.
        IdentityMismatch: It belongs to other models.
        InputError: Rows that cannot be read or measured on.
    """
    plan = plan or AuditPlan()
    bridge = Bridge.load(folder, receiver.device)
    bridge.check(sharer, receiver)
    corpus = corpus_of(bridge.manifest)
    with hold():
        return audit(
            bridge,
            sharer,
            receiver,
            plan.rows(
                corpus,
                fitted=corpus.digest == bridge.manifest.data.digest,
                fit_seed=bridge.manifest.data.seed,
            ),
            corpus=corpus,
            report=report,
            settings=plan.settings,
            alone=load_alone(folder, bridge.manifest),
        )


def keep_audit(folder: Path, measured: Audit, audited: BridgeManifest) -> None:
    """Write an audit into a stored bridge's manifest and card.

    Args:
        folder: The bridge.
        measured: The audit.
        audited: Manifest of the bridge that was measured.

    Raises:
        BridgeError: Another bridge lies there by now, it is broken, or its folder cannot be
            written.
    """
    manifest, tensors = read(folder)
    if manifest.tensors != audited.tensors:
        raise BridgeError(
            f"the bridge in {folder} has been replaced since it was measured",
            expected="the bridge that was measured",
            fix="measure the new one: unspoken bridge audit",
        )
    kept = manifest.model_copy(update={"audit": measured})
    record(write(folder, kept, tensors, read_embeddings(folder)))


def corpus_of(manifest: BridgeManifest) -> Corpus:
    """What a bridge was fitted on, or the built-in text where that very text is not available.

    Nothing is downloaded because a manifest names it, and a file that only has the same name does
    not count. Of a bridge from elsewhere, only what lies under the current folder is looked at.
    """
    sources, seed = manifest.data.sources, manifest.data.seed
    ours = measured_here(manifest)
    if all(not source.startswith("hub:") and (ours or _lies_here(source)) for source in sources):
        with suppress(InputError):
            corpus = load_corpus(sources, seed=seed)
            if corpus.digest == manifest.data.digest:
                return corpus
    return load_corpus(seed=seed)


def _lies_here(source: str) -> bool:
    """Whether a source is in the current folder; a stranger may name a disk, or what never ends."""
    try:
        path = Path(source)
        path.resolve().relative_to(Path.cwd().resolve())
    except (OSError, ValueError, RuntimeError):  # elsewhere, no path, or links in a ring
        return False
    return path.resolve() != Path.cwd().resolve() and not source.startswith("~")
