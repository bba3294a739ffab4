"""The money scripts alone, on both engines: every interleaving that a model can think of."""
