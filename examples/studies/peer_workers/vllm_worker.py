"""The fan-out in vLLM: the document first, then all agents in one batch that finds its blocks."""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, whose time is counted
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

from serving import serve


def load(job):
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    import vllm

    llm = vllm.LLM(
        model=job["folder"],
        dtype=job["dtype"],
        max_model_len=max(map(len, job["prompts"])) + job["tokens"],
        enable_prefix_caching=True,
        enforce_eager=True,  # what it compiles for a CPU takes minutes to begin
    )
    stop, most = job["stop_ids"], job["tokens"]
    settings = {"temperature": 0.0, "stop_token_ids": stop, "detokenize": False}
    read = vllm.SamplingParams(max_tokens=1, **settings)
    answer = vllm.SamplingParams(max_tokens=most, min_tokens=most, **settings)

    def generate(prompts, how):
        given = [{"prompt_token_ids": ids} for ids in prompts]
        return [list(one.outputs[0].token_ids) for one in llm.generate(given, how, use_tqdm=False)]

    def write(size):
        llm.reset_prefix_cache()
        generate([job["document"]], read)
        return generate(job["prompts"][:size], answer)

    return f"vLLM {vllm.__version__}, {job['dtype']}, eager", write


serve(load)
