"""EvolInstruct of distilabel 1.5.3 on an endpoint; run by `llm_throughput.py` in distilabel's own environment.

    python _distilabel_client.py pipeline|process BASE_URL CHAINS

Prints the seconds of wall time. Settings are its best: an input batch as large as the concurrency, and a loader whose
batches are no smaller.
"""

from __future__ import annotations

import sys
import time

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import EvolInstruct

STEPS = 2


def task(base_url: str, chains: int, **more: object) -> EvolInstruct:
    llm = OpenAILLM(
        model="simulated",
        base_url=base_url,
        api_key="none",
        generation_kwargs={"max_new_tokens": 512, "temperature": 0.7},
    )
    return EvolInstruct(llm=llm, num_evolutions=STEPS, store_evolutions=True, input_batch_size=chains, **more)


def main() -> None:
    way, base_url, chains = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rows = [{"instruction": f"Explain number {number} to a child."} for number in range(chains)]
    if way == "process":
        evolve = task(base_url, chains)
        evolve.load()
        started = time.perf_counter()
        next(evolve.process(rows))
    else:
        with Pipeline(name="throughput") as pipeline:
            LoadDataFromDicts(data=rows, batch_size=chains) >> task(base_url, chains)
        started = time.perf_counter()
        pipeline.run(use_cache=False)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
