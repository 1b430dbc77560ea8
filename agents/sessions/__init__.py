"""Conversations that go on over many runs: what a session holds of them, and where.

- `SessionStore` is where sessions are kept on disk.
- `StoredSession` is what it tells of one, with a `Conversation` for each agent.
"""

from unspoken.agents.sessions.records import Conversation, StoredSession
from unspoken.agents.sessions.store import SessionStore

__all__ = ["Conversation", "SessionStore", "StoredSession"]
