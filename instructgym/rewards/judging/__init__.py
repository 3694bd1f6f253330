"""What a judge is asked, and how its replies are read: one prompt, one version, one parser."""

__all__: list[str] = []
