"""One training stage on one transformers model: supervised fine-tuning and preference optimisation, through TRL."""

__all__: list[str] = []
