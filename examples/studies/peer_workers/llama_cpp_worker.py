"""The fan-out in llama.cpp: the document in one sequence, which all agents' sequences share.

By its C functions, since its Python class has one sequence alone.
"""

import tempfile
from pathlib import Path

import llama_cpp as lib
import numpy
from serving import serve

BATCH = 512


@lib.llama_log_callback
def say_nothing(level, text, data):
    """What llama.cpp tells of itself."""


class Engine:
    """A model, and a context with a sequence for each agent.

    Args:
        job: What `peers.py` asks for.
    """

    def __init__(self, job):
        self.document, self.prompts = job["document"], job["prompts"]
        self.tokens, self.stop_ids = job["tokens"], job["stop_ids"]
        path = as_float32(job["file"]) if job["float32"] else job["file"]
        model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        self.words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        settings = lib.llama_context_default_params()
        own = sum(len(prompt) - len(self.document) + self.tokens for prompt in self.prompts)
        settings.n_ctx = len(self.document) + own + BATCH
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = len(self.prompts)
        settings.n_threads = settings.n_threads_batch = job["threads"]
        settings.kv_unified = True  # what sequences share stands in memory once
        self.context = lib.llama_init_from_model(model, settings)
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)

    def write(self, size):
        """What the first agents write."""
        lib.llama_memory_clear(self.memory, False)
        self.compute([(token, at, 0, False) for at, token in enumerate(self.document)])
        for sequence in range(1, size):
            lib.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        questions, ends = [], []
        for sequence, prompt in enumerate(self.prompts[:size]):
            for at in range(len(self.document), len(prompt)):
                questions.append((prompt[at], at, sequence, at == len(prompt) - 1))
            ends.append(len(questions) - 1)
        assert len(questions) <= BATCH, "the questions fill more than one batch"
        self.compute(questions)
        written = [[self.likeliest(end)] for end in ends]
        for step in range(self.tokens - 1):
            rows = zip(self.prompts, written, strict=False)
            self.compute(
                [(ids[-1], len(prompt) + step, row, True) for row, (prompt, ids) in enumerate(rows)]
            )
            for sequence, ids in enumerate(written):
                ids.append(self.likeliest(sequence))
        return written

    def compute(self, tokens):
        """Compute tokens, each with its id, position, sequence, and whether logits are wanted."""
        for begin in range(0, len(tokens), BATCH):
            part, batch = tokens[begin : begin + BATCH], self.batch
            batch.n_tokens = len(part)
            for index, (token, position, sequence, wanted) in enumerate(part):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = wanted
            failed = lib.llama_decode(self.context, batch)
            assert not failed, f"llama_decode gave {failed}"

    def likeliest(self, index):
        """The likeliest id after a token of the last batch, of those that end no turn."""
        pointer = lib.llama_get_logits_ith(self.context, index)
        logits = numpy.ctypeslib.as_array(pointer, (self.words,))
        logits[self.stop_ids] = -numpy.inf
        return int(logits.argmax())


def as_float32(file):
    """A copy of a GGUF with all weights written out."""
    path = str(Path(tempfile.mkdtemp()) / "float32.gguf")
    how = lib.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize = lib.LLAMA_FTYPE_ALL_F32, True
    failed = lib.llama_model_quantize(file.encode(), path.encode(), how)
    assert not failed, "llama.cpp cannot write the weights in float32"
    return path


def load(job):
    lib.llama_log_set(say_nothing, None)
    lib.llama_backend_init()
    weights = "float32" if job["float32"] else "the GGUF's own weights"
    about = f"llama.cpp of llama-cpp-python {lib.__version__}, {weights}"
    return about, Engine(job).write


serve(load)
