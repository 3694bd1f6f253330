"""InstructGym."""
