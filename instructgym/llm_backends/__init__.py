"""llm_backends."""
