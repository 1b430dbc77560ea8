"""Which states begin as a context does: a radix tree over token ids.

Each node is a run of ids that all states below it have in common. A walk from the root follows a
context as far as any state goes with it, so a look-up costs the length of the context, however many
states there are.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from unspoken.channels.message import common_prefix

Entry = TypeVar("Entry", bound=Hashable)

Ids = tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Node(Generic[Entry]):
    """A run of ids, and the states that go through it, the last one put in at the end."""

    run: Ids
    entries: dict[Entry, None] = field(default_factory=dict)
    children: "dict[int, _Node[Entry]]" = field(default_factory=dict)


class PrefixTree(Generic[Entry]):
    """States of one model, dtype and device, by the ids of their contexts."""

    def __init__(self) -> None:
        self._root: _Node[Entry] = _Node(())

    def __bool__(self) -> bool:
        return bool(self._root.entries)

    def add(self, entry: Entry, ids: Ids) -> None:
        """Put a state in, under the ids of its context."""
        node, at = self._root, 0
        node.entries[entry] = None
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                node.children[ids[at]] = _Node(ids[at:], {entry: None})
                return
            shared = common_prefix(child.run, ids[at : at + len(child.run)])
            if shared < len(child.run):
                lower = _Node(child.run[shared:], dict(child.entries), child.children)
                child.run, child.children = child.run[:shared], {lower.run[0]: lower}
            child.entries[entry] = None
            node, at = child, at + shared

    def remove(self, entry: Entry, ids: Ids) -> None:
        """Take a state out that was put in under these ids."""
        node, at = self._root, 0
        node.entries.pop(entry, None)
        while at < len(ids):
            first = ids[at]
            child = node.children.get(first)
            if child is None or entry not in child.entries:
                return
            del child.entries[entry]
            if not child.entries:
                del node.children[first]
                return
            node, at = child, at + len(child.run)

    def longest(
        self, ids: Ids, more_than: int, serving: Callable[[Entry, int], int]
    ) -> tuple[Entry, int] | None:
        """The state that begins with the most of `ids`, and with how many; the last one put in.

        Args:
            ids: A context.
            more_than: What is not worth it: so many tokens or fewer.
            serving: How many of so many first tokens of a state may serve: mostly all or none.
        """
        node, reach = self._root, 0
        path: list[tuple[_Node[Entry], int]] = []
        while reach < len(ids):
            child = node.children.get(ids[reach])
            if child is None:
                break
            shared = common_prefix(child.run, ids[reach : reach + len(child.run)])
            reach += shared
            path.append((child, reach))
            if shared < len(child.run):
                break
            node = child
        best, least = None, more_than
        for passed, tokens in reversed(path):
            if tokens <= least:
                break
            for entry in reversed(passed.entries):
                serves = serving(entry, tokens)
                if serves > least:
                    best, least = (entry, serves), serves
                if least == tokens:
                    break
        return best
