"""Wrong gateways, one deliberate mistake each, and the proof that the checker finds it."""
