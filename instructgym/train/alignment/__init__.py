"""Self-learning and teacher guidance: prompts, candidates, judgements, pairs, rounds."""

__all__: list[str] = []
