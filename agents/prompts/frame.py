"""What stands around a message that is a context of its own."""

from unspoken.agents.prompts.context import ChatTurn, ContextBuilder
from unspoken.channels.model import Frame


def frame_of(builder: ContextBuilder, name: str) -> Frame:
    """What stands around a message: ``bare``, or ``chat`` for a user turn of a template."""
    if name == "bare":
        return Frame(name, builder.text.encode(builder.text.bos), ())
    context = builder.compose([ChatTurn("user", ("x",))])
    turn = context.segments[-1]
    start, stop = turn.content
    return Frame(name, context.ids[: turn.position + start], turn.ids[stop:] + builder.ask())
