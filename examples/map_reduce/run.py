"""Each part of a long document is noted down by itself, and one agent answers by the notes.

``python run.py --make FILE --rows XQUAD`` writes rows for ``unspoken eval`` from questions about
passages: many passages in a row are one document.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unspoken.agents import Agent, LocalModel, Workflow

MODEL = "embedded:smollm2-135m-instruct"
DOCUMENT = Path(__file__).with_name("document.txt")
QUESTION = "Who was the first keeper of the garden?"


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml."""
    notes = Agent(
        "notes",
        model,
        prompt="{{ item }}\n\nIn one sentence: what does this text say about the question "
        '"{{ inputs.question }}"?',
        generate={"max_new_tokens": 40, "stop": "\n"},
        for_each="inputs.parts",
    )
    answer = Agent(
        "answer",
        model,
        prompt="Question: {{ inputs.question }}\nAnswer in a few words by the notes above.",
        generate={"max_new_tokens": 24, "stop": "\n"},
    )
    flow = Workflow(
        "map-reduce",
        [notes, answer],
        models={"small": model},
        inputs={"parts": "list", "question": "text"},
        outputs={"answer": "{{ answer.text }}"},
    )
    return flow.connect(notes, answer)


def parts(paragraphs: Sequence[str], words: int) -> Iterator[str]:
    """A document's paragraphs in parts of about so many words; no paragraph is cut."""
    part: list[str] = []
    for paragraph in paragraphs:
        if part and sum(len(one.split()) for one in (*part, paragraph)) > words:
            yield "\n\n".join(part)
            part = []
        part.append(paragraph)
    if part:
        yield "\n\n".join(part)


def long_rows(rows: list[dict[str, Any]], passages: int, words: int) -> Iterator[dict[str, Any]]:
    """One question for each document of so many passages in a row."""
    draw = random.Random(0)
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        asked.setdefault(row["context"], []).append(row)
    texts = list(asked)
    for at, text in enumerate(texts):
        around = [texts[(at + offset) % len(texts)] for offset in range(passages)]
        draw.shuffle(around)
        row = draw.choice(asked[text])
        gold, question = row["answers"], row["question"]
        yield {"parts": list(parts(around, words)), "question": question, "gold": gold}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--words", type=int, default=120, help="of a part")
    parser.add_argument("--rows", type=Path, help="rows with context, question and answers")
    parser.add_argument("--make", type=Path, metavar="FILE", help="write rows for unspoken eval")
    parser.add_argument("--passages", type=int, default=60, help="of a document, with --make")
    given = parser.parse_args()
    if given.make and given.rows:
        lines = given.rows.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        made = list(long_rows(rows, given.passages, given.words))
        given.make.write_text("".join(f"{json.dumps(row)}\n" for row in made), encoding="utf-8")
        print(f"{len(made)} rows in {given.make}")
        return
    paragraphs = given.document.read_text(encoding="utf-8").strip().split("\n\n")
    result = build().run(parts=list(parts(paragraphs, given.words)), question=given.question)
    print(result["notes"].text)
    print(result.outputs["answer"])


if __name__ == "__main__":
    main()
