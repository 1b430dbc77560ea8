"""Words: the reference that every other channel is measured against."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from unspoken.channels.base import Arrival, Carry, CarryReport, Channel, Role, Share
from unspoken.channels.model import CausalModel


@dataclass(frozen=True, slots=True)
class TextChannel(Channel):
    """Hand over words, or between equal tokenizers their ids; the receiver computes everything.

    Attributes:
        share: What the sharer publishes; None stands for its output, or its prompt where it
            generates nothing.
        as_: Role of the message's turn in the receiver's template.
        evidence: What speaks for text where a cache would serve, for the report.
    """

    name: ClassVar[str] = "text"
    carries_state: ClassVar[bool] = False

    share: Share | None = None
    as_: Role = "user"
    _: KW_ONLY
    evidence: str = ""

    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        """Any two models can exchange words."""

    def carry(self, arrival: Arrival, receiver: CausalModel) -> Carry:
        """No state at all."""
        message = arrival.message
        how = "token ids" if message.identity.tokenizer == receiver.identity.tokenizer else "words"
        reads = f"the receiver reads the same {how}"
        report = CarryReport(
            channel=self.name,
            mode="text",
            exact=True,
            reason=f"{self.evidence}: {reads}" if self.evidence else reads,
            tokens=arrival.tokens,
            bytes=len(message.text.encode()),
        )
        return Carry(report)
